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

from graphopt.entropy.ans import Decoder, encode, rounded
from graphopt.entropy.contexts import ALPHABET, FLAGS, LARGEST, VALUES, flag_blocks, waves
from graphopt.errors import ModelError
from graphopt.varint import decode_varint, encode_varint

__all__ = [
    "MOST",
    "Rounded",
    "pack_integers",
    "steps_of",
    "tables_of",
    "unpack_integers",
]

Array = np.ndarray[Any, Any]

#: Bits that magnitudes without a symbol of their own take at most, and the largest of them.
_BITS = 23
MOST = LARGEST + (1 << _BITS) - 2
#: Kinds of symbols after `contexts`' flags (0) and values (1): levels of rows and columns and
#: numbers of bits, and single bits, each as likely as not.
_SIDE, _BIT = 2, 3
#: Levels that steps of rows and columns have.
STEPS = 33
#: Classes and symbols of each kind whose frequencies a pack holds.
_SIZES = ((FLAGS, 2), (VALUES, ALPHABET), (3, STEPS))
#: Quarter octaves that steps differ by.
_QUARTERS = np.array([1.0, 1.1892071150027210, 1.4142135623730951, 1.6817928305074292])


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
        with np.errstate(over="ignore", invalid="ignore"):  # of what is no weight of ours
            column = np.repeat(steps_of(np.float32(1), self.column), self.taps)
            steps = steps_of(self.step, self.row)[:, None] * column[: self.q.shape[1]]
            w = self.q.astype(np.float32) * steps
        return np.ascontiguousarray(w.T) if self.turned else w


def steps_of(step: np.float32, levels: Array) -> Array:
    """step 2^(levels / 4), float32, by exact factors."""
    whole, part = np.divmod(levels.astype(np.int32), 4)
    factors = np.ldexp(_QUARTERS[part], whole).astype(np.float32)
    made: Array = factors * np.float32(step)
    return made


def _grouped(tensor: Rounded) -> Array:
    """The integers [rows, groups, taps], the last group filled with zeros."""
    rows, columns = tensor.q.shape
    return np.pad(tensor.q, ((0, 0), (0, -columns % tensor.taps))).reshape(rows, -1, tensor.taps)


def symbols_of(tensor: Rounded) -> Iterator[tuple[int, Array, Array]]:
    """What is coded: (kind, classes, symbols) wave by wave."""
    for k, levels in enumerate((tensor.row, tensor.column)):
        yield _SIDE, np.full(len(levels), k, np.uint8), levels.astype(np.int32)
    q = np.clip(_grouped(tensor), -LARGEST, LARGEST).astype(np.int8)
    rows, columns, taps = q.shape
    flags = np.asarray(q.any(axis=2), np.uint8)
    held = q[flags.astype(bool)].astype(np.int32) + LARGEST
    asked = waves(rows, columns, taps)
    symbols = [*(b.ravel().astype(np.int32) for b in flag_blocks(flags)), *held.T]
    classes, kind = next(asked)
    for k, sent in enumerate(symbols):
        yield kind, classes, sent
        if k + 1 < len(symbols):
            classes, kind = asked.send(sent)

    sizes = np.abs(tensor.q.ravel())
    extra = sizes[sizes >= LARGEST] - (LARGEST - 1)
    lengths = np.frexp(extra)[1].astype(np.int32) - 1
    yield _SIDE, np.full(len(extra), 2, np.uint8), lengths
    for bit in range(int(lengths.max(initial=0))):
        held = extra[lengths > bit]
        yield _BIT, np.zeros(len(held), np.uint8), (held >> bit) & 1


def tables_of(tensors: Iterable[Rounded]) -> bytes:
    """The frequencies of all classes in these tensors, as the pack holds them."""
    counts = [np.zeros(size, np.int64) for size in _SIZES]
    for tensor in tensors:
        for kind, classes, symbols in symbols_of(tensor):
            if kind != _BIT:
                width = counts[kind].shape[1]
                joint = classes.astype(np.int64) * width + symbols
                counts[kind].ravel()[:] += np.bincount(joint, minlength=counts[kind].size)
    return b"".join(rounded(c).tobytes() for c in counts)


def _tables(data: bytes) -> list[Array]:
    if len(data) != sum(classes * symbols for classes, symbols in _SIZES):
        raise ModelError("the tables of frequencies are not there")
    codes, at = [], 0
    for classes, symbols in _SIZES:
        found = np.frombuffer(data, np.uint8, classes * symbols, at)
        codes.append(found.reshape(classes, symbols))
        at += found.size
    return [*codes, np.ones((1, 2), np.uint8)]


def pack_integers(tensor: Rounded, tables: bytes) -> bytes:
    """The tensor coded by `tables_of` all of its model; it says itself where it ends."""
    codes = _tables(tables)
    parts = []
    for kind, classes, symbols in symbols_of(tensor):
        order = np.argsort(classes, kind="stable")
        ends = np.cumsum(np.bincount(classes, minlength=len(codes[kind])))
        sorted_ = symbols[order]
        for k in np.flatnonzero(np.diff(ends, prepend=0)):
            parts.append((sorted_[ends[k - 1] if k else 0 : ends[k]], codes[kind][k]))
    stream = encode(parts)
    numbers = (2 * tensor.taps + tensor.turned, *tensor.q.shape, len(stream))
    return b"".join(map(encode_varint, numbers)) + struct.pack("<f", tensor.step) + stream


def unpack_integers(data: memoryview, size: int, tables: bytes) -> bytes:
    """The float32 bytes of tensors one after another. Raises ModelError: not `pack_integers`'."""
    codes = _tables(tables)
    made: list[bytes] = []
    while data or size:
        numbers: list[int] = []
        at = 0
        while len(numbers) < 4:
            try:
                value, at = decode_varint(data, at, len(data))
            except (EOFError, OverflowError):
                raise ModelError("a rounded tensor is cut off") from None
            numbers.append(value)
        form, rows, columns, length = numbers
        taps, turned = divmod(form, 2)
        size -= 4 * rows * columns
        end = at + 4 + length
        if not 0 < taps <= 8 * columns or not rows or size < 0 or len(data) < end:
            raise ModelError("a rounded tensor has another size than it should")
        (step,) = struct.unpack_from("<f", data, at)
        q, row, column = _decoded(_Symbols(data[at + 4 : end], codes), rows, columns, taps)
        tensor = Rounded(q, np.float32(step), row, column, taps, bool(turned))
        made.append(tensor.values().astype("<f4").tobytes())
        data = data[end:]
    return b"".join(made)


class _Symbols:
    """A tensor's stream, read wave by wave."""

    def __init__(self, data: memoryview, codes: Sequence[Array]) -> None:
        self._coder, self._codes = Decoder(data), codes

    def take(self, kind: int, classes: Array) -> Array:
        """The symbols of a wave, int32."""
        codes = self._codes[kind]
        order = np.argsort(classes, kind="stable")
        counts = np.bincount(classes, minlength=len(codes))
        taken = [self._coder.take(codes[k], int(counts[k])) for k in np.flatnonzero(counts)]
        sent = np.empty(len(classes), np.int32)
        if taken:
            sent[order] = np.concatenate(taken)
        return sent


def _decoded(symbols: _Symbols, rows: int, columns: int, taps: int) -> tuple[Array, Array, Array]:
    """The integers [rows, columns], and the levels of rows and groups."""
    groups = -(-columns // taps)
    row, column = (
        symbols.take(_SIDE, np.full(n, k, np.uint8)) for k, n in enumerate((rows, groups))
    )
    asked = waves(rows, groups, taps)
    classes, kind = next(asked)
    while True:
        try:
            classes, kind = asked.send(symbols.take(kind, classes))
        except StopIteration as end:
            q = end.value.reshape(rows, -1)[:, :columns].astype(np.int32)
            break
    large = np.abs(q) == LARGEST
    lengths = symbols.take(_SIDE, np.full(int(large.sum()), 2, np.uint8))
    extra = 1 << lengths
    for bit in range(int(lengths.max(initial=0))):
        held = lengths > bit
        extra[held] |= symbols.take(_BIT, np.zeros(int(held.sum()), np.uint8)) << bit
    q[large] += np.sign(q[large]) * (extra - 1)
    return q, row, column
