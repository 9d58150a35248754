"""Products and lookups that read packed blocks, in the place of those that read floats.

y = x W            ->  MatMulNBits(x, Q, s, z)
y = Gather(T, i)   ->  GatherBlockQuantized(Q, i, s, z)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.weight_only.blocks import in_blocks
from graphopt.passes.weight_only.finished import Finished
from graphopt.passes.weight_only.levels import LEVELS

from graphopt.analyses.linear import Linear
from graphopt.calibration.rounding import Order
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import weight_of

__all__ = ["Asked", "BlockWriter", "reads_floats"]

Array = np.ndarray[Any, Any]

#: What gives the order to round a weight in, asked where it is rounded.
Asked = Callable[[], Order | None] | None
#: What a matrix becomes, by the ends of the names.
PARTS = ("q", "scale", "zero")


class BlockWriter:
    """Puts packed matrices in place of those of a model, each once."""

    def __init__(
        self, model: ir.Model, ctx: Context, block: int, finished: Finished | None = None
    ) -> None:
        self.model, self.ctx, self.block, self.finished = model, ctx, block, finished
        self.names = Names(model)
        #: Packed rows [n, bytes], scales, zeros and bits, by what holds the matrix.
        self.packed: dict[ir.Value, tuple[list[ir.Value], int]] = {}

    def replace(self, op: Linear, bits: int, order: Asked) -> ir.Node:
        """Let `op` read its matrix in blocks; returns the node that does."""
        builder = Builder(self.model, op.node, self.names)
        y = self._product(builder, op, bits, order) if op.at else self._lookup(builder, op, bits)
        made = y.producer()
        assert made is not None
        if op.bias is not None:
            y.type, y.shape = op.y.type, op.y.shape
            y = builder.node("Add", [y, op.bias]).outputs[0]
        builder.take_over(op.y, y)
        provenance.derive(builder.nodes, [op.node], self.ctx.pass_name)
        remove_dead([op.node])
        return made

    def _product(self, builder: Builder, op: Linear, bits: int, order: Asked) -> ir.Value:
        (rows, scales, zeros), bits = self._stored(builder, op, bits, order)
        blocks = -(-op.in_channels // self.block)
        packed = [op.out_channels, blocks, self.block * bits // 8]
        if op.shared:
            shape = builder.constant(np.array(packed), "packed_shape")
            rows = builder.node("Reshape", [rows, shape]).outputs[0]
        attributes = {
            "K": op.in_channels,
            "N": op.out_channels,
            "bits": bits,
            "block_size": self.block,
            "accuracy_level": LEVELS[self.ctx.target.int8 is not None],
        }
        inputs = [op.x, rows, scales, zeros]
        return builder.node("MatMulNBits", inputs, attributes, domain="com.microsoft").outputs[0]

    def _lookup(self, builder: Builder, op: Linear, bits: int) -> ir.Value:
        (rows, scales, zeros), bits = self._stored(builder, op, bits, None)
        attributes = {
            "bits": bits,
            "block_size": self.block,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        inputs = [rows, op.x, scales, zeros]
        made = builder.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft")
        return made.outputs[0]

    def _stored(
        self, builder: Builder, op: Linear, bits: int, order: Asked
    ) -> tuple[list[ir.Value], int]:
        """Packed rows, scales, zeros and the bits; as they are if they were made before."""
        held = weight_of(op.weight)
        root = op.weight if held is None else held.root
        if root not in self.packed:
            base = root.name or "weight"
            arrays = self.finished.known(base, PARTS) if self.finished else None
            if arrays is None:
                arrays = self._made(op, bits, order)
                arrays = self.finished.keep(base, arrays) if self.finished else arrays
            values = [builder.constant(a, f"{base}_{name}") for name, a in arrays.items()]
            self.packed[root] = values, bits
        return self.packed[root]

    def _made(self, op: Linear, bits: int, order: Asked) -> dict[str, Array]:
        w = op.matrix()[0] if op.at else op.array()
        made = in_blocks(w, bits, self.block, w.dtype, order() if order else None)
        integers, zeros = made.packed()
        if op.shared or not op.at:
            integers = integers.reshape(len(w), -1)
        return dict(zip(PARTS, (integers, made.scales, zeros), strict=True))


def reads_floats(op: Linear) -> bool:
    """Whether it is x W, or x W + b, with one matrix of floats."""
    return (
        op.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        and not (op.stacked or op.left or op.turned)
        and op.alpha == op.beta == 1
    )
