"""Block quantization of a matrix: a few bits, each block with a scale and a zero point.

    w[n, k]  ~  s[n, k / size] (q[n, k] - z[n, k / size]),    0 <= q, z < 2^bits

The range of a block is its extremes, or less where clipping leaves a smaller squared error. If it
is symmetric, z = 2^(bits - 1) is not stored, and s is signed: the largest weight is -2^(bits - 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from graphopt.calibration.rounding import Order, compensated
from graphopt.deploy.processors import processors

__all__ = [
    "Blocks",
    "Form",
    "form_of",
    "in_blocks",
    "order_of",
    "relative_error",
    "sizes_of",
    "stored_bits",
]

Array = np.ndarray[Any, Any]

#: Block sizes to choose from, and the smallest one.
SIZES, SMALLEST = (128, 64, 32), 16
#: Rows that an error is measured on.
ROWS = 256

#: Shares of a block's range that are tried: fewer numbers leave less when they reach less far.
SHARES = {2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), 4: (1.0, 0.9, 0.8, 0.7), 8: (1.0, 0.9, 0.8, 0.7)}
#: Elements of a matrix that are worked on at a time: for its products, and as caches hold.
PART, CACHED = 1 << 22, 1 << 18


class Form(NamedTuple):
    """Bits of a weight, weights of a block, and whether blocks have no zero points of their own."""

    bits: int
    size: int
    symmetric: bool = False

    def __str__(self) -> str:
        kind = "symmetric " if self.symmetric else ""
        return f"{self.bits} bits in {kind}blocks of {self.size}"


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Rows of a matrix in blocks.

    Attributes:
        integers: uint8 [n, blocks, size], one number each.
        scales: [n, blocks], in the dtype of the activations.
        zeros: uint8 [n, blocks].
        form: of all.
    """

    integers: Array
    scales: Array
    zeros: Array
    form: Form

    def matrix(self, columns: int) -> Array:
        """The matrix [n, columns] these stand for, float32."""
        off = self.integers.astype(np.float32) - self.zeros[..., None]
        whole: Array = off * self.scales[..., None].astype(np.float32)
        return whole.reshape(len(whole), -1)[:, :columns]

    def packed(self) -> tuple[Array, ...]:
        """What is stored, the first number of a byte lowest.

        Returns:
            Integers [n, blocks, bytes], scales, and zeros [n, bytes] unless symmetric.
        """
        bits, _, symmetric = self.form
        stored = _packed(self.integers, bits), self.scales
        zeros = np.pad(self.zeros, ((0, 0), (0, -self.zeros.shape[1] % (8 // bits))))
        return stored if symmetric else (*stored, _packed(zeros, bits))

    def columns(self) -> tuple[Array, ...]:
        """What is stored of whole blocks down columns, as the ONNX standard has them.

        Returns:
            Bytes of the integers [k, n], signed if blocks are symmetric, the scales [blocks, n],
            and, unless symmetric, bytes of the zeros [blocks, n].
        """
        bits, _, symmetric = self.form
        integers = self.integers.reshape(len(self.integers), -1).T
        signed = integers ^ (symmetric << (bits - 1))  # less half of the numbers, in so many bits
        stored = _flat(signed, bits), np.ascontiguousarray(self.scales.T)
        return stored if symmetric else (*stored, _flat(self.zeros.T, bits))


def in_blocks(w: Array, form: Form, dtype: Any, order: Order | None = None) -> Blocks:
    """The matrix w [n, k] in blocks along k.

    Args:
        w: float matrix.
        form: the last block of a row is filled up with zeros.
        dtype: of the scales.
        order: of what the rows multiply (`order_of`); roundings then make up for each other.
    """
    parts = np.array_split(w, max(1, w.size // (PART if order else CACHED)))
    if order:
        made = [_part(part, form, dtype, order) for part in parts]
    else:
        with ThreadPoolExecutor(processors()) as pool:
            made = list(pool.map(lambda part: _part(part, form, dtype, None), parts))
    integers, scales, zeros = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
    return Blocks(integers, scales, zeros, form)


def stored_bits(form: Form, row: int, dtype: Any) -> float:
    """Bits of a weight in rows of so many, scales, zero points and filled places included."""
    bits, size, symmetric = form
    block: int = size * bits + 8 * np.dtype(dtype).itemsize + bits * (not symmetric)
    return -(-row // size) * block / row


def relative_error(w: Array, form: Form) -> float:
    """Relative L2 of what rounding to the nearest does to w [n, k], by some of its rows."""
    some = w[:: max(1, len(w) // ROWS)]
    off = in_blocks(some, form, some.dtype).matrix(some.shape[1]) - some.astype(np.float32)
    return float(np.linalg.norm(off)) / max(float(np.linalg.norm(some.astype(np.float32))), 1e-30)


def form_of(w: Array, bits: int, sizes: Sequence[int]) -> Form:
    """The form of w [n, k] in so many bits that has the least error for its bytes.

    A bit more of each weight halves errors; by that what long and symmetric blocks save is weighed
    against what they lose. They are no slower.
    """

    def price(form: Form) -> float:
        return relative_error(w, form) * float(2.0 ** stored_bits(form, w.shape[1], w.dtype))

    return min((Form(bits, size, only) for size in sizes for only in (False, True)), key=price)


def sizes_of(row: int, whole: bool) -> Sequence[int]:
    """The block sizes of rows of so many; with `whole` blocks must divide rows."""
    return [s for s in SIZES if row % s == 0 or not (whole or row < s)] or [SMALLEST]


def order_of(h: Array, size: int) -> Order:
    """The order for rows that multiply x with E[x x^T] = h [k, k], filled up to whole blocks."""
    more = -len(h) % size
    return Order.of(np.pad(h, ((0, more), (0, more))) if more else h, np.float32)


def _part(w: Array, form: Form, dtype: Any, order: Order | None) -> tuple[Array, Array, Array]:
    """Integers, scales and zeros of some rows."""
    bits, size, symmetric = form
    top, middle = 2**bits - 1, np.float32(2 ** (bits - 1))
    filled = np.pad(w.astype(np.float32), ((0, 0), (0, -w.shape[1] % size)))
    blocks = filled.reshape(len(w), -1, size)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    if symmetric:
        reach = np.where(-low > high, -low, -high) / middle
    else:
        reach = (high - low) / np.float32(top)
    scales, zeros = np.ones_like(low), np.zeros_like(low)
    least = np.full(low.shape, np.inf, np.float32)
    off = np.empty_like(blocks)
    for share in SHARES[bits]:
        scale = (reach * np.float32(share)).astype(dtype).astype(np.float32)
        scale = np.where(scale != 0, scale, np.float32(1))
        zero = middle if symmetric else np.clip(np.rint(-low * share / scale), 0, top)
        zero = np.broadcast_to(zero, scale.shape)
        _near(blocks, scale, zero, top, off)
        off *= scale[..., None]
        off -= blocks
        error = np.square(off, out=off).sum(axis=2)
        better = error < least
        least, scales, zeros = (
            np.where(better, new, old)
            for new, old in ((error, least), (scale, scales), (zero, zeros))
        )
    q = _near(blocks, scales, zeros, top, off)
    if order is not None:
        q = _made_up_for(blocks, q, scales, zeros, top, order)
    q += zeros[..., None]
    return q.astype(np.uint8), scales.astype(dtype), zeros.astype(np.uint8)


def _near(blocks: Array, scales: Array, zeros: Array, top: int, out: Array) -> Array:
    """The nearest integers, less the zero points, written to `out`."""
    shift = zeros[..., None]
    np.divide(blocks, scales[..., None], out=out)
    np.rint(out, out=out)
    np.maximum(out, -shift, out=out)
    np.minimum(out, top - shift, out=out)
    return out


def _made_up_for(
    blocks: Array, near: Array, scales: Array, zeros: Array, top: int, order: Order
) -> Array:
    """The integers rounded for what they multiply, in the rows where that leaves less error."""
    rows, size = len(blocks), blocks.shape[2]
    steps, shift = (np.repeat(a, size, axis=1) for a in (scales, zeros))
    w, plain = blocks.reshape(rows, -1), near.reshape(rows, -1)
    return compensated(w, plain, steps, order, -shift, top - shift).reshape(blocks.shape)


def _flat(numbers: Array, bits: int) -> Array:
    """Numbers below 2^bits in a row, the last byte filled up with zeros."""
    return _packed(np.pad(numbers.reshape(-1), (0, -numbers.size % (8 // bits))), bits)


def _packed(numbers: Array, bits: int) -> Array:
    """Numbers below 2^bits, as many to a byte as fit, along the last axis, the first lowest."""
    each = 8 // bits
    packed = numbers[..., 0::each].copy()
    for k in range(1, each):
        packed |= numbers[..., k::each] << (bits * k)
    return packed
