"""Integers of rounded weights, coded by contexts: what was decoded before says what is likely.

A tensor is [rows, columns, taps] (a convolution's outputs, inputs and kernel; a matrix in groups of
neighbours). Decoded is first which groups of taps are zero throughout, then tap after tap of the
others. What a symbol is likely to be follows from the rows and columns it stands in, and from the
taps of its group that are known:

    class  =  (log E[row] + log E[column] - log E[all],  how large the known taps are)

All symbols of one wave are classed at once from earlier waves, so that decoding is a few array
operations and one call of the coder a class. The classes' frequencies are the whole model's.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.entropy.ans import Decoder, bits_of, encode, rounded
from graphopt.entropy.planes import pack_numbers, unpack_numbers
from graphopt.errors import ModelError

__all__ = [
    "LARGEST",
    "Rounded",
    "Waves",
    "pack_integers",
    "steps_of",
    "tables_of",
    "unpack_integers",
]

Array = np.ndarray[Any, Any]

#: Magnitudes with a symbol of their own; larger ones are told apart.
LARGEST = 15
#: Classes by what rows and columns say, and by known taps: none of this group, 0, few, many.
LEVELS, KNOWN = 14, 4
_FLAGS = LEVELS + 1  # the last: nothing is known
_VALUES = LEVELS * KNOWN + 1  # the last: one that is not zero, since its group is not
ALPHABET = 2 * LARGEST + 1
#: Waves of flags: (row, column) modulo these.
_ROW_WAVES, _COLUMN_WAVES = 2, 4
#: What is known of a group's taps is counted up to here.
_ENOUGH = 200
#: Rows and columns are believed as much as this many symbols of the whole.
_PRIOR = 4
#: Half octaves of fixed-point numbers (16 bits after the point), exact.
_HALVES = np.array([int(v) for k in range(48) for v in (1 << k, (1 << k) * 1.4142135623730951)])
#: Quarter octaves that steps differ by.
_QUARTERS = np.array([1.0, 1.1892071150027210, 1.4142135623730951, 1.6817928305074292])


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A tensor w[r, c] = step 2^((row[r] + column[c]) / 4) q[r, c], float32.

    Attributes:
        q: integers [rows, columns].
        step: float32.
        row, column: quarter octaves, uint8.
        taps: columns of a group; the last one is filled up.
        turned: whether the tensor is stored with columns first.
    """

    q: Array
    step: np.float32
    row: Array
    column: Array
    taps: int
    turned: bool

    def values(self) -> Array:
        """The float32 tensor as it is stored, [rows, columns] or turned."""
        steps = steps_of(self.step, self.row)[:, None] * steps_of(np.float32(1), self.column)
        w = self.q.astype(np.float32) * steps
        return np.ascontiguousarray(w.T) if self.turned else w


def steps_of(step: np.float32, levels: Array) -> Array:
    """step 2^(levels / 4), float32, by exact factors."""
    whole, part = np.divmod(levels.astype(np.int32), 4)
    factors = np.ldexp(_QUARTERS[part], whole).astype(np.float32)
    made: Array = factors * np.float32(step)
    return made


class Waves:
    """The classes of a tensor's symbols, wave by wave; what is not known is asked for.

    `run` yields (classes, kind) and is sent the symbols; kind 0 are flags, 1 values.
    """

    def __init__(self, rows: int, columns: int, taps: int) -> None:
        self.shape = (rows, columns, taps)

    def run(self) -> Any:
        """A generator that returns the integers [rows, columns, taps], clipped to LARGEST."""
        rows, columns, taps = self.shape
        flags = np.zeros((rows, columns), np.uint8)
        heat = _Heat(rows, columns)
        for a in range(_ROW_WAVES):
            for b in range(_COLUMN_WAVES):
                part = flags[a::_ROW_WAVES, b::_COLUMN_WAVES]
                if not part.size:
                    continue
                level = heat.levels()
                classes = _FLAGS - 1 + np.zeros(part.size, np.uint8)
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
                kinds = np.where(np.arange(256) <= tap, 2, 3)
                kinds[0] = 1
                classes += (LEVELS * kinds).astype(np.uint8)[known]
            if tap == taps - 1:
                classes[known == 0] = _VALUES - 1
            symbols = yield classes, 1
            q[tap] = symbols - LARGEST
            size = np.abs(q[tap])
            known += np.minimum(size, 3).astype(np.uint8)
            np.minimum(known, _ENOUGH, out=known)
            sizes.add(row, column, size)
        whole = np.zeros((rows * columns, taps), np.int8)
        whole[at] = q.T
        return whole.reshape(rows, columns, taps)


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


def _grouped(tensor: Rounded) -> Array:
    """The integers [rows, groups, taps], the last group filled with zeros."""
    rows, columns = tensor.q.shape
    return np.pad(tensor.q, ((0, 0), (0, -columns % tensor.taps))).reshape(rows, -1, tensor.taps)


def symbols_of(tensor: Rounded) -> Iterator[tuple[int, Array, Array]]:
    """What is coded: (kind, classes, symbols) wave by wave."""
    q = np.clip(_grouped(tensor), -LARGEST, LARGEST).astype(np.int8)
    rows, columns, taps = q.shape
    flags: Array = q.any(axis=2).astype(np.uint8)
    waves = Waves(rows, columns, taps).run()
    held = q[flags.astype(bool)]
    blocks = iter(
        flags[a::_ROW_WAVES, b::_COLUMN_WAVES]
        for a in range(_ROW_WAVES)
        for b in range(_COLUMN_WAVES)
    )
    tap, sent = 0, None
    while True:
        try:
            classes, kind = waves.send(sent)
        except StopIteration:
            return
        if kind == 0:
            block = next(b for b in blocks if b.size)
            sent = block.ravel().astype(np.int32)
        else:
            sent, tap = held[:, tap].astype(np.int32) + LARGEST, tap + 1
        yield kind, classes, sent


def counts_of(tensor: Rounded) -> tuple[Array, Array]:
    """How often each symbol occurs in each class: flags [_, 2], values [_, ALPHABET]."""
    counts = np.zeros((_FLAGS, 2), np.int64), np.zeros((_VALUES, ALPHABET), np.int64)
    for kind, classes, symbols in symbols_of(tensor):
        width = counts[kind].shape[1]
        joint = classes.astype(np.int64) * width + symbols
        counts[kind].ravel()[:] += np.bincount(joint, minlength=counts[kind].size)
    return counts


def tables_of(counts: tuple[Array, Array]) -> bytes:
    """The frequencies of all classes, as the pack holds them."""
    return b"".join(rounded(c).tobytes() for c in counts)


def _tables(data: bytes) -> tuple[Array, Array]:
    if len(data) != _FLAGS * 2 + _VALUES * ALPHABET:
        raise ModelError("the tables of frequencies are not there")
    codes = np.frombuffer(data, np.uint8)
    flags, values = codes[: _FLAGS * 2], codes[_FLAGS * 2 :]
    return flags.reshape(_FLAGS, 2), values.reshape(_VALUES, ALPHABET)


def bits(tensor: Rounded, tables: tuple[Array, Array]) -> float:
    """Bits of the symbols by these tables of codes."""
    costs = [bits_of(t) for t in tables]
    return float(sum(costs[k][c, s].sum() for k, c, s in symbols_of(tensor)))


def pack_integers(tensor: Rounded, tables: bytes) -> bytes:
    """The tensor coded by `tables_of` the whole model."""
    codes = _tables(tables)
    parts = []
    for kind, classes, symbols in symbols_of(tensor):
        order = np.argsort(classes, kind="stable")
        ends = np.cumsum(np.bincount(classes, minlength=len(codes[kind])))
        sorted_ = symbols[order]
        for k in np.flatnonzero(np.diff(ends, prepend=0)):
            parts.append((sorted_[ends[k - 1] if k else 0 : ends[k]], codes[kind][k]))
    whole = _grouped(tensor)
    extra = np.abs(whole[np.abs(whole) >= LARGEST]) - LARGEST
    sides = [_planes(tensor.row, 1), _planes(tensor.column, 1), _planes(extra, 2)]
    numbers = (int(tensor.turned), *tensor.q.shape, tensor.taps, *map(len, sides))
    head = b"".join(map(varint, numbers)) + struct.pack("<f", tensor.step)
    return head + b"".join(sides) + encode(parts)


def _planes(numbers: Array, width: int) -> bytes:
    """Integers below 256^width, low bytes first, then high ones; nothing where all are 0."""
    if not numbers.any():
        return b""
    octets = numbers.astype(f"<u{width}").view(np.uint8).reshape(-1, width)
    return b"".join(pack_numbers(octets[:, k].tobytes(), 1) for k in range(width))


def _numbers(data: memoryview, width: int, count: int) -> Array:
    """What `_planes` coded, int32 [count]."""
    found = np.zeros(count, np.int32)
    for k in range(width if len(data) else 0):
        if len(data) < 4:
            raise ModelError("a rounded tensor is cut off")
        end = 4 + struct.unpack_from("<I", data)[0]
        plane = np.frombuffer(unpack_numbers(data[:end], 1, count), np.uint8)
        found += plane.astype(np.int32) << (8 * k)
        data = data[end:]
    return found


def unpack_integers(data: memoryview, size: int, tables: bytes) -> bytes:
    """The float32 bytes of a tensor. Raises ModelError: not what `pack_integers` made."""
    codes = _tables(tables)
    numbers: list[int] = []
    at = 0
    while len(numbers) < 7:
        value, at = _varint(data, at)
        numbers.append(value)
    turned, rows, columns, taps, *sizes = numbers
    if not taps or rows * columns * 4 != size or taps > 4 * columns + 64 or len(data) < at + 4:
        raise ModelError("a rounded tensor has another size than it should")
    (step,) = struct.unpack_from("<f", data, at)
    sides, at = [], at + 4
    for length in sizes:
        sides.append(data[at : at + length])
        at += length
    row = _numbers(sides[0], 1, rows)
    column = _numbers(sides[1], 1, columns)
    q = _decoded(Decoder(data[at:]), codes, rows, -(-columns // taps), taps).astype(np.int32)
    large = np.abs(q) == LARGEST
    q[large] += np.sign(q[large]) * _numbers(sides[2], 2, int(large.sum()))
    q = q.reshape(rows, -1)[:, :columns]
    tensor = Rounded(q, np.float32(step), row, column, taps, bool(turned))
    return tensor.values().astype("<f4").tobytes()


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 35:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ModelError("a rounded tensor is cut off")


def varint(value: int) -> bytes:
    """`value` in base 128, low digits first, high bit set on all but the last."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def _decoded(
    coder: Decoder, codes: tuple[Array, Array], rows: int, columns: int, taps: int
) -> Array:
    waves = Waves(rows, columns, taps).run()
    sent = None
    while True:
        try:
            classes, kind = waves.send(sent)
        except StopIteration as end:
            found: Array = end.value
            return found
        order = np.argsort(classes, kind="stable")
        counts = np.bincount(classes, minlength=len(codes[kind]))
        taken = [coder.take(codes[kind][k], int(counts[k])) for k in np.flatnonzero(counts)]
        sent = np.empty(len(classes), np.int32)
        if taken:
            sent[order] = np.concatenate(taken)
