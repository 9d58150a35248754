"""Weights as arrays: initializers, also behind Transpose, Slice, Concat and the like, on demand.

Nothing is cached: a memory-mapped tensor stays mapped, and Transpose, Slice and Reshape of it are
views.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["Array", "as_array", "is_constant", "root", "static_shape"]

Array = np.ndarray[Any, Any]


def as_array(value: ir.Value | None) -> Array | None:
    """The array a value always holds, or None if it depends on inputs or on other operators."""
    if value is None:
        return None
    node = value.producer()
    if node is None:
        tensor = value.const_value
        constant = value.is_initializer() and not value.is_graph_input() and tensor is not None
        return tensor.numpy() if constant and tensor is not None else None
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    move = _MOVES.get(node.op_type)
    if move is None or len(node.outputs) != 1:
        return None
    given = [as_array(v) for v in node.inputs]
    if any(a is None and v is not None for a, v in zip(given, node.inputs, strict=True)):
        return None
    moved: Array = move(node, *given)
    return moved


def is_constant(value: ir.Value | None) -> bool:
    """Whether `as_array` would give an array, found without loading any."""
    if value is None:
        return False
    node = value.producer()
    if node is None:
        return (
            value.is_initializer() and not value.is_graph_input() and value.const_value is not None
        )
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Constant":
        return True
    return (
        node.op_type in _MOVES
        and len(node.outputs) == 1
        and all(is_constant(v) for v in node.inputs if v is not None)
    )


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a constant value, from its tensor, its annotation, or (last) its array."""
    if value.producer() is None and value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    if value.shape is not None and all(isinstance(d, int) for d in value.shape):
        return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]
    array = as_array(value)
    return None if array is None else array.shape


def root(value: ir.Value) -> tuple[ir.Value, bool]:
    """The value a matrix comes from through Identity and Transpose, and whether it is flipped."""
    flipped = False
    while (node := value.producer()) is not None and node.domain in ("", "ai.onnx"):
        source = node.inputs[0] if node.inputs else None
        if source is None or not is_constant(source):
            break
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            if perm is not None and list(perm.as_ints()) != [1, 0]:
                break
            shape = static_shape(source)
            if shape is None or len(shape) != 2:
                break
            flipped = not flipped
        elif node.op_type != "Identity":
            break
        value = source
    return value, flipped


def _transpose(node: ir.Node, x: Array) -> Array:
    perm = node.attributes.get("perm")
    return x.transpose(None if perm is None else tuple(perm.as_ints()))


def _reshape(node: ir.Node, x: Array, shape: Array) -> Array:
    keep = "allowzero" not in node.attributes or not node.attributes["allowzero"].as_int()
    wanted = [x.shape[i] if d == 0 and keep else int(d) for i, d in enumerate(shape)]
    return x.reshape(wanted)


def _axes(node: ir.Node, axes: Array | None) -> tuple[int, ...] | None:
    if axes is not None:
        return tuple(int(a) for a in axes)
    given = node.attributes.get("axes")
    return None if given is None else tuple(given.as_ints())


def _squeeze(node: ir.Node, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, _axes(node, axes))


def _unsqueeze(node: ir.Node, x: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(x, _axes(node, axes) or ())


def _slice(
    node: ir.Node,
    x: Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    index: list[slice] = [slice(None)] * x.ndim
    axis_list = range(len(starts)) if axes is None else [int(a) for a in axes]
    step_list = [1] * len(starts) if steps is None else [int(s) for s in steps]
    for axis, start, end, step in zip(axis_list, starts, ends, step_list, strict=True):
        size = x.shape[axis]
        low, high = int(start), int(end)
        if low < 0:
            low += size
        if high < 0:
            high += size
        if step > 0:
            index[axis] = slice(max(low, 0), max(min(high, size), 0), step)
        else:
            index[axis] = slice(min(low, size - 1), None if high < 0 else high, step)
    return x[tuple(index)]


def _concat(node: ir.Node, *parts: Array) -> Array:
    return np.concatenate(parts, node.attributes["axis"].as_int())


def _identity(node: ir.Node, x: Array) -> Array:
    return x


_MOVES: dict[str, Callable[..., Array]] = {
    "Concat": _concat,
    "Identity": _identity,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
