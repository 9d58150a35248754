"""Integers of rounded weights, coded by contexts, and the tensors they stand for.

What is coded, and in which classes, is in `graphopt.entropy.contexts`; the classes' frequencies are
the whole model's, as are those of steps and of how many bits integers without a symbol take.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from graphopt.entropy.ans import Decoder, bits_of, encode, frequencies, rounded
from graphopt.entropy.contexts import (
    FAR,
    FLAGS,
    LARGEST,
    Shape,
    lean_of,
    parts_of,
    sorted_by,
    waves,
)
from graphopt.entropy.pairs import LEVELS, NEAR, NEARS, PAIRS, VALUES, apart, joint
from graphopt.errors import ModelError
from graphopt.varint import decode_varint, encode_varint

__all__ = [
    "MOST",
    "TAPS",
    "Rounded",
    "bits_taken",
    "counts_of",
    "pack_integers",
    "steps_of",
    "tables_of",
    "unpack_integers",
]

Array = np.ndarray[Any, Any]

#: Bits that magnitudes without a symbol of their own take at most, and the largest of them.
_BITS = 23
MOST = LARGEST + (1 << _BITS) - 2
#: Columns of a group at most.
TAPS = 1024
#: Kinds of symbols after `contexts`': levels of rows and columns and numbers of bits, and single
#: bits, each as likely as not.
_SIDE, _BIT = 4, 5
#: Levels that steps of rows and columns have.
STEPS = 33
#: Classes and symbols whose frequencies a pack holds: flags, integers, tails, the side.
_HELD = ((FLAGS, 2), (VALUES, NEARS), (LEVELS, FAR), (3, STEPS))
#: Classes and symbols of each kind.
_SIZES = ((FLAGS, 2), (VALUES, NEARS), (PAIRS, NEARS**2), (LEVELS, FAR), (3, STEPS), (1, 2))
#: What a level stands for, 2^(level / 4): float32, by exact factors.
_QUARTERS = np.array([1.0, 1.1892071150027210, 1.4142135623730951, 1.6817928305074292])
_FACTORS = np.ldexp(_QUARTERS, np.arange(64)[:, None]).astype(np.float32).ravel()


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A tensor w[r, c] = step 2^((row[r] + column[c div taps]) / 4) q[r, c], float32.

    Attributes:
        q: integers [rows, columns], of magnitudes up to MOST.
        step: float32.
        row, column: quarter octaves of rows and of groups of columns, uint8 below STEPS.
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
        made = np.empty(self.q.shape[:: -1 if self.turned else 1], np.float32)
        self.fill(made)
        return made

    def fill(self, out: Array) -> None:
        """Write `values`."""
        with np.errstate(over="ignore", invalid="ignore"):  # of what is no weight of ours
            row = steps_of(self.step, self.row)
            column = np.repeat(steps_of(np.float32(1), self.column), self.taps)
            column = column[: self.q.shape[1]]
            first, second, q = (column, row, self.q.T) if self.turned else (row, column, self.q)
            np.multiply(first[:, None], second, out=out)
            out *= q


def steps_of(step: np.float32, levels: Array) -> Array:
    """step 2^(levels / 4), float32."""
    made: Array = _FACTORS[levels] * np.float32(step)
    return made


def _grouped(tensor: Rounded) -> Array:
    """The integers [rows, groups, taps], int8 up to LARGEST, the last group filled with zeros."""
    rows, columns = tensor.q.shape
    q = np.clip(tensor.q, -LARGEST, LARGEST).astype(np.int8)
    return np.pad(q, ((0, 0), (0, -columns % tensor.taps))).reshape(rows, -1, tensor.taps)


def _ordered(tensors: Sequence[Rounded]) -> list[Rounded]:
    """Those of fewer taps first, as `contexts.waves` takes them."""
    return sorted(tensors, key=lambda t: t.taps)


def symbols_of(tensors: Sequence[Rounded]) -> Iterator[tuple[int, Array, Array]]:
    """What is coded: (kind, classes, symbols) wave by wave, uint8."""
    tensors = _ordered(tensors)
    for k, levels in enumerate(([t.row for t in tensors], [t.column for t in tensors])):
        joint = np.concatenate(levels)
        yield _SIDE, np.full(len(joint), k, np.uint8), joint
    grouped = [_grouped(t) for t in tensors]
    shapes = [q.shape for q in grouped]
    flags = np.concatenate([q.any(axis=2).ravel() for q in grouped])
    flag_waves, first = parts_of(shapes)
    symbols = [flags[where].view(np.uint8) for where in flag_waves]
    held = [q[q.any(axis=2)] for q in grouped]
    early = np.split(first[flags], np.cumsum([len(q) for q in held])[:-1])
    symbols += _two([q[e] for q, e in zip(held, early, strict=True)], 0)
    symbols += _two([q[~e] for q, e in zip(held, early, strict=True)], 0)
    for tap in range(2, shapes[-1][2], 2):
        symbols += _two(held, tap)
    asked = waves(shapes)
    classes, kind = next(asked)
    for k, sent in enumerate(symbols):
        yield kind, classes, sent
        if k + 1 < len(symbols):
            classes, kind = asked.send(sent)

    sizes = np.concatenate([np.abs(t.q.ravel()) for t in tensors])
    extra = sizes[sizes >= LARGEST] - (LARGEST - 1)
    lengths = np.frexp(extra)[1].astype(np.uint8) - np.uint8(1)
    yield _SIDE, np.full(len(extra), 2, np.uint8), lengths
    for bit in range(int(lengths.max(initial=0))):
        large = extra[lengths > bit]
        yield _BIT, np.zeros(len(large), np.uint8), ((large >> bit) & 1).astype(np.uint8)


def _two(held: Sequence[Array], tap: int) -> list[Array]:
    """Symbols of two taps of groups [groups, taps]: of those that have one, of pairs, of tails."""
    led = [_led(h, tap) for h in held if h.shape[1] > tap]
    one = [q[:, 0] for q in led if q.shape[1] == 1]
    first, second = ([q[:, k] for q in led if q.shape[1] == 2] for k in (0, 1))
    parts = [np.concatenate([*q, np.zeros(0, np.int8)]) for q in (one, first, second)]
    single, a, b = ((np.clip(q, -NEAR, NEAR) + NEAR).astype(np.uint8) for q in parts)
    sizes = np.abs(np.concatenate(parts)).view(np.uint8)
    return [single, a * np.uint8(NEARS) + b, sizes[sizes >= NEAR] - np.uint8(NEAR)]


def _led(held: Array, tap: int) -> Array:
    """One or two taps from `tap` on of groups [groups, taps], with the signs that are coded."""
    if not tap:
        return held[:, :2]
    lean = lean_of(list(held[:, :tap].T), held.shape[1])[:, None]
    led: Array = (held[:, tap : tap + 2] ^ lean) - lean
    return led


def counts_of(tensor: Rounded) -> list[Array]:
    """How often each symbol [classes, symbols] of each kind occurs."""
    counts = [np.zeros(size, np.int64) for size in _SIZES]
    for kind, classes, symbols in symbols_of([tensor]):
        joint = classes.astype(np.int64) * counts[kind].shape[1] + symbols
        counts[kind].ravel()[:] += np.bincount(joint, minlength=counts[kind].size)
    return counts


def tables_of(counts: Iterable[Sequence[Array]]) -> bytes:
    """The frequencies of all classes, as a pack holds them, by the counts of tensors."""
    flags, values, pairs, tails, side, _ = (sum(c) for c in zip(*counts, strict=True))
    return b"".join(rounded(c).tobytes() for c in (flags, values + apart(pairs), tails, side))


def bits_taken(counts: Sequence[Array], tables: bytes) -> float:
    """Bits of a tensor with these counts, coded by these tables."""
    return float(sum((n * bits_of(f)).sum() for n, f in zip(counts, _tables(tables), strict=True)))


def _tables(data: bytes) -> list[Array]:
    """Frequencies [classes, symbols] float64 of each kind."""
    if len(data) != sum(classes * symbols for classes, symbols in _HELD):
        raise ModelError("the tables of frequencies are not there")
    held, at = [], 0
    for classes, symbols in _HELD:
        found = np.frombuffer(data, np.uint8, classes * symbols, at)
        held.append(frequencies(found.reshape(classes, symbols)))
        at += found.size
    flags, values, tails, side = held
    return [flags, values, joint(values), tails, side, np.ones(_SIZES[_BIT])]


def pack_integers(tensors: Sequence[Rounded], tables: bytes) -> bytes:
    """Tensors coded together by `tables_of` all of their model."""
    codes = _tables(tables)
    parts = []
    for kind, classes, symbols in symbols_of(tensors):
        order = np.argsort(classes, kind="stable")
        ends = np.cumsum(np.bincount(classes, minlength=len(codes[kind])))
        sorted_ = symbols[order]
        for k in np.flatnonzero(np.diff(ends, prepend=0)):
            parts.append((sorted_[ends[k - 1] if k else 0 : ends[k]], codes[kind][k]))
    head = encode_varint(len(tensors))
    for one in tensors:
        numbers = (2 * one.taps + one.turned, *one.q.shape)
        head += b"".join(map(encode_varint, numbers)) + struct.pack("<f", one.step)
    return head + encode(parts)


def unpack_integers(data: memoryview, size: int, tables: bytes) -> memoryview:
    """The float32 bytes of tensors one after another. Raises ModelError: not `pack_integers`'."""
    codes = _tables(tables)
    heads, stream = _heads(data, size)
    order = sorted(range(len(heads)), key=lambda k: heads[k][2])  # as `_ordered`
    shapes = [
        (rows, -(-columns // taps), taps)
        for rows, columns, taps, *_ in map(heads.__getitem__, order)
    ]
    found, row, column = _decoded(_Symbols(stream, codes), shapes)
    made = np.empty(size // 4, "<f4")
    ends = np.cumsum([rows * columns for rows, columns, *_ in heads])
    for k, q in zip(order, found, strict=True):
        rows, columns, taps, turned, step = heads[k]
        q = q.reshape(rows, -1)[:, :columns]
        tensor = Rounded(q, step, row[:rows], column[: -(-columns // taps)], taps, turned)
        out = made[ends[k] - rows * columns : ends[k]]
        tensor.fill(out.reshape((columns, rows) if turned else (rows, columns)))
        row, column = row[rows:], column[-(-columns // taps) :]
    return made.data.cast("B")


def _heads(
    data: memoryview, size: int
) -> tuple[list[tuple[int, int, int, bool, np.float32]], memoryview]:
    """Rows, columns, taps, whether turned and the step of each tensor; what follows them."""
    heads: list[tuple[int, int, int, bool, np.float32]] = []
    numbers: list[int] = []
    at = 0
    try:
        count, at = decode_varint(data, at, len(data))
        while len(heads) < count:
            while len(numbers) < 3:
                value, at = decode_varint(data, at, len(data))
                numbers.append(value)
            (step,) = struct.unpack_from("<f", data, at)
            at += 4
            form, rows, columns = numbers
            taps, turned = divmod(form, 2)
            size -= 4 * rows * columns
            if not (0 < taps <= min(TAPS, 8 * columns) and rows) or size < 0:
                raise ModelError("a rounded tensor has another size than it should")
            heads.append((rows, columns, taps, bool(turned), np.float32(step)))
            numbers = []
    except (EOFError, OverflowError, struct.error):
        raise ModelError("a rounded tensor is cut off") from None
    if size or not heads:
        raise ModelError("rounded tensors have another size than they should")
    return heads, data[at:]


class _Symbols:
    """A stream of symbols, read wave by wave."""

    def __init__(self, data: memoryview, codes: Sequence[Array]) -> None:
        self._coder, self._codes = Decoder(data), codes

    def take(self, kind: int, classes: Array) -> Array:
        """The symbols of a wave, uint8."""
        codes = self._codes[kind]
        order, ends = sorted_by(classes, len(codes))
        found, at = np.empty(len(classes), np.uint8), 0
        for k, end in enumerate(ends):
            if end > at:
                self._coder.take(codes[k], found[at:end])
                at = end
        sent = np.empty_like(found)
        sent[order] = found
        return sent


def _decoded(symbols: _Symbols, shapes: Sequence[Shape]) -> tuple[list[Array], Array, Array]:
    """The integers [rows, groups, taps] of each tensor; the levels of all rows and groups."""
    row, column = (
        symbols.take(_SIDE, np.full(sum(s[k] for s in shapes), k, np.uint8)) for k in (0, 1)
    )
    asked = waves(shapes)
    classes, kind = next(asked)
    while True:
        try:
            classes, kind = asked.send(symbols.take(kind, classes))
        except StopIteration as end:
            found: list[Array] = end.value
            break
    large = [np.flatnonzero(np.abs(q) == LARGEST) for q in found]
    lengths = symbols.take(_SIDE, np.full(sum(map(len, large)), 2, np.uint8))
    extra = 1 << lengths.astype(np.int32)
    for bit in range(int(lengths.max(initial=0))):
        held = lengths > bit
        bits = symbols.take(_BIT, np.zeros(int(held.sum()), np.uint8))
        extra[held] |= bits.astype(np.int32) << bit
    for k, where in enumerate(large):
        if len(where):
            q = found[k] = found[k].astype(np.int32)
            mine, extra = extra[: len(where)], extra[len(where) :]
            q.ravel()[where] += np.sign(q.ravel()[where]) * (mine - 1)
    return found, row, column
