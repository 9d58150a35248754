"""A matrix in blocks of a few bits, each block with a scale and a zero point of its own.

    w[n, k]  ~  s[n, k / size] (q[n, k] - z[n, k / size]),    0 <= q, z < 2^bits

The range of a block is its extremes, or less where clipping leaves a smaller squared error.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from graphopt.passes.int8.rounding import Order, compensated, errors

__all__ = ["Blocks", "in_blocks"]

Array = np.ndarray[Any, Any]

#: Shares of a block's range that are tried.
SHARES = (1.0, 0.9, 0.8, 0.7)
#: Elements of a matrix that are worked on at a time.
PART = 1 << 22


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Rows of a matrix in blocks.

    Attributes:
        integers: uint8 [n, blocks, size], one number each.
        scales: [n, blocks], in the dtype of the activations.
        zeros: uint8 [n, blocks].
        bits: 4 or 8.
    """

    integers: Array
    scales: Array
    zeros: Array
    bits: int

    def matrix(self, columns: int) -> Array:
        """The matrix [n, columns] these stand for, float32."""
        off = self.integers.astype(np.float32) - self.zeros[..., None]
        whole: Array = off * self.scales[..., None].astype(np.float32)
        return whole.reshape(len(whole), -1)[:, :columns]

    def packed(self) -> tuple[Array, Array]:
        """Integers [n, blocks, bytes] and zeros [n, bytes]; of 4 bits the first in the low half."""
        if self.bits == 8:
            return self.integers, self.zeros
        odd = self.zeros.shape[1] % 2
        return _pairs(self.integers), _pairs(np.pad(self.zeros, ((0, 0), (0, odd))))


def in_blocks(w: Array, bits: int, size: int, dtype: Any, h: Array | None = None) -> Blocks:
    """The matrix w [n, k] in blocks along k.

    Args:
        w: float matrix.
        bits: 4 or 8.
        size: elements of a block; the last of a row is filled up with zeros.
        dtype: of the scales.
        h: second moment [k, k] of what the rows multiply; roundings then make up for each other.
    """
    count = -(-w.shape[1] // size)
    order = None if h is None else Order.of(_filled(h, count * size))
    parts = np.array_split(w, max(1, w.size // PART))
    made = [_part(part, bits, (count, size), dtype, order) for part in parts]
    integers, scales, zeros = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
    return Blocks(integers, scales, zeros, bits)


def _part(
    w: Array, bits: int, shape: tuple[int, int], dtype: Any, order: Order | None
) -> tuple[Array, Array, Array]:
    """Integers, scales and zeros of some rows."""
    top = 2**bits - 1
    padded = np.zeros((len(w), shape[0] * shape[1]), np.float32)
    padded[:, : w.shape[1]] = w
    blocks = padded.reshape(len(w), *shape)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    best: list[Array] = []
    least = np.full(low.shape, np.inf, np.float32)
    for share in SHARES:
        scale = ((high - low) * np.float32(share / top)).astype(dtype).astype(np.float32)
        scale = np.where(scale > 0, scale, np.float32(1))
        zero = np.clip(np.rint(-low * share / scale), 0, top)
        steps, shift = scale[..., None], zero[..., None]
        q = np.clip(np.rint(blocks / steps) + shift, 0, top)
        off = np.square((q - shift) * steps - blocks).sum(axis=2)
        better = off < least
        least = np.where(better, off, least)
        new = [q, scale, zero]
        held = best or new
        best = [np.where(better.reshape(better.shape + (1,) * (a.ndim - 2)), a, b)
                for a, b in zip(new, held, strict=True)]  # fmt: skip
    q, scale, zero = best
    if order is not None:
        q = _made_up_for(blocks, q, scale[..., None], zero[..., None], top, order)
    return q.astype(np.uint8), scale.astype(dtype), zero.astype(np.uint8)


def _made_up_for(
    blocks: Array, near: Array, steps: Array, shift: Array, top: int, order: Order
) -> Array:
    """The integers rounded for what they multiply, in the rows where that leaves less error."""
    flat = (len(blocks), -1)
    wide = [np.broadcast_to(a, blocks.shape).reshape(flat) for a in (steps, -shift, top - shift)]
    w = blocks.reshape(flat).astype(np.float64)
    found = compensated(w, wide[0], order, wide[1], wide[2])
    plain = (near - shift).reshape(flat)
    better = errors(found * wide[0] - w, order.h) < errors(plain * wide[0] - w, order.h)
    return np.where(better[:, None], found, plain).reshape(blocks.shape) + shift


def _filled(h: Array, size: int) -> Array:
    """The moment with zeros for the elements that fill up the last block."""
    more = size - len(h)
    return np.pad(h, ((0, more), (0, more)))


def _pairs(numbers: Array) -> Array:
    """Two numbers below 16 to a byte, along the last axis, the first of them in the low half."""
    pairs: Array = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
    return pairs
