"""Layout algebra: axes as products of factors, what a chain of Reshape and Transpose does to them.

Every axis of the source is a list of factors, outermost first; Transpose permutes axes, Reshape
cuts the sequence of all factors anew, splitting a factor where it must (12 into 3 * 4). At the end
the order of factors in the source and in the result says what the whole chain is:

    same order, same axes                 nothing
    same order                            Reshape (whether the axes nest or not)
    source axes whole, permuted           Transpose, then Reshape if axes merge or split
    result axes whole in the source       Reshape, then Transpose
    else                                  Reshape, Transpose, Reshape

Factors of size 1 take no part: moving them is no work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

from graphopt.analyses.shapes.symbolic import Dim, floordiv

__all__ = ["Layout", "Step", "Steps"]

#: ("Reshape", sizes of the result) or ("Transpose", permutation).
Step = tuple[str, tuple[Dim, ...]]
Steps = list[Step]


@dataclasses.dataclass(eq=False)
class _Factor:
    size: Dim
    parts: tuple[_Factor, ...] = ()

    def leaves(self) -> list[_Factor]:
        if not self.parts:
            return [self]
        return [leaf for part in self.parts for leaf in part.leaves()]


class Layout:
    """A tensor's axes in terms of the factors of a source tensor's axes."""

    def __init__(self, dims: Sequence[Dim]) -> None:
        self.source: list[list[_Factor]] = [[_Factor(d)] if d != 1 else [] for d in dims]
        self.source_dims: tuple[Dim, ...] = tuple(dims)
        self.axes: list[list[_Factor]] = [list(a) for a in self.source]
        self.dims: tuple[Dim, ...] = tuple(dims)

    def transpose(self, perm: Sequence[int]) -> None:
        """Permute the axes."""
        self.axes = [self.axes[p] for p in perm]
        self.dims = tuple(self.dims[p] for p in perm)

    def reshape(self, dims: Sequence[Dim]) -> bool:
        """Cut the factors into axes of these sizes; False if they do not nest."""
        if any(d == 0 for d in dims):
            return False
        if self._cut(dims):
            return True
        flat = [leaf for axis in self.axes for f in axis for leaf in f.leaves()]
        if flat != [leaf for axis in self.source for f in axis for leaf in f.leaves()]:
            return False
        # nothing has moved: whatever the axes were, the elements lie as in the source
        self.axes, self.dims = [[_Factor(d)] if d != 1 else [] for d in dims], tuple(dims)
        self.source = [[f for axis in self.axes for f in axis]]
        return True

    def _cut(self, dims: Sequence[Dim]) -> bool:
        queue = [leaf for axis in self.axes for f in axis for leaf in f.leaves()][::-1]
        axes: list[list[_Factor]] = []
        for dim in dims:
            axis: list[_Factor] = []
            left = dim
            while left != 1:
                if not queue:
                    return False
                factor = queue.pop()
                rest = _divided(left, factor.size)
                if rest is None:
                    inner = _divided(factor.size, left)
                    if inner is None:
                        return False
                    factor.parts = (_Factor(left), _Factor(inner))
                    queue.append(factor.parts[1])
                    factor, rest = factor.parts[0], 1
                axis.append(factor)
                left = rest
            axes.append(axis)
        if queue:
            return False
        self.axes, self.dims = axes, tuple(dims)
        return True

    def drop(self, axis: int) -> tuple[int, int] | None:
        """Make a source axis one of size 1: where it was, as (axis, place) from the innermost.

        None if it is split, or of size 1 already.
        """
        leaves = [leaf for f in self.source[axis] for leaf in f.leaves()]
        if len(leaves) != 1:
            return None
        for i, parts in enumerate(self.axes):
            inner = [leaf for f in parts for leaf in f.leaves()]
            if leaves[0] not in inner:
                continue
            place = len(inner) - 1 - inner.index(leaves[0])
            inner.remove(leaves[0])
            self.axes[i] = inner
            self.dims = (*self.dims[:i], _product(inner), *self.dims[i + 1 :])
            self.source[axis] = []
            self.source_dims = (*self.source_dims[:axis], 1, *self.source_dims[axis + 1 :])
            return i, place
        return None

    def steps(self) -> Steps:
        """The fewest Reshape and Transpose that make the result from the source."""
        source = [[leaf for f in axis for leaf in f.leaves()] for axis in self.source]
        result = [[leaf for f in axis for leaf in f.leaves()] for axis in self.axes]
        before = [f for axis in source for f in axis]
        after = [f for axis in result for f in axis]
        if before == after:
            return [] if self.source_dims == self.dims else [("Reshape", self.dims)]
        place = {f: i for i, f in enumerate(after)}
        origin = {f: i for i, f in enumerate(before)}
        whole_source = all(_consecutive([place[f] for f in axis]) for axis in source)
        whole_result = all(_consecutive([origin[f] for f in axis]) for axis in result)
        if whole_source:
            perm = _order(source, place)
            moved = tuple(self.source_dims[p] for p in perm)
            if moved == self.dims:
                return [("Transpose", perm)]
            exact = _match_ones(source, result, place)
            if exact is not None:
                return [("Transpose", exact)]
            return [("Transpose", perm), ("Reshape", self.dims)]
        if whole_result:
            inverse = _order(result, origin)
            cut = tuple(self.dims[p] for p in inverse)
            perm = tuple(inverse.index(i) for i in range(len(inverse)))
            return [("Reshape", cut), ("Transpose", perm)]
        runs = _runs(before, place)
        order = sorted(range(len(runs)), key=lambda r: place[runs[r][0]])
        sizes = tuple(_product(run) for run in runs)
        return [("Reshape", sizes), ("Transpose", tuple(order)), ("Reshape", self.dims)]


def _divided(a: Dim, b: Dim) -> Dim | None:
    """a / b where exact on every run, and no zero."""
    if a == 0 or b == 0:
        return None
    q = floordiv(a, b)
    return q if q is not None and q != 0 and q * b == a else None


def _consecutive(places: list[int]) -> bool:
    return all(b == a + 1 for a, b in pairwise(places))


def _order(axes: list[list[_Factor]], place: dict[_Factor, int]) -> tuple[int, ...]:
    """Axes in the order their factors have in `place`; an axis of size 1 stays by its left one."""
    key: list[tuple[int, int]] = []
    last = -1
    for i, axis in enumerate(axes):
        last = place[axis[0]] if axis else last
        key.append((last, i))
    return tuple(sorted(range(len(axes)), key=lambda i: key[i]))


def _match_ones(
    source: list[list[_Factor]], result: list[list[_Factor]], place: dict[_Factor, int]
) -> tuple[int, ...] | None:
    """The permutation that alone gives `result`, axes of size 1 taken in order."""
    if len(source) != len(result):
        return None
    ones = [i for i, axis in enumerate(source) if not axis]
    by_first = {axis[0]: i for i, axis in enumerate(source) if axis}
    perm: list[int] = []
    for axis in result:
        if not axis:
            if not ones:
                return None
            perm.append(ones.pop(0))
        elif axis[0] in by_first and source[by_first[axis[0]]] == axis:
            perm.append(by_first[axis[0]])
        else:
            return None
    return tuple(perm) if len(set(perm)) == len(perm) else None


def _runs(before: list[_Factor], place: dict[_Factor, int]) -> list[list[_Factor]]:
    runs: list[list[_Factor]] = []
    for factor in before:
        if runs and place[factor] == place[runs[-1][-1]] + 1:
            runs[-1].append(factor)
        else:
            runs.append([factor])
    return runs


def _product(factors: list[_Factor]) -> Dim:
    product: Dim = 1
    for f in factors:
        product = product * f.size
    return product
