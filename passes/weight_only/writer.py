"""Products and lookups that read packed blocks, in the place of those that read floats.

y = x W            ->  MatMulNBits(x, Q, s, z)
y = Gather(T, i)   ->  GatherBlockQuantized(Q, i, s, z)

without z where blocks are symmetric. A product for a target that reads the standard form alone
(`standard`) stays one, its matrix dequantized. Where there is MatMulNBits it is written: the bytes
are the same, and so is the kernel, which the standard form is only rewritten to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.weight_only.blocks import Form, in_blocks
from graphopt.passes.weight_only.finished import Finished
from graphopt.passes.weight_only.levels import LEVELS
from graphopt.passes.weight_only.standard import dequantized

from graphopt.analyses.linear import Linear
from graphopt.calibration.rounding import Order
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import weight_of

__all__ = ["PARTS", "Asked", "BlockWriter", "reads_floats"]

Array = np.ndarray[Any, Any]

#: What gives the order to round a weight in, asked where it is rounded.
Asked = Callable[[], Order | None] | None
#: What a matrix becomes, by the ends of the names.
PARTS = ("q", "scale", "zero")


class BlockWriter:
    """Puts packed matrices in place of those of a model, each once.

    Args:
        model: to write in.
        ctx: of the pass.
        finished: what an earlier run left.
        standard: products read their matrix in the standard form.
    """

    def __init__(
        self,
        model: ir.Model,
        ctx: Context,
        finished: Finished | None = None,
        *,
        standard: bool = False,
    ) -> None:
        self.model, self.ctx, self.finished = model, ctx, finished
        self.standard = standard
        self.names = Names(model)
        #: Packed rows [n, bytes], scales, zeros and their form, by what holds the matrix.
        self.packed: dict[ir.Value, tuple[list[ir.Value], Form]] = {}

    def replace(self, op: Linear, form: Form, order: Asked) -> ir.Node:
        """Let `op` read its matrix in blocks; returns the node that does."""
        builder = Builder(self.model, op.node, self.names)
        if not op.at:
            y = self._lookup(builder, op, form)
        elif self.standard:
            y = self._dequantized(builder, op, form, order)
        else:
            y = self._product(builder, op, form, order)
        made = y.producer()
        assert made is not None
        if op.bias is not None:
            y.type, y.shape = op.y.type, op.y.shape
            y = builder.node("Add", [y, op.bias]).outputs[0]
        builder.take_over(op.y, y)
        provenance.derive(builder.nodes, [op.node], self.ctx.pass_name)
        remove_dead([op.node])
        return made

    def _product(self, builder: Builder, op: Linear, form: Form, order: Asked) -> ir.Value:
        (rows, *others), (bits, block, _) = self._stored(builder, op, form, order)
        packed = [op.out_channels, -(-op.in_channels // block), block * bits // 8]
        if op.shared:
            shape = builder.constant(np.array(packed), "packed_shape")
            rows = builder.node("Reshape", [rows, shape]).outputs[0]
        attributes = {
            "K": op.in_channels,
            "N": op.out_channels,
            "bits": bits,
            "block_size": block,
            "accuracy_level": LEVELS[self.ctx.target.int8 is not None],
        }
        inputs = [op.x, rows, *others]
        return builder.node("MatMulNBits", inputs, attributes, domain="com.microsoft").outputs[0]

    def _dequantized(self, builder: Builder, op: Linear, form: Form, order: Asked) -> ir.Value:
        base = op.weight.name or "weight"

        def columns() -> Sequence[Array]:
            w = op.matrix()[0]
            return in_blocks(w, form, w.dtype, order() if order else None).columns()

        w = dequantized(builder, op, form, base, self.kept(base, form, columns))
        return builder.node("MatMul", [op.x, w]).outputs[0]

    def _lookup(self, builder: Builder, op: Linear, form: Form) -> ir.Value:
        (rows, *others), (bits, block, _) = self._stored(builder, op, form, None)
        attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        inputs = [rows, op.x, *others]
        made = builder.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft")
        return made.outputs[0]

    def _stored(
        self, builder: Builder, op: Linear, form: Form, order: Asked
    ) -> tuple[list[ir.Value], Form]:
        """Packed rows, scales, any zeros, their form; as they are if they were made before."""
        held = weight_of(op.weight)
        root = op.weight if held is None else held.root
        if root not in self.packed:
            base = root.name or "weight"
            arrays = self.kept(base, form, lambda: self._made(op, form, order))
            values = [builder.constant(a, f"{base}_{name}") for name, a in arrays.items()]
            self.packed[root] = values, form
        return self.packed[root]

    def kept(self, base: str, form: Form, make: Callable[[], Sequence[Array]]) -> dict[str, Array]:
        """What a matrix becomes: as an earlier run that was killed left it, or made now."""
        parts = PARTS[: 2 if form.symmetric else 3]
        arrays = self.finished.known(base, parts) if self.finished else None
        if arrays is None:
            arrays = dict(zip(parts, make(), strict=True))
            arrays = self.finished.keep(base, arrays) if self.finished else arrays
        return arrays

    def _made(self, op: Linear, form: Form, order: Asked) -> Sequence[Array]:
        w = op.matrix()[0] if op.at else op.array()
        made = in_blocks(w, form, w.dtype, order() if order else None)
        integers, *others = made.packed()
        if op.shared or not op.at:
            integers = integers.reshape(len(w), -1)
        return integers, *others


def reads_floats(op: Linear) -> bool:
    """Whether it is x W, or x W + b, with one matrix of floats."""
    return (
        op.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        and not (op.stacked or op.left or op.turned)
        and op.alpha == op.beta == 1
    )
