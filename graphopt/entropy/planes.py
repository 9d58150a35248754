"""Byte planes: floats as exponents, signs and mantissas, each coded by its own statistics.

    x  ->  x rotated left by one bit  ->  its bytes, the highest of all numbers first

so that the first plane holds the exponents (of weights about 2.5 bits each), the last the lowest
mantissa bits and the sign. Blocks of a plane choose among a few tables of frequencies, so that the
code follows the scale of rows and layers. Integers of 8 bits are a plane as they are.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from graphopt.entropy.ans import Decoder, bits_of, encode, frequencies, rounded
from graphopt.entropy.text import by_frequency, compressed, decompressed
from graphopt.errors import ModelError

__all__ = ["pack_numbers", "unpack_numbers"]

Array = np.ndarray[Any, Any]

#: Numbers that share a table, tables at most, rounds of choosing them.
BLOCK, TABLES, ROUNDS = 512, 12, 3
#: Bits a symbol that coding must save: less is not worth the time to decode.
_WORTH = 0.05
#: A plane of so many numbers is coded so that it is decoded in a tenth of the time, if that takes
#: at most so many bytes more for each: 0.3 % of a float32 model.
_LARGE, _DEARER = 1 << 20, 0.0125
_RAW, _CONSTANT, _TEXT, _CODED = range(4)
#: Bytes looked at to see whether repetitions pay.
_TRIAL = 1 << 16
#: Numbers whose planes are joined at once, in the processor's cache.
_CACHED = 1 << 15


def pack_numbers(data: bytes | memoryview, width: int) -> bytes:
    """Little-endian numbers of `width` bytes (1: integers, else floats), coded."""
    return b"".join(
        struct.pack("<I", len(coded)) + coded for coded in map(_coded, _split(data, width))
    )


def unpack_numbers(data: memoryview, width: int, size: int) -> memoryview:
    """The `size` bytes that were coded. Raises ModelError: not what `pack_numbers` made."""
    count, at = size // width, 0
    planes = []
    for _ in range(width):
        if len(data) < at + 4:
            raise ModelError("a plane is cut off")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        planes.append(_plane(data[at : at + length], count))
        at += length
    made = np.empty(count, f"<u{width}")
    for begin in range(0, count, _CACHED):
        _rejoin([p[begin : begin + _CACHED] for p in planes], made[begin : begin + _CACHED])
    return made.data.cast("B")


def _rejoin(planes: list[Array], out: Array) -> None:
    """Numbers of their planes, the highest first."""
    width = len(planes)
    octets = out.view(np.uint8).reshape(-1, width)
    for k, plane in enumerate(planes):
        octets[:, width - 1 - k] = plane
    if width > 1:
        kind = out.dtype.type
        lowest = out << kind(8 * width - 1)
        np.right_shift(out, kind(1), out=out)
        np.bitwise_or(out, lowest, out=out)


def _split(data: bytes | memoryview, width: int) -> list[Array]:
    numbers = np.frombuffer(data, f"<u{width}")
    if width == 1:
        return [numbers]
    kind = numbers.dtype.type
    turned = (numbers << kind(1)) | (numbers >> kind(8 * width - 1))
    octets = turned.astype(f"<u{width}").view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(octets[:, k]) for k in reversed(range(width))]


def _coded(plane: Array) -> bytes:
    counts = np.bincount(plane, minlength=256)
    if counts.max() == len(plane):
        return bytes([_CONSTANT, int(plane[0])]) if len(plane) else bytes([_CONSTANT, 0])
    shares = counts[counts > 0] / len(plane)
    entropy = float(-(shares * np.log2(shares)).sum())
    found = bytes([_RAW]) + plane.tobytes()
    trial = plane[:_TRIAL].tobytes()
    if entropy < 8 - _WORTH and len(plane) >= 32:
        found = min(found, bytes([_CODED]) + _by_blocks(plane, counts), key=len)
    if found[0] == _CODED and len(plane) >= _LARGE:
        quick = bytes([_TEXT]) + by_frequency(plane.tobytes())
        found = quick if len(quick) < len(found) + _DEARER * len(plane) else found
    if len(compressed(trial, 3)) < 0.9 * len(found) * len(trial) / len(plane):
        found = min(found, bytes([_TEXT]) + compressed(plane.tobytes(), 19), key=len)
    return found


def _plane(data: memoryview, count: int) -> Array:
    kind, body = (data[0], data[1:]) if len(data) else (-1, data)
    if kind == _CONSTANT and len(body) == 1:
        return np.full(count, body[0], np.uint8)
    if kind == _RAW and len(body) == count:
        return np.frombuffer(body, np.uint8)
    if kind == _TEXT:
        return np.frombuffer(decompressed(body, count), np.uint8)
    if kind == _CODED:
        return _from_blocks(body, count)
    raise ModelError("a plane is damaged")


def _by_blocks(plane: Array, counts: Array) -> bytes:
    """low, alphabet, tables, [tables, alphabet] frequencies, packed choices, symbols."""
    used = np.flatnonzero(counts)
    low, alphabet = int(used[0]), int(used[-1] - used[0]) + 1
    size = min(BLOCK, len(plane))
    filled = np.pad(plane - np.uint8(low), (0, -len(plane) % size), mode="edge")
    blocks = filled.reshape(-1, size)
    numbered = blocks + alphabet * np.arange(len(blocks))[:, None]
    histograms = np.bincount(numbered.ravel(), minlength=alphabet * len(blocks)).reshape(
        len(blocks), alphabet
    )
    best: tuple[float, Array, Array] | None = None
    for tables in (1, 3, TABLES):
        if tables > 1 and tables * 8 > len(blocks):
            break
        codes, chosen, bits = _tables(histograms, tables)
        whole = bits + 8 * codes.size + len(blocks) * np.log2(tables)
        if best is None or whole < best[0]:
            best = whole, codes, chosen
    assert best is not None
    _, codes, chosen = best
    parts = [
        (blocks[chosen == k].ravel(), frequencies(codes[k]))
        for k in range(len(codes))
        if (chosen == k).any()
    ]
    choices = compressed(chosen.astype(np.uint8).tobytes(), 19) if len(codes) > 1 else b""
    head = struct.pack("<BHBI", low, alphabet, len(codes), len(choices))
    return head + codes.tobytes() + choices + encode(parts)


def _tables(histograms: Array, tables: int) -> tuple[Array, Array, float]:
    """Frequencies [tables, alphabet], the choice of each block, bits: k-means by code length."""
    means = histograms @ np.arange(histograms.shape[1])
    chosen = np.empty(len(histograms), np.int64)
    chosen[np.argsort(means, kind="stable")] = np.arange(len(means)) * tables // len(means)
    for last in (*[False] * (ROUNDS if tables > 1 else 0), True):
        sums = np.stack([histograms[chosen == k].sum(axis=0) for k in range(tables)])
        sums[~sums.any(axis=1)] = histograms.sum(axis=0)
        if not last:
            costs = histograms @ bits_of(frequencies(rounded(sums))).T
            chosen = costs.argmin(axis=1)
    codes = rounded(sums)
    return codes, chosen, float((sums * bits_of(frequencies(codes))).sum())


def _from_blocks(data: memoryview, count: int) -> Array:
    if len(data) < 8:
        raise ModelError("a plane is cut off")
    low, alphabet, tables, length = struct.unpack_from("<BHBI", data)
    at = 8 + alphabet * tables
    if not (2 <= alphabet <= 256 - low and tables and len(data) >= at + length and count):
        raise ModelError("a plane is damaged")
    codes = np.frombuffer(data[8:at], np.uint8).reshape(tables, alphabet)
    size = min(BLOCK, count)
    number = -(-count // size)
    chosen = np.zeros(number, np.uint8)
    if tables > 1:
        chosen = np.frombuffer(decompressed(data[at : at + length], number), np.uint8)
    coder = Decoder(data[at + length :])
    blocks = np.empty((number, size), np.uint8)
    for k in range(tables):
        mine = chosen == k
        if mine.any():
            symbols = np.empty((int(mine.sum()), size), np.uint8)
            coder.take(frequencies(codes[k]), symbols.ravel())
            blocks[mine] = symbols + np.uint8(low)
    return blocks.ravel()[:count]
