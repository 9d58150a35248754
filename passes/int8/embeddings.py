"""Embedding tables: rows of int8, looked up first and scaled after.

    Gather(T, i)  ->  GatherBlockQuantized(Tq, i, scales)              where the target has it
                      Cast(Gather(Tq, i)) * Gather(scales, i)          otherwise, one scale per row

Only the rows looked up are converted, so the table costs a quarter of its bytes and no time. A
table that a product reads too (the tied head of a language model) is stored once, as rows of int8
with the product's scales; the product reads it transposed, which a runtime computes on loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.grid import quantize, weight_scales
from graphopt.passes.int8.operators import Operator
from graphopt.passes.int8.writer import Writer

from graphopt.analyses.linear import linear_of
from graphopt.graph.constants import weight_of

__all__ = ["BLOCKED", "quantize_table", "tie", "transposed_table", "why_not"]

Array = np.ndarray[Any, Any]

BLOCKED = "com.microsoft:GatherBlockQuantized"
#: Shorter rows gain nothing over their scale; smaller tables nothing worth two more nodes.
SHORTEST_ROW, SMALLEST_TABLE = 16, 1 << 13


def why_not(node: ir.Node) -> str | None:
    """The reason why this lookup stays float, or None."""
    op = linear_of(node)
    if op and isinstance(op, str):
        return op
    if isinstance(op, str) or op.dtype != ir.DataType.FLOAT or weight_of(op.weight) is None:
        return "it is no table of float rows"
    if op.out_channels < SHORTEST_ROW or op.in_channels * op.out_channels < SMALLEST_TABLE:
        return "the table is small"
    return None


def quantize_table(writer: Writer, node: ir.Node) -> None:
    """Replace `node` by a lookup in int8 rows; `node` is left dead."""
    value, indices = node.inputs
    weight = weight_of(value)
    assert value is not None
    assert weight is not None
    array = weight.array()
    block = _block(array.shape[1])
    name = node.name or node.outputs[0].name or "Gather"
    tied = writer.tied.get(weight.root)
    if tied is None and BLOCKED in writer.ctx.target.operators and block:
        blocks = array.reshape(array.shape[0], -1, block)
        scales = np.maximum(np.abs(blocks).max(axis=2) / 127, 1e-12).astype(np.float32)
        integers = np.clip(np.rint(blocks / scales[..., None]), -127, 127) + 128
        stored = writer.kept(
            (weight.key, "blocks"),
            integers.astype(np.uint8).reshape(array.shape),
            f"{value.name}_q",
        )
        scale = writer.kept((weight.key, "block scales"), scales, f"{value.name}_scale")
        result = writer.node(
            "GatherBlockQuantized",
            [stored, indices, scale],
            name,
            origin=[node],
            before=node,
            domain="com.microsoft",
            attributes={"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1},
        ).outputs[0]
    else:
        if tied is None:
            scales = weight_scales(array, 0)
            integers = quantize(array, scales, 0)
        else:
            integers, scales = tied
        stored = writer.kept((weight.root, "rows"), integers, f"{value.name}_q")
        scale = writer.kept((weight.key, "row scales"), scales[:, None], f"{value.name}_scale")

        def add(op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
            return writer.node(
                op, inputs, f"{name}/{op}", origin=[node], before=node, attributes=attributes
            ).outputs[0]

        rows = add("Cast", add("Gather", stored, indices), to=int(ir.DataType.FLOAT))
        result = add("Mul", rows, add("Gather", scale, indices))
    writer.take_over(node.outputs[0], result)


def tie(
    writer: Writer,
    lookups: Iterable[ir.Node],
    products: Mapping[ir.Node, Operator],
    weights: Mapping[ir.Node, tuple[Array, Array]],
) -> None:
    """Find the tables whose rows are the columns of one of `products`, quantized at run time."""
    roots = {w.root for n in lookups if (w := weight_of(n.inputs[0])) is not None}
    for node, kind in products.items():
        weight = weight_of(node.inputs[kind.weight]) if kind.weight is not None else None
        if weight is None or weight.root not in roots or kind.axis is None:
            continue
        integers, scales = weights[node]
        if weight.perm[kind.axis] == 0 and scales.ndim == 1:
            back = np.argsort(weight.perm)
            writer.tied[weight.root] = np.ascontiguousarray(integers.transpose(back)), scales


def transposed_table(writer: Writer, root: ir.Value, before: ir.Node) -> ir.Value:
    """The tied table [n, k] as the weight [k, n] of a product."""
    rows = writer.kept((root, "rows"), writer.tied[root][0], f"{root.name}_q")
    return writer.node(
        "Transpose",
        [rows],
        f"{root.name}_q/Transpose",
        origin=[before],
        before=before,
        attributes={"perm": [1, 0]},
    ).outputs[0]


def _block(width: int) -> int:
    """The largest power of two from 16 to 64 that divides a row; 0 if none does.

    At 64 the scales are 1/16 of the integers, and the error is a sixth less than at 256.
    """
    return max((b for b in (16, 32, 64) if width % b == 0), default=0)
