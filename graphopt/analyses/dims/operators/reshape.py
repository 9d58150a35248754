"""Reshape and its kin: axes merged and divided, in row-major order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from graphopt.analyses.dims.operation import Operation
from graphopt.analyses.dims.system import ONE
from graphopt.analyses.shapes.symbolic import Dim

__all__ = ["OPERATORS", "regroup"]

Side = list[tuple[int, Dim]]


def reshape(op: Operation) -> None:
    """The same elements in row-major order; the target shape holds sizes of the result's axes."""
    x, y = op.x(0), op.y()
    regroup(op, list(zip(x.axes, x.sizes, strict=True)), list(zip(y.axes, y.sizes, strict=True)))
    if op.has(1):
        given = op.elements(1) or []
        for k, axis in enumerate(y.axes):
            op.count(axis, operand=1, element=k, always=k < len(given) and given[k] == 0)
    elif "shape" in op.node.attributes:
        for k, axis in enumerate(y.axes):
            op.count(axis, attribute="shape", element=k)


def flatten(op: Operation) -> None:
    """All axes before `axis` become one, and all others."""
    x, y = op.x(0), op.y()
    axis = int(op.attribute("axis", 1))
    axis = axis + x.rank if axis < 0 else axis
    for k, part in enumerate((slice(None, axis), slice(axis, None))):
        side = list(zip(x.axes[part], x.sizes[part], strict=True))
        regroup(op, side, [(y[k], y.sizes[k])])


def moved(op: Operation) -> None:
    """Squeeze and Unsqueeze: axes of size 1 come and go."""
    x, y = op.x(0), op.y()
    regroup(op, list(zip(x.axes, x.sizes, strict=True)), list(zip(y.axes, y.sizes, strict=True)))


def regroup(op: Operation, left: Side, right: Side) -> None:
    """State that two lists of axes have the same elements in row-major order.

    Pairs of equal sizes are matched from both ends; what is between is divided at the places where
    the partial products of both sides meet. Axes between unknown sizes are frozen.
    """
    left = [s for s in left if s[0] != ONE]
    right = [s for s in right if s[0] != ONE]
    while left and right:
        na, nb = _meet([n for _, n in left], [n for _, n in right])
        if not na:
            break
        _factor(op, left[:na], right[:nb])
        left, right = left[na:], right[nb:]
    while left and right:
        na, nb = _meet([n for _, n in reversed(left)], [n for _, n in reversed(right)])
        if not na:
            break
        _factor(op, left[-na:], right[-nb:])
        left, right = left[:-na], right[:-nb]
    op.freeze([a for a, _ in (*left, *right)], "it is merged with an axis of unknown size")


def _meet(left: Sequence[Dim], right: Sequence[Dim]) -> tuple[int, int]:
    """How many axes of either side make the first equal partial products; (0, 0) if unknown."""
    if left[0] == right[0]:
        return 1, 1
    i = j = 1
    a, b = left[0], right[0]
    while isinstance(a, int) and isinstance(b, int):
        if a == b:
            return i, j
        if a < b:
            if i == len(left):
                return 0, 0
            step = left[i]
            if not isinstance(step, int):
                return 0, 0
            a, i = a * step, i + 1
        else:
            if j == len(right):
                return 0, 0
            step = right[j]
            if not isinstance(step, int):
                return 0, 0
            b, j = b * step, j + 1
    return 0, 0


def _factor(op: Operation, left: Side, right: Side) -> None:
    """Two lists of axes with equal products of known sizes: divide both into common factors."""
    a, b = [x for x, _ in left], [x for x, _ in right]
    if len(a) == 1 and len(b) == 1:
        op.same(a[0], b[0])
    elif len(a) == 1:
        op.merge(a[0], b)
    elif len(b) == 1:
        op.merge(b[0], a)
    else:
        sizes_a = [n for _, n in left if isinstance(n, int)]
        sizes_b = [n for _, n in right if isinstance(n, int)]
        cuts_a, cuts_b = _partial(sizes_a), _partial(sizes_b)
        cuts = sorted({*cuts_a, *cuts_b})
        if any(q % p for p, q in itertools.pairwise(cuts)):
            flat = op.virtual(cuts[-1])  # 3*8 against 8*3: positions decide
            op.merge(flat, a)
            op.merge(flat, b)
            return
        known = {(p, q): x for p, q, x in _spans(cuts_a, a) + _spans(cuts_b, b)}
        factors = {
            (p, q): known[p, q] if (p, q) in known else op.virtual(q // p)
            for p, q in zip([1, *cuts], cuts, strict=False)
        }
        for p, q, x in _spans(cuts_a, a) + _spans(cuts_b, b):
            inside = [f for (u, v), f in factors.items() if p <= u and v <= q]
            op.merge(x, inside)


def _partial(sizes: list[int]) -> list[int]:
    return [int(n) for n in np.cumprod(sizes)]


def _spans(cuts: list[int], axes: list[int]) -> list[tuple[int, int, int]]:
    return list(zip([1, *cuts], cuts, axes, strict=False))


def transpose(op: Operation) -> None:
    """y[k] is x[perm[k]]."""
    x, y = op.x(0), op.y()
    perm = op.attribute("perm") or list(range(x.rank))[::-1]
    for k, p in enumerate(perm):
        op.same(x[int(p)], y[k])


def depth_to_space(op: Operation) -> None:
    """Channels r*r*c (DCR) or c*r*r (CRD) become c channels of r*r pixels."""
    x, y = op.x(0), op.y()
    mode = op.attribute("mode", "DCR")
    _blocks(op, x[1], y[1], mode in ("CRD", b"CRD"))
    op.same(x[0], y[0])
    op.freeze((*x.axes[2:], *y.axes[2:]), "pixels are rearranged along it")


def space_to_depth(op: Operation) -> None:
    """c channels of r*r pixels become r*r*c."""
    x, y = op.x(0), op.y()
    _blocks(op, y[1], x[1], False)
    op.same(x[0], y[0])
    op.freeze((*x.axes[2:], *y.axes[2:]), "pixels are rearranged along it")


def _blocks(op: Operation, deep: int, channels: int, inner: bool) -> None:
    block = int(op.attribute("blocksize"))
    pixels = op.virtual(block * block, frozen="pixels are rearranged along it")
    op.merge(deep, (channels, pixels) if inner else (pixels, channels))


OPERATORS = {
    "DepthToSpace": depth_to_space,
    "Flatten": flatten,
    "Reshape": reshape,
    "SpaceToDepth": space_to_depth,
    "Squeeze": moved,
    "Transpose": transpose,
    "Unsqueeze": moved,
}
