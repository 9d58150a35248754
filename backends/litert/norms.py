"""Reductions, softmax and normalizations, written out where LiteRT has no operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import Tensor
from graphopt.backends.litert.writer import Axes, Lower, Refused, Writer

__all__ = ["NORMS"]

REDUCTIONS = {
    "ReduceMax": "REDUCE_MAX",
    "ReduceMean": "MEAN",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
    "ReduceSum": "SUM",
}


def reduction(w: Writer, node: ir.Node) -> None:
    """ReduceMean(x) -> MEAN, and so on; ReduceL2(x) -> Sqrt(SUM(x * x))"""
    value = node.inputs[0]
    assert value is not None
    held = w.axes(value)
    x, rank = w.read(value, held), len(held)
    given = w.integers(node, 1)
    if given is None:
        given = list(w.attribute(node, "axes") or ())
    if not given and w.attribute(node, "noop_with_empty_axes"):
        w.give(node.outputs[0], x, held)
        return
    reduced = sorted(a % rank for a in given or range(rank))
    at = [held.index(a) for a in reduced]
    keep = bool(w.attribute(node, "keepdims"))
    order: Axes = held
    if not keep:
        left = [a for a in held if a not in reduced]
        order = tuple(sorted(left).index(a) for a in left)
    if node.op_type == "ReduceL2":
        x = w.emit("MUL", [x, x], x.shape, "Mul")
    made = reduced_over(w, REDUCTIONS.get(node.op_type, "SUM"), x, at, keep=keep)
    if node.op_type == "ReduceL2":
        made = w.emit("SQRT", [made], made.shape)
    w.give(node.outputs[0], made, order)


def reduced_over(
    w: Writer, code: str, x: Tensor, at: Sequence[int], *, keep: bool = True
) -> Tensor:
    """A reduction over axes of a tensor."""
    shape = [1 if k in at else d for k, d in enumerate(x.shape) if keep or k not in at]
    kind = x.dtype if x.grid is None else "float32"
    return w.emit(code, [x, w.numbers(at)], shape, "Reducer", kind, keepDims=keep)


def softmax(w: Writer, node: ir.Node) -> None:
    """Softmax(x), LogSoftmax(x) -> SOFTMAX, LOG_SOFTMAX over the last axis"""
    value = node.inputs[0]
    assert value is not None
    held = w.axes(value)
    axis = w.attribute(node, "axis", -1) % len(held)
    order = held if held[-1] == axis else (*(a for a in held if a != axis), axis)
    x = w.read(value, order)
    if node.op_type == "Softmax":
        made = w.emit("SOFTMAX", [x], x.shape, "Softmax", beta=1.0)
    else:
        made = w.emit("LOG_SOFTMAX", [x], x.shape, "LogSoftmax")
    w.give(node.outputs[0], made, order)


def normalized(w: Writer, x: Tensor, at: Sequence[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over axes of a tensor."""
    centered = w.emit("SUB", [x, reduced_over(w, "MEAN", x, at)], x.shape, "Sub")
    squares = w.emit("MUL", [centered, centered], x.shape, "Mul")
    variance = reduced_over(w, "MEAN", squares, at)
    shifted = w.emit("ADD", [variance, w.floats(epsilon)], variance.shape, "Add")
    return w.emit("MUL", [centered, w.emit("RSQRT", [shifted], shifted.shape)], x.shape, "Mul")


def layer_norm(w: Writer, node: ir.Node) -> None:
    """LayerNormalization(x), RMSNormalization(x), written out"""
    x = w.read(node.inputs[0])
    first = w.attribute(node, "axis", -1) % x.rank
    at, epsilon = range(first, x.rank), float(w.attribute(node, "epsilon"))
    if node.op_type == "LayerNormalization":
        if len([o for o in node.outputs if o.uses() or o.is_graph_output()]) > 1:
            raise Refused("its mean or deviation is asked for")
        x = normalized(w, x, at, epsilon)
    else:
        mean = reduced_over(w, "MEAN", w.emit("MUL", [x, x], x.shape, "Mul"), at)
        shifted = w.emit("ADD", [mean, w.floats(epsilon)], mean.shape, "Add")
        x = w.emit("MUL", [x, w.emit("RSQRT", [shifted], shifted.shape)], x.shape, "Mul")
    for code, name, k in (("MUL", "Mul", 1), ("ADD", "Add", 2)):
        if k < len(node.inputs) and node.inputs[k] is not None:
            x = w.emit(code, [x, w.read(node.inputs[k])], x.shape, name)
    w.give(node.outputs[0], x)


def batch_norm(w: Writer, node: ir.Node) -> None:
    """BatchNormalization(x) -> x * a + b"""
    value = node.inputs[0]
    assert value is not None
    held = w.axes(value)
    x = w.read(value, held)
    scale, shift, mean, variance = (w.array(v) for v in node.inputs[1:5])
    if scale is None or shift is None or mean is None or variance is None:
        raise Refused("its statistics are computed at run time")
    factor = scale.astype(np.float64) / np.sqrt(variance + float(w.attribute(node, "epsilon")))
    along = [-1 if a == 1 else 1 for a in held]
    constants = (factor, shift - mean * factor)
    a, b = (w.floats(c.reshape(along)) for c in constants)
    made = w.emit("ADD", [w.emit("MUL", [x, a], x.shape, "Mul"), b], x.shape, "Add")
    w.give(node.outputs[0], made, held)


def instance_norm(w: Writer, node: ir.Node) -> None:
    """InstanceNormalization(x), GroupNormalization(x), written out"""
    value = node.inputs[0]
    assert value is not None
    shape = w.shape(value)
    x, epsilon = w.read(value), float(w.attribute(node, "epsilon"))
    groups = w.attribute(node, "num_groups", 0) or shape[1]
    inner = w.reshape(x, (shape[0], groups, -(-int(np.prod(shape[1:])) // groups)))
    x = w.reshape(normalized(w, inner, [2], epsilon), shape)
    along = (1, shape[1], *([1] * (len(shape) - 2)))
    for code, name, k in (("MUL", "Mul", 1), ("ADD", "Add", 2)):
        array = w.array(node.inputs[k])
        if array is None or array.size != shape[1]:
            raise Refused("its scale or bias is computed, or one for each group")
        x = w.emit(code, [x, w.floats(array.reshape(along))], shape, name)
    w.give(node.outputs[0], x)


def lp_norm(w: Writer, node: ir.Node) -> None:
    """LpNormalization(x) over the last axis -> x / Sqrt(SUM(x * x))"""
    value = node.inputs[0]
    assert value is not None
    x = w.read(value)
    axis = w.attribute(node, "axis") % x.rank
    if w.attribute(node, "p") != 2:
        raise Refused("a norm other than the second")
    total = reduced_over(w, "SUM", w.emit("MUL", [x, x], x.shape, "Mul"), [axis])
    root = w.emit("SQRT", [total], total.shape)
    w.give(node.outputs[0], w.emit("DIV", [x, root], x.shape, "Div"))


NORMS: dict[str, Lower] = {
    "BatchNormalization": batch_norm,
    "GroupNormalization": instance_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LogSoftmax": softmax,
    "LpNormalization": lp_norm,
    "RMSNormalization": layer_norm,
    "ReduceL2": reduction,
    "Softmax": softmax,
    **dict.fromkeys(REDUCTIONS, reduction),
}
