"""Convolution, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import Grid, Tensor
from graphopt.backends.litert.fusing import tail_of
from graphopt.backends.litert.windows import SAME, VALID, image, last, pad, pads_of, same, two
from graphopt.backends.litert.writer import Lower, Refused, Writer

__all__ = ["CONVOLUTION", "bias_of"]


def conv(w: Writer, node: ir.Node) -> None:
    """Conv(x, k, b) -> CONV_2D or DEPTHWISE_CONV_2D"""
    value, kernel = node.inputs[0], node.inputs[1]
    assert value is not None
    assert kernel is not None
    spatial = len(w.shape(value)) - 2
    if spatial not in (1, 2):
        raise Refused(f"a convolution over {spatial} axes")
    x = image(w, w.read(value, last(spatial + 2)))
    outputs, per_group, *size = w.shape(kernel)
    group = w.attribute(node, "group")
    stride, dilation = (two(w.attribute(node, k), 1) for k in ("strides", "dilations"))
    size = [*([1] * (2 - spatial)), *size]
    before, after = pads_of(w, node, x.shape[1:3], size, stride, dilation)
    x, padding = _padded(w, x, size, stride, dilation, before, after)
    shape = w.shape(node.outputs[0])
    out = [shape[0], *([1] * (2 - spatial)), *shape[2:], outputs]
    depthwise = group > 1 and per_group == 1 and group == x.shape[3]
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    weights = w.weight(kernel, (outputs, per_group, *size), order)
    tail = tail_of(w, node)
    bias = bias_of(w, node.inputs[2] if len(node.inputs) > 2 else None, x, weights, outputs)
    given: dict[str, Any] = {
        "padding": padding,
        "strideH": stride[0],
        "strideW": stride[1],
        "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1],
        "fusedActivationFunction": tail.activation,
    }
    code, options = "CONV_2D", "Conv2D"
    if depthwise:
        code, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2D"
        given["depthMultiplier"] = outputs // group
    for one in tail.nodes:
        w.skip(one)
    made = w.emit(code, [x, weights, bias], out, options, **given)
    w.give(tail.value, w.reshape(made, [shape[k] for k in last(spatial + 2)]), last(spatial + 2))


def bias_of(
    w: Writer, value: ir.Value | None, x: Tensor, weights: Tensor, outputs: int
) -> Tensor | None:
    """The bias as LiteRT wants it: in integers, int32 on the grid of data times weights."""
    if x.grid is None or weights.grid is None:
        return w.floats(np.zeros(outputs)) if value is None else w.read(value)
    grid = Grid(tuple(x.grid.scale[0] * s for s in weights.grid.scale), 0, 0)
    real = np.zeros(outputs) if value is None else w.real(value)
    if real is None:
        raise Refused("its bias is computed at run time")
    rounded = np.rint(real.reshape(-1).astype(np.float64) / np.array(grid.scale))
    limit = 2**31 - 1
    return w.file.constant(np.clip(rounded, -limit, limit).astype(np.int32), grid)


def conv_transpose(w: Writer, node: ir.Node) -> None:
    """ConvTranspose(x, k, b) -> TRANSPOSE_CONV without padding, cut, plus b"""
    value, kernel = node.inputs[0], node.inputs[1]
    assert value is not None
    assert kernel is not None
    if len(w.shape(value)) != 4 or w.attribute(node, "group") != 1:
        raise Refused("a transposed convolution in groups, or not over two axes")
    if any(d != 1 for d in two(w.attribute(node, "dilations"), 1)):
        raise Refused("a dilated transposed convolution")
    if x_grid := w.grid:
        raise Refused(f"a transposed convolution in integers ({len(x_grid.scale)} scales)")
    x = w.read(value, last(4))
    inputs, outputs, *size = w.shape(kernel)
    stride = two(w.attribute(node, "strides"), 1)
    shape = w.shape(node.outputs[0])
    whole = [(d - 1) * s + k for d, s, k in zip(x.shape[1:3], stride, size, strict=True)]
    before = _transposed_start(w, node, whole, shape[2:])
    weights = w.weight(kernel, (inputs, outputs, *size), (1, 2, 3, 0))
    full = (shape[0], *whole, outputs)
    made = w.emit(
        "TRANSPOSE_CONV",
        [w.numbers(full), weights, x],
        full,
        "TransposeConv",
        padding=VALID,
        strideH=stride[0],
        strideW=stride[1],
    )
    more = [max(0, b + d - n) for b, d, n in zip(before, shape[2:], whole, strict=True)]
    if any(more):
        made = pad(w, made, [0, 0, 0, 0], [0, *more, 0])
    wanted = (shape[0], *shape[2:], outputs)
    if made.shape != wanted:
        sizes = [w.numbers((0, *before, 0)), w.numbers(wanted)]
        made = w.moved("SLICE", [made, *sizes], wanted, "Slice")
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        made = w.emit("ADD", [made, w.read(node.inputs[2])], wanted, "Add")
    w.give(node.outputs[0], made, last(4))


def _transposed_start(
    w: Writer, node: ir.Node, whole: Sequence[int], wanted: Sequence[int]
) -> list[int]:
    automatic = w.attribute(node, "auto_pad")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(0, n - d) for n, d in zip(whole, wanted, strict=True)]
        return [t // 2 if automatic == "SAME_UPPER" else t - t // 2 for t in total]
    if w.attribute(node, "output_shape"):
        raise Refused("a transposed convolution with output_shape")
    return list(w.attribute(node, "pads") or (0, 0))[:2]


def _padded(
    w: Writer,
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    before: list[int],
    after: list[int],
) -> tuple[Tensor, int]:
    if not any((*before, *after)):
        return x, VALID
    if (before, after) == same(x.shape[1:3], size, stride, dilation):
        return x, SAME
    return pad(w, x, [0, *before, 0], [0, *after, 0]), VALID


CONVOLUTION: dict[str, Lower] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
}
