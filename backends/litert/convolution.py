"""Convolution and pooling, channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import Grid, Tensor
from graphopt.backends.litert.fusing import tail_of
from graphopt.backends.litert.writer import Axes, Lower, Refused, Writer

__all__ = ["CONVOLUTION", "bias_of"]

SAME, VALID = 0, 1


def last(rank: int) -> Axes:
    """The order with channels last."""
    return (0, *range(2, rank), 1)


def conv(w: Writer, node: ir.Node) -> None:
    """Conv(x, k, b) -> CONV_2D or DEPTHWISE_CONV_2D"""
    value, kernel = node.inputs[0], node.inputs[1]
    assert value is not None
    assert kernel is not None
    spatial = len(w.shape(value)) - 2
    if spatial not in (1, 2):
        raise Refused(f"a convolution over {spatial} axes")
    x = _image(w, w.read(value, last(spatial + 2)))
    outputs, per_group, *size = w.shape(kernel)
    group = w.attribute(node, "group")
    stride, dilation = (_two(w.attribute(node, k), 1) for k in ("strides", "dilations"))
    size = [*([1] * (2 - spatial)), *size]
    before, after = _pads(w, node, x.shape[1:3], size, stride, dilation)
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
    if any(d != 1 for d in _two(w.attribute(node, "dilations"), 1)):
        raise Refused("a dilated transposed convolution")
    if x_grid := w.grid:
        raise Refused(f"a transposed convolution in integers ({len(x_grid.scale)} scales)")
    x = w.read(value, last(4))
    inputs, outputs, *size = w.shape(kernel)
    stride = _two(w.attribute(node, "strides"), 1)
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


def pool(w: Writer, node: ir.Node) -> None:
    """MaxPool(x) -> MAX_POOL_2D; AveragePool(x) -> AVERAGE_POOL_2D, over what is no padding"""
    value = node.inputs[0]
    assert value is not None
    spatial = len(w.shape(value)) - 2
    if spatial not in (1, 2) or any(d != 1 for d in _two(w.attribute(node, "dilations"), 1)):
        raise Refused("a dilated window, or one not over one or two axes")
    if len([o for o in node.outputs if o.uses() or o.is_graph_output()]) > 1:
        raise Refused("its indices are asked for")
    x = _image(w, w.read(value, last(spatial + 2)))
    size, stride = (_two(w.attribute(node, k), 1) for k in ("kernel_shape", "strides"))
    shape = w.shape(node.outputs[0])
    out = [shape[0], *([1] * (2 - spatial)), *shape[2:], shape[1]]
    before, _ = _pads(w, node, x.shape[1:3], size, stride, [1, 1])
    sizes = zip(out[1:3], stride, size, before, x.shape[1:3], strict=True)
    after = [max(0, (o - 1) * s + k - b - d) for o, s, k, b, d in sizes]
    if node.op_type == "MaxPool":
        made = _maxima(w, x, size, stride, before, after, out)
    else:
        made = _means(w, node, x, size, stride, before, after, out)
    w.give(
        node.outputs[0], w.reshape(made, [shape[k] for k in last(spatial + 2)]), last(spatial + 2)
    )


def _maxima(
    w: Writer,
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    out: Sequence[int],
) -> Tensor:
    padding = VALID
    if any((*before, *after)):
        if (list(before), list(after)) == _same(x.shape[1:3], size, stride, [1, 1]):
            padding = SAME
        else:
            least = np.int8(-128) if x.grid is not None else np.float32(np.finfo(np.float32).min)
            x = pad(w, x, [0, *before, 0], [0, *after, 0], w.file.constant(np.array(least), x.grid))
    return _pooled(w, "MAX_POOL_2D", x, size, stride, padding, out)


def _means(
    w: Writer,
    node: ir.Node,
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    out: Sequence[int],
) -> Tensor:
    if not any((*before, *after)):
        return _pooled(w, "AVERAGE_POOL_2D", x, size, stride, VALID, out)
    whole = w.attribute(node, "count_include_pad") == 1
    if not whole and (list(before), list(after)) == _same(x.shape[1:3], size, stride, [1, 1]):
        return _pooled(w, "AVERAGE_POOL_2D", x, size, stride, SAME, out)
    if w.grid is not None:
        raise Refused("a padded mean in integers")
    counts = np.ones((1, *out[1:3], 1))
    for axis in (0, 1):
        start = np.arange(out[axis + 1]) * stride[axis] - before[axis]
        given = _given_pads(w, node, axis)
        low, high = (-given[0], x.shape[axis + 1] + given[1]) if whole else (0, x.shape[axis + 1])
        inside = np.minimum(start + size[axis], high) - np.maximum(start, low)
        counts = counts * inside.reshape([-1 if k == axis + 1 else 1 for k in range(4)])
    x = pad(w, x, [0, *before, 0], [0, *after, 0])
    made = _pooled(w, "AVERAGE_POOL_2D", x, size, stride, VALID, out)
    return w.emit("MUL", [made, w.floats(math.prod(size) / counts)], out, "Mul")


def _given_pads(w: Writer, node: ir.Node, axis: int) -> tuple[int, int]:
    pads = list(w.attribute(node, "pads") or ())
    axis -= 2 - len(pads) // 2
    return (pads[axis], pads[axis + len(pads) // 2]) if axis >= 0 else (0, 0)


def _pooled(
    w: Writer,
    code: str,
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: int,
    out: Sequence[int],
) -> Tensor:
    given = {"strideH": stride[0], "strideW": stride[1], "filterHeight": size[0]}
    # pooling takes no other grid than that of its data
    return w.moved(code, [x], out, "Pool2D", padding=padding, filterWidth=size[1], **given)


def global_mean(w: Writer, node: ir.Node) -> None:
    """GlobalAveragePool(x) -> MEAN over rows and columns"""
    value = node.inputs[0]
    assert value is not None
    rank = len(w.shape(value))
    x = w.read(value, last(rank))
    shape = (x.shape[0], *([1] * (rank - 2)), x.shape[-1])
    axes = w.numbers(range(1, rank - 1))
    code = "MEAN" if node.op_type == "GlobalAveragePool" else "REDUCE_MAX"
    made = w.emit(code, [x, axes], shape, "Reducer", keepDims=True)
    w.give(node.outputs[0], made, last(rank))


def pad(
    w: Writer, x: Tensor, before: Sequence[int], after: Sequence[int], value: Tensor | None = None
) -> Tensor:
    """Zeros, or one value, around `x`."""
    around = w.file.constant(np.array([*zip(before, after, strict=True)], np.int32))
    shape = [b + d + a for b, d, a in zip(before, x.shape, after, strict=True)]
    if value is None:
        return w.moved("PAD", [x, around], shape, "Pad")
    return w.moved("PADV2", [x, around, value], shape, "PadV2")


def _image(w: Writer, x: Tensor) -> Tensor:
    """Batch, rows, columns, channels; a signal has one row."""
    return x if x.rank == 4 else w.reshape(x, (x.shape[0], 1, *x.shape[1:]))


def _two(values: Sequence[int] | None, usual: int) -> list[int]:
    found = list(values or ())
    return [usual] * (2 - len(found)) + found


def _pads(
    w: Writer,
    node: ir.Node,
    dims: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[list[int], list[int]]:
    automatic = w.attribute(node, "auto_pad")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        before, after = _same(dims, size, stride, dilation)
        return (before, after) if automatic == "SAME_UPPER" else (after, before)
    pads = list(w.attribute(node, "pads") or [0] * 4)
    half = len(pads) // 2
    if automatic == "VALID":
        pads = [0] * len(pads)
    return _two(pads[:half], 0), _two(pads[half:], 0)


def _same(
    dims: Sequence[int], size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What LiteRT's SAME pads before and behind."""
    found = []
    for d, k, s, g in zip(dims, size, stride, dilation, strict=True):
        total = max(0, (-(-d // s) - 1) * s + (k - 1) * g + 1 - d)
        found.append((total // 2, total - total // 2))
    return [b for b, _ in found], [a for _, a in found]


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
    if (before, after) == _same(x.shape[1:3], size, stride, dilation):
        return x, SAME
    return pad(w, x, [0, *before, 0], [0, *after, 0]), VALID


CONVOLUTION: dict[str, Lower] = {
    "AveragePool": pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_mean,
    "GlobalMaxPool": global_mean,
    "MaxPool": pool,
}
