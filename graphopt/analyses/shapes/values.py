"""Shape data: the elements of small integer values, computed on numbers and symbols alike.

Concrete elements are held in an array of the value's own dtype and computed by NumPy; as soon as
one is symbolic, the array is of `object` and computed element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.facts import DATA_LIMIT, Fact, Shapes
from graphopt.analyses.shapes.symbolic import (
    Dim,
    Expr,
    floordiv,
    maximum,
    minimum,
    nonnegative,
    positive,
)

__all__ = ["cast", "compute", "concat", "expand", "pack", "reduce", "reshape", "slice_"]

Array = np.ndarray[Any, Any]


def pack(elements: Iterable[Dim] | Dim, dtype: ir.DataType) -> Array:
    """Elements as an array: of `dtype` if all are numbers, else of objects."""
    if isinstance(elements, (int, Expr)):
        return pack((elements,), dtype).reshape(())
    listed = list(elements)
    if all(isinstance(e, int) for e in listed):
        return np.array(listed, dtype.numpy())
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def compute(
    node: ir.Node,
    ins: Sequence[Fact],
    dtype: ir.DataType | None,
    dims: tuple[Dim, ...] | None,
    shapes: Shapes,
) -> Array | None:
    """Data of an elementwise operator's result, if its operands' data are known."""
    function = _ELEMENTS.get(node.op_type)
    if function is None or dtype is None or dims is None:
        return None
    if any(f.data is None or f.data.dtype.kind not in "iubO" for f in ins):
        return None
    arrays = np.broadcast_arrays(*(f.data for f in ins if f.data is not None))
    if arrays[0].size > DATA_LIMIT:
        return None
    out: list[Dim] = []
    for elements in zip(*(a.ravel().tolist() for a in arrays), strict=True):
        made = function(*elements)
        if made is None and dtype is ir.DataType.BOOL:
            return None
        out.append(shapes.fresh(sign=True) if made is None else made)
    info = np.iinfo(dtype.numpy()) if dtype is not ir.DataType.BOOL else None
    if info and any(isinstance(e, int) and not info.min <= e <= info.max for e in out):
        return None
    return pack(out, dtype).reshape(arrays[0].shape)


def _add(*e: Dim) -> Dim:
    return sum(e, start=0)


def _divide(a: Dim, b: Dim) -> Dim | None:
    """Integer division rounds towards zero; on numbers at least 0 that is the floor."""
    if isinstance(a, int) and isinstance(b, int) and b:
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return floordiv(a, b) if nonnegative(a) and positive(b) else None


def _modulo(a: Dim, b: Dim) -> Dim | None:
    return a % b if isinstance(a, int) and isinstance(b, int) and a >= 0 and b > 0 else None


def _compare(sure: Callable[[Dim], bool], never: Callable[[Dim], bool]) -> Callable[..., Any]:
    """Compare by the sign of a - b, where its form shows it."""

    def function(a: Dim, b: Dim) -> bool | None:
        d = int(a) - int(b) if isinstance(a, int) and isinstance(b, int) else a - b
        return True if sure(d) else False if never(d) else None

    return function


def _fold(step: Callable[[Dim, Dim], Dim]) -> Callable[..., Dim]:
    def function(*elements: Dim) -> Dim:
        result = elements[0]
        for e in elements[1:]:
            result = step(result, e)
        return result

    return function


def _where(condition: bool, a: Dim, b: Dim) -> Dim:
    return a if condition else b


_ELEMENTS: dict[str, Callable[..., Any]] = {
    "Abs": lambda a: abs(a) if isinstance(a, int) else a if nonnegative(a) else None,
    "Add": _add,
    "And": lambda a, b: a and b,
    "Div": _divide,
    "Equal": _compare(lambda d: d == 0, lambda d: positive(d) or positive(-d)),
    "Greater": _compare(positive, lambda d: nonnegative(-d)),
    "GreaterOrEqual": _compare(nonnegative, lambda d: positive(-d)),
    "Less": _compare(lambda d: positive(-d), nonnegative),
    "LessOrEqual": _compare(lambda d: nonnegative(-d), positive),
    "Max": _fold(maximum),
    "Min": _fold(minimum),
    "Mod": _modulo,
    "Mul": lambda a, b: a * b,
    "Neg": lambda a: -a,
    "Not": lambda a: not a,
    "Or": lambda a, b: a or b,
    "Sub": lambda a, b: a - b,
    "Sum": _add,
    "Where": _where,
}


def cast(x: Fact, to: ir.DataType | None) -> Array | None:
    """Data after a Cast: integers and truth values only (a symbol is taken to fit)."""
    if x.data is None or to is None or to is ir.DataType.STRING:
        return None
    if x.data.dtype == object:
        if to is ir.DataType.BOOL:
            return _truths(x.data)
        return x.data if to in (ir.DataType.INT64, ir.DataType.INT32) else None
    if x.data.dtype.kind not in "iub" or not (to.is_integer() or to is ir.DataType.BOOL):
        return None
    made = x.data.astype(to.numpy())
    wide = to is ir.DataType.BOOL or np.array_equal(made.astype(np.int64), x.data.astype(np.int64))
    return made if wide else None


def _truths(data: Array) -> Array | None:
    """Which elements are not 0, if the form of each shows it."""
    listed = data.ravel().tolist()
    if not all(isinstance(e, int) or positive(e) or positive(-e) for e in listed):
        return None
    return np.array([e != 0 for e in listed], bool).reshape(data.shape)


def reshape(x: Fact, dims: Sequence[Dim]) -> Array | None:
    """The same elements under another shape."""
    if x.data is None or not all(isinstance(d, int) for d in dims):
        return None
    shape = [d for d in dims if isinstance(d, int)]
    return x.data.reshape(shape) if int(np.prod(shape)) == x.data.size else None


def expand(x: Fact, dims: Sequence[Dim] | None) -> Array | None:
    """The elements broadcast to `dims`, if that stays small."""
    if x.data is None or dims is None or not all(isinstance(d, int) for d in dims):
        return None
    shape = [d for d in dims if isinstance(d, int)]
    return np.broadcast_to(x.data, shape).copy() if np.prod(shape) <= DATA_LIMIT else None


def concat(parts: Sequence[Array], axis: int) -> Array | None:
    """Parts joined, if that stays small."""
    if sum(p.size for p in parts) > DATA_LIMIT:
        return None
    if any(p.dtype == object for p in parts):
        parts = [p.astype(object) for p in parts]
    return np.concatenate(parts, axis)


def reduce(op_type: str, x: Fact, dims: tuple[Dim, ...]) -> Array | None:
    """All elements reduced to one: sums and products of sizes."""
    if x.data is None or x.dtype is None or not x.dtype.is_integer():
        return None
    steps: dict[str, Callable[[Dim, Dim], Dim]] = {
        "ReduceProd": lambda a, b: a * b,
        "ReduceSum": lambda a, b: a + b,
        "ReduceMax": maximum,
        "ReduceMin": minimum,
    }
    if op_type not in steps or x.data.size == 0:
        return None
    return reshape(
        Fact(data=pack([_fold(steps[op_type])(*x.data.ravel().tolist())], x.dtype)), dims
    )


def slice_(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact]:
    """Slice: sizes and data, where starts, ends and steps are known."""
    x = ins[0]
    if x.dims is None:
        return [Fact(x.dtype)]
    bounds = _bounds(node, ins, len(x.dims))
    if bounds is None:
        return [Fact(x.dtype, tuple(shapes.fresh() for _ in x.dims))]
    dims = list(x.dims)
    data: Array | None = x.data
    for axis, start, end, step in bounds:
        size = dims[axis]
        numbers = all(isinstance(v, int) for v in (start, end, step))
        if isinstance(size, int) and numbers:
            assert isinstance(start, int) and isinstance(end, int)  # noqa: PT018
            assert isinstance(step, int)
            cut = slice(start, _stop(end, size, step), step)
            dims[axis] = len(range(*cut.indices(size)))
            data = None if data is None else data[(slice(None),) * axis + (cut,)]
        else:
            data = None
            length = _length(size, start, end) if step == 1 else None
            dims[axis] = shapes.fresh() if length is None else length
    return [Fact(x.dtype, tuple(dims), data)]


def _stop(end: int, size: int, step: int) -> int | None:
    """Python reads -1 as the last element; ONNX's clamped end of a backward slice is before it."""
    return None if step < 0 and end < -size else end


def _length(size: Dim, start: Dim, end: Dim) -> Dim | None:
    """Length of size[start:end] for a symbolic size, or None."""
    low = start if nonnegative(start) else _clamp(start, size)
    high = _clamp(end, size)
    if low is None or high is None:
        return None
    return maximum(high - low, 0)


def _clamp(bound: Dim, size: Dim) -> Dim | None:
    """A Slice bound as a position from 0 to `size`."""
    if isinstance(bound, int) and bound < 0:
        return maximum(size + bound, 0)
    if isinstance(bound, int) and bound >= np.iinfo(np.int32).max:
        return size
    return minimum(bound, size) if nonnegative(bound) else None


def _bounds(
    node: ir.Node, ins: Sequence[Fact], rank: int
) -> list[tuple[int, Dim, Dim, Dim]] | None:
    """(axis, start, end, step) of a Slice, from its attributes (opset 1) or inputs."""
    if "starts" in node.attributes:
        starts, ends = (list(node.attributes[k].value) for k in ("starts", "ends"))
        axes = node.attributes.get("axes")
        listed = list(range(len(starts))) if axes is None else list(axes.value)
        steps: list[Dim] = [1] * len(starts)
    else:
        given = [
            None if v is None else (None if f.data is None else f.data.ravel().tolist())
            for v, f in zip(node.inputs, ins, strict=True)
        ]
        given += [None] * (5 - len(given))
        absent = [k >= len(node.inputs) or node.inputs[k] is None for k in range(5)]
        if given[1] is None or given[2] is None:
            return None
        starts, ends = given[1], given[2]
        if not absent[3] and (given[3] is None or not all(isinstance(a, int) for a in given[3])):
            return None
        listed = list(range(len(starts))) if given[3] is None else given[3]
        if not absent[4] and given[4] is None:
            return None
        steps = [1] * len(starts) if given[4] is None else given[4]
    return [(a % rank, s, e, t) for a, s, e, t in zip(listed, starts, ends, steps, strict=False)]
