"""Histogram: the distribution of a value of any magnitude, in one pass and fixed memory.

Bins are the leading bits of a float32 (sign, exponent, six bits of mantissa), so their width is at
most 1.6 % of their magnitude, no range has to be known before, and an outlier spoils nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

__all__ = ["Histogram"]

Array = np.ndarray[Any, Any]

SHIFT = 17  # bits of a float32 that are dropped: 32 - 1 - 8 - 6
BINS = 1 << (32 - SHIFT)
CHUNK = 1 << 20
#: Of a larger array every k-th value is counted, k odd, so that about so many are.
MOST = 1 << 20
#: Share of the values that "percentile" leaves outside.
OUTSIDE = 1e-5
LEVELS = 255
#: Squared error that "entropy" may leave, times the least one: a few levels clipped away are no
#: loss to a distribution, but they are to the model.
CLIPPED = 4.0
#: Fractions of the whole range that are tried as clipping thresholds.
TRIED = np.concatenate([np.geomspace(1e-3, 0.2, 40), np.linspace(0.22, 1.0, 40)])


class Histogram:
    """Counts of float values by bin."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)

    def add(self, values: Array) -> None:
        """Count an array of finite values."""
        every = values.size // MOST | 1
        flat = np.ascontiguousarray(values.reshape(-1)[::every], dtype=np.float32)
        for start in range(0, flat.size, CHUNK):
            bits = flat[start : start + CHUNK].view(np.uint32) >> SHIFT
            self.counts += np.bincount(bits, minlength=BINS)

    def sorted(self) -> tuple[Array, Array]:
        """Bin centres in ascending order and their counts, without empty bins."""
        used = np.flatnonzero(self.counts)
        low = (used.astype(np.uint32) << SHIFT).view(np.float32).astype(np.float64)
        high = ((used.astype(np.uint32) << SHIFT) | np.uint32((1 << SHIFT) - 1)).view(np.float32)
        centres = (low + high.astype(np.float64)) / 2
        centres[np.abs(centres) < np.finfo(np.float32).tiny] = 0.0
        order = np.argsort(centres, kind="stable")
        return centres[order], self.counts[used][order]

    def clip(self, method: Literal["percentile", "entropy", "mse"] | str) -> tuple[float, float]:
        """The interval that a method keeps; values outside are clipped to it."""
        centres, counts = self.sorted()
        if centres.size == 0:
            return 0.0, 0.0
        # a bin's own width beyond its centre, so that no clipping means none
        lo, hi = min(centres[0] * 1.01, 0.0), max(centres[-1] * 1.01, 0.0)
        if method == "percentile":
            total = np.cumsum(counts)
            outside = OUTSIDE * total[-1]
            low = centres[np.searchsorted(total, outside)]
            high = centres[min(np.searchsorted(total, total[-1] - outside), centres.size - 1)]
            return (
                (lo if low == centres[0] else min(low, 0.0)),
                (hi if high == centres[-1] else max(high, 0.0)),
            )
        loss = _squared
        if method == "entropy":
            most = CLIPPED * min(_squared(centres, counts, lo * f, hi * f) for f in TRIED)

            def loss(centres: Array, counts: Array, lo: float, hi: float) -> float:
                spoiled = _squared(centres, counts, lo, hi) > most
                return np.inf if spoiled else _divergence(centres, counts, lo, hi)

        best = min(((lo * f, hi * f) for f in TRIED), key=lambda c: loss(centres, counts, *c))
        # then each end by itself: a short tail on one side need not share the other's clipping
        lows = [
            (best[0] * f, best[1]) for f in (1.0, 1.25, 1.5, 2.0, 4.0, 8.0) if best[0] * f >= lo
        ]
        best = min(lows, key=lambda c: loss(centres, counts, *c))
        highs = [
            (best[0], best[1] * f) for f in (1.0, 1.25, 1.5, 2.0, 4.0, 8.0) if best[1] * f <= hi
        ]
        return min(highs, key=lambda c: loss(centres, counts, *c))


def _squared(centres: Array, counts: Array, lo: float, hi: float) -> float:
    """Expected squared error of rounding to 256 levels on [lo, hi]."""
    step = max((hi - lo) / LEVELS, 1e-30)
    beyond = np.maximum(centres - hi, 0) + np.maximum(lo - centres, 0)
    # bins far wider than a step are spread over it; narrower ones near zero round to zero
    inside = np.where(np.abs(centres) < step / 2, centres**2, step**2 / 12)
    return float(np.dot(counts, np.where(beyond > 0, beyond**2, inside)))


def _divergence(centres: Array, counts: Array, lo: float, hi: float) -> float:
    """Kullback-Leibler divergence of the rounded, clipped distribution from the true one.

    P is the distribution with what is clipped moved to the ends; Q spreads each level's mass over
    the bins in it in proportion to their width. Zeros are exact on every grid and left out.
    """
    centres, counts = centres[centres != 0], counts[centres != 0]
    step = max((hi - lo) / LEVELS, 1e-30)
    kept = (centres >= lo) & (centres <= hi)
    if not kept.any():
        return np.inf
    true = counts[kept].astype(np.float64)
    inner = true.copy()
    true[0] += counts[centres < lo].sum()
    true[-1] += counts[centres > hi].sum()
    level = np.rint(centres[kept] / step).astype(np.int64)
    level -= level[0]
    width = np.maximum(np.abs(centres[kept]), 1e-30)
    mass = np.bincount(level, inner)
    extent = np.bincount(level, width)
    spread = mass[level] * width / extent[level]
    p, q = true / true.sum(), spread / max(spread.sum(), 1e-30)
    return float(np.sum(p * np.log(np.maximum(p, 1e-30) / np.maximum(q, 1e-30))))
