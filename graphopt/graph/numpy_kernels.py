"""NumPy kernels: one function per ONNX operator whose meaning NumPy has.

Each takes the node's attributes and its inputs, and gives the output, several, or None where NumPy
does something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["KERNELS", "MOVES", "USER_TYPES"]

Array = np.ndarray[Any, Any]
Attributes = dict[str, Any]
#: NumPy numbers the types that extensions add from here on.
USER_TYPES = 256


def _axes(a: Attributes, given: Array | None) -> tuple[int, ...] | None:
    axes = a.get("axes", given)
    return None if axes is None else tuple(int(x) for x in np.ravel(axes))


def _cast(a: Attributes, x: Array, *_: Array) -> Array | None:
    if not isinstance(a["to"], int):
        return None
    to = ir.DataType(a["to"])
    plain = {"f", "i", "u", "b"}
    if to not in _NUMPY or x.dtype.kind not in plain:
        return None
    target: np.dtype[Any] = np.dtype(_NUMPY[to])
    if x.dtype.kind == "f" and target.kind in "iu":
        info: Any = np.iinfo(target)
        if not (np.isfinite(x).all() and (x > info.min - 1.0).all() and (x < info.max).all()):
            return None
    return x.astype(target)


_NUMPY: dict[ir.DataType, Any] = {
    ir.DataType.BOOL: np.bool_,
    ir.DataType.FLOAT: np.float32,
    ir.DataType.DOUBLE: np.float64,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.INT8: np.int8,
    ir.DataType.INT16: np.int16,
    ir.DataType.INT32: np.int32,
    ir.DataType.INT64: np.int64,
    ir.DataType.UINT8: np.uint8,
    ir.DataType.UINT16: np.uint16,
    ir.DataType.UINT32: np.uint32,
    ir.DataType.UINT64: np.uint64,
}


def _reshape(a: Attributes, x: Array, shape: Array | None = None) -> Array | None:
    target = [int(d) for d in (a["shape"] if shape is None else shape)]
    if not a.get("allowzero", 0):
        target = [x.shape[k] if d == 0 else d for k, d in enumerate(target)]
    return x.reshape(target)


def _squeeze(a: Attributes, x: Array, given: Array | None = None) -> Array:
    return np.squeeze(x, _axes(a, given))


def _unsqueeze(a: Attributes, x: Array, given: Array | None = None) -> Array:
    axes = _axes(a, given) or ()
    rank = x.ndim + len(axes)
    new = {k % rank for k in axes} if rank else set()
    left = iter(x.shape)
    return x.reshape([1 if k in new else next(left) for k in range(rank)])


def _flatten(a: Attributes, x: Array) -> Array:
    axis = a.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis]))
    return x.reshape(rows, int(np.prod(x.shape[axis:])))


def _transpose(a: Attributes, x: Array) -> Array:
    return x.transpose(a.get("perm", None))


def _concat(a: Attributes, *parts: Array) -> Array:
    return np.concatenate(parts, a["axis"])


def _slice(
    a: Attributes,
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array | None:
    begin = [int(v) for v in (a["starts"] if starts is None else starts)]
    stop = [int(v) for v in (a["ends"] if ends is None else ends)]
    where = _axes(a, axes) or tuple(range(len(begin)))
    step = [1] * len(begin) if steps is None else [int(v) for v in steps]
    cut = [slice(None)] * x.ndim
    for k, axis in enumerate(where):
        end = None if step[k] < 0 and stop[k] < -x.shape[axis] else stop[k]
        cut[axis] = slice(begin[k], end, step[k])
    return x[tuple(cut)]


def _gather(a: Attributes, x: Array, index: Array) -> Array | None:
    axis = a.get("axis", 0)
    size = x.shape[axis]
    if index.size and not (index.min() >= -size and index.max() < size):
        return None
    return np.take(x, index, axis)


def _expand(a: Attributes, x: Array, shape: Array) -> Array:
    dims = np.broadcast_shapes(x.shape, tuple(int(d) for d in shape))
    return np.broadcast_to(x, dims)


def _tile(a: Attributes, x: Array, repeats: Array) -> Array | None:
    return np.tile(x, [int(r) for r in repeats]) if repeats.shape == (x.ndim,) else None


def _constant_of_shape(a: Attributes, shape: Array) -> Array:
    value = a["value"].numpy() if "value" in a else np.zeros(1, np.float32)
    return np.full([int(d) for d in shape], value.ravel()[0])


def _range(a: Attributes, start: Array, limit: Array, delta: Array) -> Array | None:
    if start.dtype.kind not in "iu" or delta.ravel()[0] == 0:
        return None
    first, last, step = (int(v.ravel()[0]) for v in (start, limit, delta))
    made: Array = np.arange(first, last, step, dtype=start.dtype)
    return made


def _where(a: Attributes, condition: Array, x: Array, y: Array) -> Array:
    return np.where(condition, x, y)


def _shape(a: Attributes, x: Array) -> Array:
    return np.array(x.shape[a.get("start", 0) : a.get("end", x.ndim)], np.int64)


def _split(a: Attributes, x: Array, sizes: Array | None = None) -> tuple[Array, ...] | None:
    given = a.get("split") if sizes is None else sizes
    if given is None:
        return None
    ends = np.cumsum([int(s) for s in given])
    return tuple(np.split(x, ends[:-1], a.get("axis", 0)))


def _divide(a: Attributes, x: Array, y: Array) -> Array | None:
    if x.dtype.kind in "iu":
        if not y.all() or (x.dtype.kind == "i" and (x == np.iinfo(x.dtype).min).any()):
            return None  # its magnitude is no number of this type
        q = np.abs(x) // np.abs(y)
        return np.where((x < 0) == (y < 0), q, -q).astype(x.dtype)
    return np.asarray(np.true_divide(x, y), x.dtype)


def _pow(a: Attributes, x: Array, y: Array) -> Array | None:
    return np.power(x, y).astype(x.dtype) if x.dtype.kind == "f" else None


def _reduce(function: Callable[..., Any]) -> Callable[..., Array | None]:
    def reduced(a: Attributes, x: Array, given: Array | None = None) -> Array | None:
        axes = _axes(a, given)
        if not axes:
            if a.get("noop_with_empty_axes", 0):
                return None
            axes = tuple(range(x.ndim))
        if (x.size == 0 and function not in (np.sum, np.prod)) or x.dtype.kind == "b":
            return None
        keep = bool(a.get("keepdims", 1))
        return np.asarray(function(x, axis=axes, keepdims=keep)).astype(x.dtype)

    return reduced


def _unary(function: Callable[[Array], Any], floats_only: bool = False) -> Callable[..., Any]:
    def applied(a: Attributes, x: Array) -> Array | None:
        if floats_only and x.dtype.kind != "f":
            return None
        return np.asarray(function(x)).astype(x.dtype)

    return applied


def _binary(function: Callable[..., Any], like_first: bool = True) -> Callable[..., Any]:
    def applied(a: Attributes, x: Array, y: Array) -> Array | None:
        made = np.asarray(function(x, y))
        return made.astype(x.dtype) if like_first else made

    return applied


def _many(function: Callable[..., Any]) -> Callable[..., Any]:
    def applied(a: Attributes, *xs: Array) -> Array:
        result = xs[0]
        for x in xs[1:]:
            result = function(result, x)
        return result

    return applied


def _identity(a: Attributes, x: Array) -> Array:
    return x


#: Operators that move elements and compute none: any element type will do.
MOVES = frozenset(
    """Concat Expand Flatten Gather Identity Reshape Shape Slice Split Squeeze Tile Transpose
    Unsqueeze""".split()  # noqa: SIM905
)

KERNELS: dict[str, Callable[..., Any]] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "Cast": _cast,
    "Ceil": _unary(np.ceil, floats_only=True),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Cos": _unary(np.cos, floats_only=True),
    "Div": _divide,
    "Equal": _binary(np.equal, like_first=False),
    "Exp": _unary(np.exp, floats_only=True),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(np.floor, floats_only=True),
    "Gather": _gather,
    "Greater": _binary(np.greater, like_first=False),
    "GreaterOrEqual": _binary(np.greater_equal, like_first=False),
    "Identity": _identity,
    "Less": _binary(np.less, like_first=False),
    "LessOrEqual": _binary(np.less_equal, like_first=False),
    "Max": _many(np.maximum),
    "Min": _many(np.minimum),
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Or": _binary(np.logical_or),
    "Pow": _pow,
    "Range": _range,
    "Reciprocal": _unary(np.reciprocal, floats_only=True),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sin": _unary(np.sin, floats_only=True),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _unary(np.sqrt, floats_only=True),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    "Xor": _binary(np.logical_xor),
}
