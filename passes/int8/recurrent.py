"""LSTM with int8 weights: `com.microsoft:DynamicQuantizeLSTM`, activations quantized at run time.

ONNX keeps W as [directions, 4 * hidden, input] and R as [directions, 4 * hidden, hidden]; this
operator wants both transposed, and symmetric scales: per direction, or per direction and row of
4 * hidden. Its kernel is up to 12 % slower with a scale per row, so rows have scales of their own
only where that leaves clearly less error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.grid import SMALLEST_SCALE
from graphopt.passes.int8.writer import Writer

from graphopt.graph.attributes import attribute
from graphopt.graph.constants import weight_of

__all__ = ["OPERATOR", "quantize_lstm", "why_not"]

#: Squared error of one scale per direction, over that of scales per row, that is worth its speed.
SLACK = 3.0
OPERATOR = "com.microsoft:DynamicQuantizeLSTM"
Array = np.ndarray[Any, Any]


def why_not(node: ir.Node, operators: frozenset[str]) -> str | None:
    """The reason why this LSTM or GRU cannot be integer, or None."""
    if node.op_type != "LSTM":
        return f"the runtime has no integer {node.op_type}"
    if OPERATOR not in operators:
        return "the target has no integer LSTM"
    if attribute(node, "layout", 0):
        return "its layout is batch first"
    if weight_of(node.inputs[1]) is None or weight_of(node.inputs[2]) is None:
        return "its weights are computed, not constant"
    return None


def quantize_lstm(writer: Writer, node: ir.Node, *, bits: int = 8) -> None:
    """Replace `node` by its integer form; `node` is left dead."""
    inputs = list(node.inputs) + [None] * (8 - len(node.inputs))
    new: list[ir.Value | None] = list(inputs)
    extra: list[ir.Value | None] = []
    for k in (1, 2):
        value = inputs[k]
        weight = weight_of(value)
        assert value is not None
        assert weight is not None
        integers, scales = _rows(weight.array(), bits)
        new[k] = writer.kept((weight.key, "lstm"), integers, f"{value.name}_q")
        scale = writer.shared(scales, f"{value.name}_scale")
        zero = writer.shared(np.zeros(scales.shape, np.int8), "zero")
        extra += [scale, zero]
    lstm = writer.node(
        "DynamicQuantizeLSTM",
        [*new, *extra],
        node.name or "LSTM",
        origin=[node],
        before=node,
        domain="com.microsoft",
        outputs=len(node.outputs),
        attributes={a.name: a.value for a in node.attributes.values() if a.name not in ("layout",)},
    )
    for old, value in zip(node.outputs, lstm.outputs, strict=True):
        if not old.name:
            value.name = ""
            continue
        writer.take_over(old, value)


def _rows(array: Array, bits: int) -> tuple[Array, Array]:
    """[d, 4h, k] -> integers [d, k, 4h] and scales [d] or [d, 4h]."""
    integers, scales, off = _rounded(array, bits, (2,))
    scales = scales[:, :, 0]
    whole, scale, more = _rounded(array, bits, (1, 2))
    if more <= SLACK * off:
        integers, scales = whole, scale[:, 0, 0]
    return np.ascontiguousarray(integers.transpose(0, 2, 1)), scales


def _rounded(array: Array, bits: int, axes: tuple[int, ...]) -> tuple[Array, Array, float]:
    """Integers, scales that are one along `axes`, and the sum of squared errors."""
    top = 2 ** (bits - 1) - 1
    peaks = np.abs(array).max(axis=axes, keepdims=True)
    scales = np.maximum(peaks / top, SMALLEST_SCALE).astype(np.float32)
    integers = np.clip(np.rint(array / scales), -top, top).astype(np.int8)
    return integers, scales, float(np.square(integers * scales - array).sum())
