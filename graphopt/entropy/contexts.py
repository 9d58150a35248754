"""Contexts: what the integers decoded so far say of the next ones, for many of them at once.

A tensor is [rows, columns, taps] (a convolution's outputs, inputs and kernel; a matrix in groups of
neighbours). Decoded is first which groups of taps are zero throughout, then tap after tap of the
others. What a symbol is likely to be follows from the rows and columns it stands in, and from the
taps of its group that are known:

    class  =  (log E[row] + log E[column] - log E[all],  how large the known taps are)

All symbols of one wave are classed at once from earlier waves, in integers throughout, so that
decoding is a few array operations and one call of the coder a class.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

__all__ = ["ALPHABET", "FLAGS", "LARGEST", "VALUES", "Wave", "flag_blocks", "waves"]

Array = np.ndarray[Any, Any]
#: The classes of a wave's symbols, and what they are: 0 flags, 1 values.
Wave = tuple[Array, int]

#: Magnitudes with a symbol of their own; larger ones are told apart.
LARGEST = 15
#: Classes by what rows and columns say, and by known taps: none of this group, 0, few to many.
LEVELS, KNOWN = 19, 5
#: Kinds of known taps: their mean magnitude in quarters.
_SHARES = np.array([3, 6])
FLAGS = LEVELS + 1  # the last: nothing is known
VALUES = LEVELS * KNOWN + 1  # the last: one that is not zero, since its group is not
ALPHABET = 2 * LARGEST + 1
#: Waves of flags: (row, column) modulo these.
_ROW_WAVES, _COLUMN_WAVES = 2, 4
#: What is known of a group's taps is counted up to here.
_ENOUGH = 200
#: Rows and columns are believed as much as this many symbols of the whole.
_PRIOR = 4
#: Half octaves of fixed-point numbers (16 bits after the point), exact.
_HALVES = np.array([int(v) for k in range(48) for v in (1 << k, (1 << k) * 1.4142135623730951)])


def waves(rows: int, columns: int, taps: int) -> Generator[Wave, Array, Array]:
    """The classes of a tensor's symbols, wave by wave; it is sent the symbols.

    Returns:
        The integers [rows, columns, taps], of magnitudes up to LARGEST.
    """
    flags = np.zeros((rows, columns), np.uint8)
    heat = _Heat(rows, columns)
    for a in range(_ROW_WAVES):
        for b in range(_COLUMN_WAVES):
            part = flags[a::_ROW_WAVES, b::_COLUMN_WAVES]
            if not part.size:
                continue
            level = heat.levels()
            classes = FLAGS - 1 + np.zeros(part.size, np.uint8)
            if a or b:
                r, c = level
                both = r[a::_ROW_WAVES, None] + c[None, b::_COLUMN_WAVES]
                classes = np.clip(both, 0, LEVELS - 1).astype(np.uint8).ravel()
            symbols = yield classes, 0
            part[:] = symbols.reshape(part.shape)
            heat.add_block(part, a, b)
    at = np.flatnonzero(flags)
    row, column = np.divmod(at.astype(np.int32), np.int32(max(columns, 1)))
    q = np.zeros((taps, len(at)), np.int8)
    known = np.zeros(len(at), np.uint8)
    sizes = _Heat(rows, columns)
    for tap in range(taps):
        r, c = heat.levels() if tap == 0 else sizes.levels()
        classes = np.clip(r[row] + c[column], 0, LEVELS - 1).astype(np.uint8)
        if tap:
            kinds = 2 + np.searchsorted(_SHARES, np.arange(256) * 4 // tap)
            kinds[0] = 1
            classes += (LEVELS * kinds).astype(np.uint8)[known]
        if tap == taps - 1:
            classes[known == 0] = VALUES - 1
        symbols = yield classes, 1
        q[tap] = symbols - LARGEST
        size = np.abs(q[tap])
        known += np.minimum(size, 3).astype(np.uint8)
        np.minimum(known, _ENOUGH, out=known)
        sizes.add(row, column, size)
    whole = np.zeros((rows * columns, taps), np.int8)
    whole[at] = q.T
    return whole.reshape(rows, columns, taps)


def flag_blocks(flags: Array) -> list[Array]:
    """The flags [rows, columns] of each wave that has any, in order."""
    blocks = [
        flags[a::_ROW_WAVES, b::_COLUMN_WAVES]
        for a in range(_ROW_WAVES)
        for b in range(_COLUMN_WAVES)
    ]
    return [block for block in blocks if block.size]


class _Heat:
    """Sums and counts by row and column, and half octaves of their means, in integers."""

    def __init__(self, rows: int, columns: int) -> None:
        self._sums = [np.zeros(rows, np.int64), np.zeros(columns, np.int64)]
        self._counts = [np.zeros(rows, np.int64), np.zeros(columns, np.int64)]

    def add_block(self, block: Array, a: int, b: int) -> None:
        for axis, slices in ((0, slice(a, None, _ROW_WAVES)), (1, slice(b, None, _COLUMN_WAVES))):
            self._sums[axis][slices] += block.sum(axis=1 - axis, dtype=np.int64)
            self._counts[axis][slices] += block.shape[1 - axis]

    def add(self, row: Array, column: Array, size: Array) -> None:
        for axis, index in ((0, row), (1, column)):
            n = len(self._sums[axis])
            # sums of small integers: exact in the floats that bincount adds in
            self._sums[axis] += np.bincount(index, size, minlength=n).astype(np.int64)
            self._counts[axis] += np.bincount(index, minlength=n)

    def levels(self) -> tuple[Array, Array]:
        """Summands by row and column, whose sum is the level that both say."""
        total, count = int(self._sums[0].sum()), int(self._counts[0].sum())
        mean = (total << 16) // max(count, 1) + 1
        halves = [
            np.searchsorted(
                _HALVES, ((sums << 16) + _PRIOR * mean) // (counts + _PRIOR) + 1, side="right"
            )
            for sums, counts in zip(self._sums, self._counts, strict=True)
        ]
        middle = int(np.searchsorted(_HALVES, mean, side="right"))
        # a mean of 1/64 is level 0, of 1 level 12
        return (halves[0] - middle - 21).astype(np.int16), halves[1].astype(np.int16)
