"""Integers of rounded weights, coded by contexts, and the tensors they stand for.

What is coded, and in which classes, is in `graphopt.entropy.contexts`; the classes' frequencies are
the whole model's.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.entropy.ans import Decoder, encode, rounded
from graphopt.entropy.contexts import ALPHABET, FLAGS, LARGEST, VALUES, flag_blocks, waves
from graphopt.entropy.planes import pack_numbers, unpack_numbers
from graphopt.errors import ModelError

__all__ = [
    "MOST",
    "Rounded",
    "counts_of",
    "pack_integers",
    "steps_of",
    "tables_of",
    "unpack_integers",
]

Array = np.ndarray[Any, Any]

#: Magnitudes that 16 bits beside a symbol tell.
MOST = LARGEST + 65535
#: Quarter octaves that steps differ by.
_QUARTERS = np.array([1.0, 1.1892071150027210, 1.4142135623730951, 1.6817928305074292])


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A tensor w[r, c] = step 2^((row[r] + column[c]) / 4) q[r, c], float32.

    Attributes:
        q: integers [rows, columns], of magnitudes up to MOST.
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
        with np.errstate(over="ignore", invalid="ignore"):  # of what is no weight of ours
            steps = steps_of(self.step, self.row)[:, None] * steps_of(np.float32(1), self.column)
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


def counts_of(tensor: Rounded) -> tuple[Array, Array]:
    """How often each symbol occurs in each class: flags [_, 2], values [_, ALPHABET]."""
    counts = np.zeros((FLAGS, 2), np.int64), np.zeros((VALUES, ALPHABET), np.int64)
    for kind, classes, symbols in symbols_of(tensor):
        width = counts[kind].shape[1]
        joint = classes.astype(np.int64) * width + symbols
        counts[kind].ravel()[:] += np.bincount(joint, minlength=counts[kind].size)
    return counts


def tables_of(counts: tuple[Array, Array]) -> bytes:
    """The frequencies of all classes, as the pack holds them."""
    return b"".join(rounded(c).tobytes() for c in counts)


def _tables(data: bytes) -> tuple[Array, Array]:
    if len(data) != FLAGS * 2 + VALUES * ALPHABET:
        raise ModelError("the tables of frequencies are not there")
    codes = np.frombuffer(data, np.uint8)
    flags, values = codes[: FLAGS * 2], codes[FLAGS * 2 :]
    return flags.reshape(FLAGS, 2), values.reshape(VALUES, ALPHABET)


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
    head = b"".join(map(_as_varint, numbers)) + struct.pack("<f", tensor.step)
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
    if not 0 < taps <= 8 * columns or rows * columns * 4 != size or len(data) < at + 4:
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


def _as_varint(value: int) -> bytes:
    """`value` in base 128, low digits first, high bit set on all but the last."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _as_varint(rest) if rest else bytes([low])


def _decoded(
    coder: Decoder, codes: tuple[Array, Array], rows: int, columns: int, taps: int
) -> Array:
    asked = waves(rows, columns, taps)
    classes, kind = next(asked)
    while True:
        order = np.argsort(classes, kind="stable")
        counts = np.bincount(classes, minlength=len(codes[kind]))
        taken = [coder.take(codes[kind][k], int(counts[k])) for k in np.flatnonzero(counts)]
        sent = np.empty(len(classes), np.int32)
        if taken:
            sent[order] = np.concatenate(taken)
        try:
            classes, kind = asked.send(sent)
        except StopIteration as end:
            found: Array = end.value
            return found
