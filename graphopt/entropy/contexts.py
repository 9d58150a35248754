"""Contexts: what the integers decoded so far say of the next ones, for many of them at once.

A tensor is [rows, columns, taps] (a convolution's outputs, inputs and kernel; a matrix in groups of
neighbours). Decoded is first which groups of taps are zero throughout, then the taps of the others,
two at a time. What a symbol is likely to be follows from the rows and columns it stands in, and
from the taps of its group that are known:

    class  =  (log E[row] + log E[column] - log E[all],  how large the known taps are)

Kernels are smooth: signs are coded as those of the known taps around, or as others (`lean_of`).

All symbols of one wave, of all tensors, are classed at once from earlier waves, so that decoding is
a few array operations and one call of the coder a class. Sums are of integers, and what is done to
them is rounded as IEEE 754 says: classes are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from graphopt.entropy.pairs import LEVELS, NEAR, NEARS, NONE, VALUES

__all__ = ["FAR", "FLAGS", "LARGEST", "Shape", "Wave", "lean_of", "parts_of", "sorted_by", "waves"]

Array = np.ndarray[Any, Any]
#: Rows, columns and taps of a tensor.
Shape = tuple[int, int, int]
#: The classes of a wave's symbols, and what they are: FLAG, VALUE, PAIR or TAIL.
Wave = tuple[Array, int]
FLAG, VALUE, PAIR, TAIL = range(4)

#: Magnitudes with a symbol of their own; larger ones are told apart.
LARGEST = 15
#: Symbols of magnitudes from NEAR on.
FAR = LARGEST - NEAR + 1
FLAGS = LEVELS + 1  # the last: nothing is known
#: The wave of a group's flag by row + column modulo 16: in each as many as in all before. The first
#: wave's groups are early: their first taps are coded before those of the others.
_WAVES = np.array([0, 4, 3, 4, 2, 4, 3, 4, 1, 4, 3, 4, 2, 4, 3, 4], np.uint8)
#: What is known of a group's taps is counted up to here.
_ENOUGH = 200
#: Rows and columns are believed as much as this many symbols of the whole.
_PRIOR = 4.0
#: Taps after which rows and columns are looked at anew: 2, 4 and every so many.
_OFTEN = 16


def waves(shapes: Sequence[Shape]) -> Generator[Wave, Array, list[Array]]:
    """The classes of all tensors' symbols, wave by wave; it is sent the symbols, uint8.

    Args:
        shapes: of the tensors, those of fewer taps first.

    Returns:
        The integers [rows, columns, taps] of each tensor, int8, of magnitudes up to LARGEST.
    """
    grid = _Grid(shapes)
    flags, heat = np.zeros(len(grid.row), np.uint8), _Heat(grid)
    for k, part in enumerate(grid.waves):
        row, column = grid.row[part], grid.column[part]
        classes = np.full(len(part), FLAGS - 1, np.uint8)
        if k and len(part):
            classes = heat.levels(row, column)
        symbols = yield classes, FLAG
        flags[part] = symbols
        heat.add(row, column, symbols)
        heat.count(row, column)
    at = np.flatnonzero(flags.view(np.bool_))
    held = yield from _taps(grid, at, heat)
    found: list[Array] = []
    for first, last in grid.alike:
        begin, end = int(grid.starts[first]), int(grid.starts[last])
        low, high = np.searchsorted(at, (begin, end))
        whole = np.zeros((end - begin, shapes[first][2]), np.int8)
        late = len(at) - high  # as of the end: of later taps the first tensors have none
        if low < high:
            mine = [q[len(q) - late - (high - low) : len(q) - late] for q in held[: whole.shape[1]]]
            one = np.dtype((np.void, whole.shape[1]))  # a group, moved as a whole
            whole.view(one)[at[low:high] - begin] = np.stack(mine, axis=1).view(one)
        for k in range(first, last):
            part = whole[grid.starts[k] - begin : grid.starts[k + 1] - begin]
            found.append(part.reshape(shapes[k]))
    return found


def sorted_by(classes: Array, count: int) -> tuple[Array, list[int]]:
    """A stable order of fewer than 2^24 things of these classes, uint8, and where each class ends.

    Words of each class and its place are sorted, which processors do by vectors.
    """
    words = classes.astype(np.uint32) << np.uint32(24)
    words |= np.arange(len(classes), dtype=np.uint32)
    words.sort()
    ends: list[int] = np.searchsorted(words, np.arange(1, count + 1) << 24).tolist()
    words &= np.uint32((1 << 24) - 1)
    return words, ends


def parts_of(shapes: Sequence[Shape]) -> tuple[list[Array], Array]:
    """Of all tensors' groups, one after another: those of each wave of flags, and which are early.

    The first taps of early groups are coded before those of the others.
    """
    grid = _Grid(shapes)
    return grid.waves, grid.early


def _taps(grid: _Grid, at: Array, flags: _Heat) -> Generator[Wave, Array, list[Array]]:
    """The integers of the groups `at`, a list by tap; of each those whose tensors have that tap."""
    row: Array = grid.row[at]
    column: Array = grid.column[at]
    known: Array = np.zeros(len(at), np.uint8)
    fresh: Array = np.zeros(len(at), np.uint8)  # of known, what rows and columns were not told yet
    bounds = np.searchsorted(at, grid.starts)
    # where groups begin that have more than so many taps
    deep = [bounds[np.searchsorted(grid.depths, t, "right")] for t in range(grid.depths[-1] + 2)]
    heat, levels = _Heat(grid), known  # no levels yet
    heat.count(row, column)
    found: list[Array] = []
    alike = [(bounds[first], bounds[last], int(grid.depths[first])) for first, last in grid.alike]
    for tap in range(0, grid.depths[-1], 2):
        cut = len(row) - (len(at) - deep[tap])
        row, column, known, fresh, levels = (a[cut:] for a in (row, column, known, fresh, levels))
        ends = deep[tap + 1] - deep[tap], deep[tap + 2] - deep[tap]
        if tap in (2, 4) or tap % _OFTEN == 0 < tap:
            heat.add(row, column, fresh)
            levels = heat.levels(row, column, tap)
            fresh = np.zeros(len(row), np.uint8)
        if tap:
            lean = np.empty(len(row), np.int8)
            for low, high, depth in alike:
                if depth > tap:
                    part = slice(low - deep[tap], high - deep[tap])
                    lean[part] = lean_of([q[len(q) - len(row) :][part] for q in found], depth)
            first, second = yield from _two(levels, known, lean, tap, *ends)
        else:
            first, second = yield from _at_first(grid, row, column, grid.early[at], flags, ends)
        size = np.abs(first).view(np.uint8)
        fresh += size
        known = known + np.minimum(size, NEAR)
        size = np.abs(second).view(np.uint8)
        fresh[ends[0] :] += size
        known[ends[0] :] += np.minimum(size, NEAR)
        np.minimum(known, _ENOUGH, out=known)
        found += [first, second]
    return found


def _at_first(
    grid: _Grid, row: Array, column: Array, early: Array, flags: _Heat, ends: tuple[int, int]
) -> Generator[Wave, Array, tuple[Array, Array]]:
    """As `_two`, nothing known: of early groups first, which tell the levels of the others."""
    known, lean = np.zeros(len(row), np.uint8), np.zeros(len(row), np.int8)
    first, second = (np.empty(len(row), np.int8) for _ in range(2))
    heat = _Heat(grid)
    for told, each, mine in ((flags, 1, early), (heat, 2, ~early)):
        part = np.flatnonzero(mine)
        r, c = row[part], column[part]
        one, paired = np.searchsorted(part, ends)
        a, b = yield from _two(told.levels(r, c, each), known[part], lean[part], 0, one, paired)
        first[part], second[part[one:]] = a, b
        if told is flags:
            size = np.abs(a)
            size[one:] += np.abs(b)
            heat.count(r, c)
            heat.add(r, c, size)
    return first, second[ends[0] :]


def _two(
    levels: Array, known: Array, lean: Array, tap: int, paired: int, after: int
) -> Generator[Wave, Array, tuple[Array, Array]]:
    """Two taps of groups of these levels, of whose earlier ones so much is known and that lean so.

    Groups before `paired` have but one tap left, those before `after` no others.
    """
    classes = levels
    if tap:
        kinds = 1 + sum((known >= np.uint8(min(_ENOUGH, n))).view(np.uint8) for n in _steps(tap))
        classes = levels + kinds * np.uint8(LEVELS)
    one = np.where(known[:paired] == 0, np.uint8(VALUES - 1), classes[:paired])
    both = classes[paired:].copy()
    both[: after - paired] += (known[paired:after] == 0).view(np.uint8) * np.uint8(NONE)
    values = yield one, VALUE
    pairs = yield both, PAIR
    first = pairs // np.uint8(NEARS)
    second = pairs - first * np.uint8(NEARS)
    q = np.concatenate([values, first, second]).view(np.int8) - np.int8(NEAR)
    lean = np.concatenate([lean, lean[paired:]])
    q = (q ^ lean) - lean
    where = np.flatnonzero(np.abs(q) == NEAR)
    tails = yield np.concatenate([levels, levels[paired:]])[where], TAIL
    q[where] += np.sign(q[where]) * tails.view(np.int8)
    return q[: len(levels)], q[len(levels) :]


def lean_of(known: Sequence[Array], depth: int) -> Array:
    """Whether the next tap's sign is likely to be minus: -1, else 0, of groups with known taps.

    All known taps tell, those beside the next two above all.

    Args:
        known: int8, those of a group of `depth` taps, in order; sums are modulo 256.
    """
    tap, wide = len(known), math.isqrt(depth)
    if wide**2 != depth:
        wide = depth  # a row
    beside = {tap - 1 if tap % wide else -1, tap - wide, min(tap + 1, depth - 1) - wide}
    total = np.zeros_like(known[0])
    for k, q in enumerate(known):
        total += q
        if k in beside:
            total += q
            total += q
    lean: Array = total >> 7
    return lean


def _steps(taps: int) -> tuple[int, ...]:
    """From which sum of so many known taps each kind but the first begins: 0, means of 1, 7/4."""
    return 1, taps, -(-7 * taps // 4)


class _Grid:
    """The groups of tensors one after another, rows and columns numbered over all.

    Attributes:
        depths: taps of each tensor.
        starts: where the groups of each tensor begin, and the last one's end.
        rows, columns: of each tensor.
        row, column: of each group.
        waves: which groups each wave of flags has.
        early: which groups are.
        alike: runs of tensors of as many taps, (first, last).
    """

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.rows, self.columns = (np.array([s[k] for s in shapes]) for k in (0, 1))
        self.depths = np.array([s[2] for s in shapes])
        sizes = self.rows * self.columns
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        wide = np.repeat(self.columns, self.rows)  # by row
        self.row = np.repeat(np.arange(len(wide)), wide)
        first = np.repeat(np.cumsum(self.columns) - self.columns, self.rows)
        self.column = np.arange(len(self.row)) - np.repeat(np.cumsum(wide) - wide - first, wide)
        local = [
            (np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)).astype(np.uint8)
            for n in (self.rows, self.columns)
        ]
        row, column = local[0].take(self.row), local[1].take(self.column)
        wave = _WAVES.take((row + column) & np.uint8(len(_WAVES) - 1))
        self.early = wave == 0
        order, ends = sorted_by(wave, int(_WAVES.max()) + 1)
        self.waves = np.split(order.astype(np.int64), ends[:-1])
        cuts = np.flatnonzero(np.diff(self.depths)) + 1
        self.alike = list(zip([0, *cuts], [*cuts, len(shapes)], strict=True))


class _Heat:
    """Sums and counts by row and column, and what level both say together."""

    def __init__(self, grid: _Grid) -> None:
        self._rows = np.cumsum(grid.rows) - grid.rows
        self._tensors = [np.repeat(np.arange(len(n)), n) for n in (grid.rows, grid.columns)]
        self._sums, self._counts = ([np.zeros(len(t)) for t in self._tensors] for _ in range(2))

    def add(self, row: Array, column: Array, size: Array) -> None:
        """Sizes, small integers, of groups in these rows and columns; sums are exact."""
        size = size.astype(np.float64)
        for sums, index in zip(self._sums, (row, column), strict=True):
            sums += np.bincount(index, size, minlength=len(sums))

    def count(self, row: Array, column: Array) -> None:
        """Count the groups that are in these rows and columns."""
        for counts, index in zip(self._counts, (row, column), strict=True):
            counts += np.bincount(index, minlength=len(counts))

    def levels(self, row: Array, column: Array, each: int = 1) -> Array:
        """Of groups in these rows and columns, uint8: a mean of 1/64 is level 0, of 1 level 12.

        So many symbols of each group that is counted are in the sums.
        """
        total, count = (np.add.reduceat(a[0], self._rows) for a in (self._sums, self._counts))
        mean = total / np.maximum(each * count, 1) + 2.0**-16
        halves = [
            _halves((sums + _PRIOR * mean[tensor]) / (each * counts + _PRIOR))
            for sums, counts, tensor in zip(self._sums, self._counts, self._tensors, strict=True)
        ]
        halves[0] -= _halves(mean)[self._tensors[0]]
        both = (halves[0].astype(np.int8) + 12).take(row) + halves[1].astype(np.int8).take(column)
        levels: Array = np.clip(both, 0, LEVELS - 1).astype(np.uint8)
        return levels


def _halves(x: Array) -> Array:
    """Octaves of positive float64, twice: the exponent and the first bit of what follows."""
    found: Array = (x.view(np.int64) >> 51) - (1023 << 1)
    return found
