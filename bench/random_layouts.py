"""Steps of random graphs in which layouts and chains matter: Transposes around operators that do
not care, and the same operator twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

if TYPE_CHECKING:
    from random_steps import Drawn, Graph

__all__ = ["chain", "sandwich"]


def sandwich(g: Graph) -> None:
    """Transpose, a few operators, and mostly the inverse Transpose."""
    x = g.pick()
    if x is None or len(x.shape) < 2:
        return
    perm = g.draw(st.permutations(range(len(x.shape))))
    back = [int(k) for k in np.argsort(perm)]
    y = g.op("Transpose", [x], [x.shape[p] for p in perm], perm=list(perm))
    whole = y
    for _ in range(g.draw(st.integers(1, 4))):
        y = inside(g, y, whole, list(perm))
    order = back if g.draw(st.integers(0, 4)) else list(perm)
    g.op("Transpose", [y], [y.shape[p] for p in order], perm=order)


def inside(g: Graph, y: Drawn, whole: Drawn, perm: list[int]) -> Drawn:
    """One operator that works in any layout."""
    kind = g.draw(st.sampled_from(["unary", "constant", "mate", "reduce", "softmax", "joined"]))
    axis = g.draw(st.integers(0, len(y.shape) - 1))
    if kind == "unary":
        return g.op(g.draw(st.sampled_from(["Relu", "Tanh", "Sigmoid", "Neg"])), [y], y.shape)
    if kind == "constant":
        low = g.draw(st.integers(0, len(y.shape)))
        c = g.floats(tuple(d if g.draw(st.booleans()) else 1 for d in y.shape[low:]))
        return g.op(g.draw(st.sampled_from(["Add", "Mul", "Sub"])), [y, g.constant(c)], y.shape)
    if kind == "mate":
        if y.shape == whole.shape:
            return g.op("Add", [whole, y], y.shape)
        shape = [0] * len(perm)
        for k, p in enumerate(perm):
            shape[p] = y.shape[k]
        other = g.constant(g.floats(tuple(shape)))
        turned = g.op("Transpose", [other], y.shape, perm=perm)
        return g.op("Mul", [y, turned], y.shape)
    if kind == "reduce":
        kept = [1 if k == axis else d for k, d in enumerate(y.shape)]
        mean = g.axes("ReduceMean", 18, y, kept, [axis], keepdims=1)
        return g.op("Sub", [y, mean], y.shape)
    if kind == "softmax" and g.opset >= 13:
        return g.op("Softmax", [y], y.shape, axis=axis - g.draw(st.sampled_from([0, len(y.shape)])))
    wide = [2 * d if k == axis else d for k, d in enumerate(y.shape)]
    return g.op("Concat", [y, y], wide, axis=axis)


def chain(g: Graph) -> None:
    """Concat of Concat, Slice of Slice or a reduction of a reduction."""
    x = g.pick()
    if x is None or len(x.shape) < 2:
        return
    axes = [g.draw(st.integers(0, len(x.shape) - 1)) for _ in range(2)]
    kind = g.draw(st.sampled_from(["concat", "slice", "reduce"]))
    if kind == "concat":
        y = x
        for axis in axes:
            wide = [2 * d if k == axis else d for k, d in enumerate(y.shape)]
            y = g.op("Concat", [y, y], wide, axis=axis)
    elif kind == "slice" and g.opset >= 10:
        y = x
        for axis in axes:
            begin, step = g.draw(st.integers(0, 1)), g.draw(st.integers(1, 2))
            size = len(range(*slice(begin, None, step).indices(y.shape[axis])))
            if not size:
                return
            shape = [size if k == axis else d for k, d in enumerate(y.shape)]
            bounds = [g.ints(begin), g.ints(2**31 - 1), g.ints(axis), g.ints(step)]
            y = g.op("Slice", [y, *bounds], shape)
    else:
        name = g.draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceL2"]))
        y = x
        for axis in axes:
            kept = [1 if k == axis else d for k, d in enumerate(y.shape)]
            y = g.axes(name, 18, y, kept, [axis], keepdims=1)
