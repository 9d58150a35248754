"""Dynamic quantization: activations get their grid at run time, weights are int8 in the file.

    y = x W + b    ->    q, s, z = DynamicQuantizeLinear(x)
                         y = (q - z) Wq * (s * w) + b

No samples are needed and each run has a grid of its own. With the target's own operator the product
is one node; otherwise it is written as MatMulInteger, Cast and Mul. Products that read the same
activation share its quantization.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.embeddings import transposed_table
from graphopt.passes.int8.operators import Operator
from graphopt.passes.int8.plan import PRODUCT
from graphopt.passes.int8.writer import Writer

from graphopt.graph.constants import weight_of

__all__ = ["addend_after", "multiply", "quantize_at_run_time"]

Array = np.ndarray[Any, Any]


def addend_after(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a constant row that alone reads `node`'s output, and that row."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    after = uses[0].node
    if after.op_type != "Add" or after.domain not in ("", "ai.onnx"):
        return None
    if after.graph is not node.graph:
        return None
    row = after.inputs[1 - uses[0].idx]
    weight = weight_of(row)
    if weight is None or row is None or len(weight.shape) == 0:
        return None
    if weight.shape[-1] != int(np.prod(weight.shape)) or weight.shape[-1] == 1:
        return None
    if len(weight.shape) > 2:
        return None
    return after, row


def quantize_at_run_time(writer: Writer, x: ir.Value, origin: ir.Node) -> list[ir.Value]:
    """`x` as integers, their scale and zero point."""
    q = writer.node(
        "DynamicQuantizeLinear",
        [x],
        f"{x.name}_q",
        origin=[origin],
        outputs=3,
        after=x.producer(),
    )
    return list(q.outputs)


def multiply(
    writer: Writer,
    node: ir.Node,
    kind: Operator,
    weights: tuple[Array, Array],
    quantized: Sequence[ir.Value],
) -> ir.Node:
    """Replace MatMul or Gemm `node` (weight of rank 2) by a product of integers.

    Args:
        writer: where new nodes go.
        node: the node.
        kind: what it is.
        weights: its integers and scales, channels on `kind.axis`.
        quantized: its activation as integers, their scale and zero point.

    Returns:
        the node that is now dead, with what only it used.
    """
    assert kind.weight is not None
    old = node.inputs[kind.weight]
    weight = weight_of(old)
    assert old is not None
    assert weight is not None
    integers, scales = weights
    if kind.axis == 0:
        integers = integers.T
    row = None if kind.bias is None else node.inputs[kind.bias]
    last = node
    if row is None and (found := addend_after(node)) is not None and _wide(found[1], integers):
        last, row = found
    origin = [node] if last is node else [node, last]
    q8, step, zero = quantized
    name = last.name or last.outputs[0].name or "MatMul"
    if weight.root in writer.tied:
        stored = transposed_table(writer, weight.root, last)
    else:
        stored = writer.kept(
            (weight.key, scales.tobytes(), kind.axis, "dynamic"),
            np.ascontiguousarray(integers),
            f"{old.name}_q",
        )
    scale = writer.shared(scales, f"{old.name}_scale")
    if PRODUCT in writer.ctx.target.operators:
        flat = None if row is None else _row(writer, row)
        result = writer.node(
            "MatMulIntegerToFloat",
            [q8, stored, step, scale, zero, None, flat][: 7 if flat else 5],
            name,
            origin=origin,
            before=last,
            domain="com.microsoft",
        ).outputs[0]
    else:

        def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
            return writer.node(
                op, inputs, f"{name}/{op}", origin=origin, before=last, attributes=attributes
            ).outputs[0]

        sums = add("Cast", add("MatMulInteger", q8, stored, zero), to=int(ir.DataType.FLOAT))
        result = add("Mul", sums, add("Mul", step, scale))
        if row is not None:
            result = add("Add", result, row)
    writer.take_over(last.outputs[0], result)
    return last


def _wide(row: ir.Value, integers: Array) -> bool:
    weight = weight_of(row)
    return weight is not None and weight.shape[-1] == integers.shape[1]


def _row(writer: Writer, row: ir.Value) -> ir.Value:
    """The bias as a vector."""
    weight = weight_of(row)
    assert weight is not None
    if len(weight.shape) == 1 and weight.root is row:
        return row
    return writer.kept((weight.key, "row"), weight.array().reshape(-1), f"{row.name}_row")
