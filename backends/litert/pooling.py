"""Pooling, channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import Tensor
from graphopt.backends.litert.windows import SAME, VALID, image, last, pad, pads_of, same, two
from graphopt.backends.litert.writer import Lower, Refused, Writer

__all__ = ["POOLING"]


def pool(w: Writer, node: ir.Node) -> None:
    """MaxPool(x) -> MAX_POOL_2D; AveragePool(x) -> AVERAGE_POOL_2D, over what is no padding"""
    value = node.inputs[0]
    assert value is not None
    spatial = len(w.shape(value)) - 2
    if spatial not in (1, 2) or any(d != 1 for d in two(w.attribute(node, "dilations"), 1)):
        raise Refused("a dilated window, or one not over one or two axes")
    if len([o for o in node.outputs if o.uses() or o.is_graph_output()]) > 1:
        raise Refused("its indices are asked for")
    x = image(w, w.read(value, last(spatial + 2)))
    size, stride = (two(w.attribute(node, k), 1) for k in ("kernel_shape", "strides"))
    shape = w.shape(node.outputs[0])
    out = [shape[0], *([1] * (2 - spatial)), *shape[2:], shape[1]]
    before, _ = pads_of(w, node, x.shape[1:3], size, stride, [1, 1])
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
        if (list(before), list(after)) == same(x.shape[1:3], size, stride, [1, 1]):
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
    if not whole and (list(before), list(after)) == same(x.shape[1:3], size, stride, [1, 1]):
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


POOLING: dict[str, Lower] = {
    "AveragePool": pool,
    "GlobalAveragePool": global_mean,
    "GlobalMaxPool": global_mean,
    "MaxPool": pool,
}
