"""Quantization grids: scale and zero point, the integers a float tensor is rounded to.

q = clip(round(x / scale) + zero_point, least, greatest)        x ~ (q - zero_point) * scale
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from graphopt.calibration.ranges import Range

__all__ = ["Grid", "activation_grid", "quantize", "weight_scales"]

Array = np.ndarray[Any, Any]

#: Scales below this are raised to it: a constant zero is represented exactly by any scale.
SMALLEST_SCALE = 1e-12


@dataclasses.dataclass(frozen=True)
class Grid:
    """One scale and zero point for a whole tensor.

    Attributes:
        scale: float32 step between neighbouring integers.
        zero: the integer that stands for 0.0.
        dtype: "uint8", "int8" or "uint16".
    """

    scale: float
    zero: int
    dtype: str = "uint8"

    @property
    def domain(self) -> str:
        """Whose Q and DQ round to it: the standard's have 16 bits from opset 21 on."""
        return "com.microsoft" if self.dtype == "uint16" else ""

    @property
    def span(self) -> Range:
        """The interval that is represented without clipping."""
        info = np.iinfo(self.dtype)
        return Range((info.min - self.zero) * self.scale, (info.max - self.zero) * self.scale)


def activation_grid(found: Range, dtype: str, *, symmetric: bool = False) -> Grid:
    """The grid over `found`, widened to hold 0.0 (padding and zero weights must stay exact).

    An asymmetric grid has its zero point rounded first and the scale stretched to cover both ends.
    """
    lo, hi = min(found.lo, 0.0), max(found.hi, 0.0)
    info = np.iinfo(dtype)
    if symmetric:
        middle = (info.min + info.max + 1) // 2
        scale = _positive(max(-lo, hi) / (info.max - middle))
        return Grid(scale, middle, dtype)
    scale = _positive((hi - lo) / (info.max - info.min))
    zero = int(np.clip(np.round(info.min - lo / scale), info.min, info.max))
    return Grid(scale, zero, dtype)


def weight_scales(array: Array, axis: int | None, *, bits: int = 8) -> Array:
    """Symmetric scales of a weight: one per index of `axis`, or a scalar when it is None.

    max|w| becomes 2^(bits-1) - 1, so that -128 is never used.
    """
    top = 2 ** (bits - 1) - 1
    over = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    peak = np.abs(array).max(axis=over) if array.size else np.zeros(())
    scales = np.asarray(peak, np.float32) / np.float32(top)
    return np.asarray(np.maximum(scales, SMALLEST_SCALE), np.float32)


def quantize(array: Array, scales: Array, axis: int | None, *, top: int = 127) -> Array:
    """round(array / scales), clipped to [-top, top], as int8."""
    if axis is not None:
        scales = scales.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return np.clip(np.rint(array / scales), -top, top).astype(np.int8)


def _positive(scale: float) -> float:
    return float(np.float32(max(scale, SMALLEST_SCALE)))
