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
    """E[(off x)^2] of each row of off [o, k]."""
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
    left, steps = w[:, places].copy(), np.broadcast_to(steps, w.shape)[:, places]
    low, high = (np.broadcast_to(a, w.shape)[:, places] for a in (low, high))
    done = np.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        stop = min(start + BLOCK, left.shape[1])
        off = np.empty((len(left), stop - start))
        for k in range(start, stop):
            done[:, k] = np.clip(np.rint(left[:, k] / steps[:, k]), low[:, k], high[:, k])
            off[:, k - start] = (left[:, k] - done[:, k] * steps[:, k]) / upper[k, k]
            left[:, k + 1 : stop] -= off[:, k - start, None] * upper[k, k + 1 : stop]
        left[:, stop:] -= off @ upper[start:stop, stop:]
    out = np.empty_like(done)
    out[:, places] = done
    return out
