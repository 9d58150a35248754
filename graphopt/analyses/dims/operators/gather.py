"""Taking by index: constant indices move with what they point at, others freeze it."""

from __future__ import annotations

import numpy as np

from graphopt.analyses.dims.axes import Remap
from graphopt.analyses.dims.operation import Operation
from graphopt.analyses.dims.system import ONE
from graphopt.graph.constants import constant_value

__all__ = ["OPERATORS"]

BY_INDEX = "indices that depend on data point into it"


def gather(op: Operation) -> None:
    """y = x[..., i, ...] along `axis`: an embedding, or some channels."""
    x, i, y = op.x(0), op.x(1), op.y()
    axis = int(op.attribute("axis", 0)) % x.rank
    for k in range(axis):
        op.same(x[k], y[k])
    for k in range(axis + 1, x.rank):
        op.same(x[k], y[k + i.rank - 1])
    taken = y.axes[axis : axis + i.rank]
    for a, b in zip(i.axes, taken, strict=True):
        op.same(a, b)
    value, size = op.node.inputs[1], x.sizes[axis]
    if constant_value(value) is None or not isinstance(size, int):
        op.freeze(x[axis], BY_INDEX)
        if constant_value(x.value) is not None:
            for k in range(x.rank):
                if k != axis:
                    op.writes(x, k)
                    op.writes(y, k if k < axis else k + i.rank - 1)
        return
    array = op.array(1)
    assert array is not None
    at = np.where(array < 0, array + size, array).ravel()
    if all(a == ONE for a in i.axes):
        op.system.freeze(x[axis], "single positions of it are taken", np.unique(at))
    else:
        flat = op.virtual(len(at))
        op.merge(flat, i.axes)
        op.part(flat, x[axis], at)
    if x[axis] >= 0:
        op.derive(Remap(1, x[axis]))


def gather_elements(op: Operation) -> None:
    """y[i, j] = x[index[i, j], j] along `axis`."""
    x, i, y = op.x(0), op.x(1), op.y()
    axis = int(op.attribute("axis", 0)) % x.rank
    for k in range(x.rank):
        op.same(i[k], y[k])
        if k == axis:
            op.freeze((x[k], y[k]), BY_INDEX)
        elif x.sizes[k] == i.sizes[k]:
            op.same(x[k], y[k])
        else:
            op.freeze((x[k], y[k]), "only its first positions are taken")


def gather_nd(op: Operation) -> None:
    """y[b, i] = x[b, index[b, i]] with b the batch axes; the last axis of indices is a position."""
    x, i, y = op.x(0), op.x(1), op.y()
    batch, depth = int(op.attribute("batch_dims", 0)), i.sizes[-1]
    if not isinstance(depth, int):
        op.freeze_all("the depth of the indices is not known")
        return
    op.freeze(x.axes[batch : batch + depth], BY_INDEX)
    op.freeze(i[-1], "positions")
    for k in range(i.rank - 1):
        op.same(i[k], y[k])
    for k in range(batch):
        op.same(x[k], y[k])
    for k in range(batch + depth, x.rank):
        op.same(x[k], y[k - batch - depth + i.rank - 1])


def scatter_nd(op: Operation) -> None:
    """y is x with slices replaced by updates."""
    x, i, u, y = op.x(0), op.x(1), op.x(2), op.y()
    op.all_same(x, y)
    depth = i.sizes[-1]
    if not isinstance(depth, int):
        op.freeze_all("the depth of the indices is not known")
        return
    op.freeze(x.axes[:depth], BY_INDEX)
    op.freeze(i[-1], "positions")
    for k in range(i.rank - 1):
        op.same(i[k], u[k])
    for k in range(depth, x.rank):
        op.same(x[k], u[k - depth + i.rank - 1])


def scatter_elements(op: Operation) -> None:
    """y is x with elements along `axis` replaced by updates."""
    x, i, u, y = op.x(0), op.x(1), op.x(2), op.y()
    op.all_same(x, y)
    op.all_same(i, u)
    axis = int(op.attribute("axis", 0)) % x.rank
    for k in range(x.rank):
        if k != axis and x.sizes[k] == i.sizes[k]:
            op.same(x[k], i[k])
        else:
            op.freeze((x[k], i[k]), BY_INDEX)


def one_hot(op: Operation) -> None:
    """A new axis whose positions are values of the indices."""
    i, y = op.x(0), op.y()
    axis = int(op.attribute("axis", -1)) % y.rank
    op.freeze(y[axis], "its positions are values of indices")
    for a, b in zip(i.axes, (y[k] for k in range(y.rank) if k != axis), strict=True):
        op.same(a, b)


OPERATORS = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}
