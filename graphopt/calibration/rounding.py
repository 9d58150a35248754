"""Rounding weights for what they multiply: errors of one weight are made up for by the others.

With H = E[x x^T] over samples, a row w of the weight rounded to r moves its output by

    E[((r - w) x)^2]  =  (r - w) H (r - w)^T

Rounding each weight to its nearest step ignores what inputs have in common. Here weights are
rounded one after another, and the error of each is taken up by those still to come, in closed form
(optimal brain quantization in a fixed order; Frantar et al., GPTQ, ICLR 2023; what AdaRound finds
by gradients).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["Order", "compensated", "errors"]

Array = np.ndarray[Any, Any]

#: Added to the diagonal of H, relative to its mean: few samples leave it singular.
DAMP = 0.01
#: Columns rounded before the ones behind them are told.
BLOCK = 64


def errors(off: Array, h: Array) -> Array:
    """E[(off x)^2] of each row of off [o, k], to seven digits."""
    off, h = off.astype(np.float32), h.astype(np.float32)
    return np.asarray(np.einsum("oi,oi->o", off @ h, off))


@dataclasses.dataclass(frozen=True)
class Order:
    """The order weights are rounded in, by falling H[k, k], and what each asks of later ones.

    Attributes:
        h: the second moment H [k, k].
        places: the columns in that order.
        upper: the upper Cholesky factor of the inverse of H, in that order.
    """

    h: Array
    places: Array
    upper: Array

    @classmethod
    def of(cls, h: Array) -> Order:
        """From a second moment, singular or not."""
        places = np.argsort(-np.diag(h), kind="stable")
        sorted_ = h[np.ix_(places, places)]
        damp = max(DAMP * float(np.mean(np.diag(h))), 1e-12)
        return cls(h, places, np.linalg.cholesky(np.linalg.inv(sorted_ + np.eye(len(h)) * damp)).T)


def compensated(w: Array, steps: Array, order: Order, low: Array | int, high: Array | int) -> Array:
    """Integers for w [o, k] in `steps`, between `low` and `high` (these broadcast against w)."""
    places, upper = order.places, order.upper
    # columns lie one after another: each is rounded as a whole
    left, steps, low, high = (
        np.ascontiguousarray(np.broadcast_to(a, w.shape)[:, places].T)
        for a in (w, steps, low, high)
    )
    done = np.empty_like(left)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        off = np.empty((stop - start, left.shape[1]))
        for k in range(start, stop):
            np.rint(left[k] / steps[k], out=done[k])
            np.clip(done[k], low[k], high[k], out=done[k])
            off[k - start] = (left[k] - done[k] * steps[k]) / upper[k, k]
            left[k + 1 : stop] -= upper[k, k + 1 : stop, None] * off[k - start]
        left[stop:] -= upper[start:stop, stop:].T @ off
    out = np.empty(w.shape, done.dtype)
    out[:, places] = done.T
    return out
