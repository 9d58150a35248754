"""The standard form: a product behind DequantizeLinear with `block_size` (QDQ weights, INT4, INT2).

    y = x W   ->   y = MatMul(x, DequantizeLinear(Q, s, z))      Q [K, N], s and z [K / block, N]

The same integers, scales and zero points as MatMulNBits has, down columns instead of along rows; of
symmetric blocks the integers are signed, without z. ONNX Runtime makes MatMulNBits of it when it
loads the model, but not before a Relu or Clip that one node reads: there it would write the floats
out in every run (five times the time of the float product, 1 row of 2048 x 2048, version 1.32).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.operators import FEW_BITS
from graphopt.passes.weight_only.blocks import Form

from graphopt.analyses.linear import Linear, bias_add
from graphopt.context import Context
from graphopt.graph.building import Builder
from graphopt.graph.spill import spill
from graphopt.rewriting.opset import raise_for
from graphopt.target import Target

__all__ = ["OPSETS", "dequantized", "is_standard", "raised", "why_clipped", "why_not"]

Array = np.ndarray[Any, Any]

#: The opset that has blocks of so many bits.
OPSETS = {2: 25, 4: 21, 8: 21}
#: Element types of so many bits: signed, of symmetric blocks, and unsigned.
TYPES = {
    2: (ir.DataType.INT2, ir.DataType.UINT2),
    4: (ir.DataType.INT4, ir.DataType.UINT4),
    8: (ir.DataType.INT8, ir.DataType.UINT8),
}


def is_standard(target: Target) -> bool:
    """Whether the target reads blocks in this form alone; MatMulNBits needs no rewriting."""
    return target.blocks and FEW_BITS not in target.operators


def why_not(op: Linear, bits: int, block: int, target: Target) -> str:
    """Why a matrix cannot have blocks of so many bits, or ""."""
    if op.in_channels % block:
        return f"blocks of {block} do not divide its {op.in_channels} inputs"
    if target.opset < OPSETS[bits]:
        return f"{bits} bits need opset {OPSETS[bits]}, and {target.name} takes {target.opset}"
    if bits == 2 and op.out_channels % 4:  # 1.32 counts bytes as if rows of Q filled them
        return f"ONNX Runtime reads 2 bits wrongly where {op.out_channels} outputs fill no bytes"
    return ""


def why_clipped(op: Linear, rank: int) -> str:
    """Why a product with x of so many axes stays: a Relu or Clip alone reads it, or ""."""
    add = bias_add(op) if rank == 2 else None  # the two become a Gemm
    reader = _reader(op.y if add is None else add.outputs[0])
    if reader is None or reader.op_type not in ("Relu", "Clip"):
        return ""
    if _reader(reader.outputs[0]) is None:
        return ""
    return f"before {reader.op_type} ONNX Runtime dequantizes it in every run"


def _reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, once."""
    uses = list(value.uses())
    return None if value.is_graph_output() or len(uses) != 1 else uses[0].node


def raised(model: ir.Model, ctx: Context, widths: Collection[int]) -> int | None:
    """Raise the opset, in place, to one with blocks of so many bits; None if it cannot be done.

    Returns:
        How many edits that took, 0 or 1.
    """
    needed = max((OPSETS[bits] for bits in widths), default=0)
    if (model.graph.opset_imports.get("") or 0) >= needed:
        return 0
    return 1 if raise_for("weight_only", model, ctx, needed) else None


def dequantized(
    builder: Builder, op: Linear, form: Form, base: str, arrays: Mapping[str, Array]
) -> ir.Value:
    """The matrix [K, N] as floats, computed from `Blocks.columns`; constants are named `base`_*."""
    k, n = op.in_channels, op.out_channels
    bits, size, symmetric = form
    shapes = {"q": (k, n), "scale": (k // size, n), "zero": (k // size, n)}
    dtype = TYPES[bits][not symmetric]
    held = [
        builder.constant(
            array if name == "scale" else _tensor(array, dtype, shapes[name]), f"{base}_{name}"
        )
        for name, array in arrays.items()
    ]
    (made,) = builder.node("DequantizeLinear", held, {"axis": 0, "block_size": size}).outputs
    made.type, made.shape = held[1].type, ir.Shape([k, n])
    return made


def _tensor(packed: Array, dtype: ir.DataType, shape: tuple[int, int]) -> ir.TensorProtocol:
    """Integers of a few bits from the bytes that hold them."""
    if dtype.bitwidth == 8:
        return ir.Tensor(packed.view(dtype.numpy()).reshape(shape))
    return ir.PackedTensor(spill(ir.Tensor(packed)).numpy(), dtype, shape=shape)
