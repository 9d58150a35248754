"""Rounding weights for what they multiply: errors of one weight are made up for by the others.

With H = E[x x^T] over samples, a row w of the weight rounded to r moves its output by

    E[((w - r) x)^2]  =  (w - r) H (w - r)^T  =  sum_k D[k] (((w - r) U)[k])^2,    H = U D U^T

with U upper triangular and ones on its diagonal. Rounding each weight to its nearest step ignores
what inputs have in common. Here weights are rounded one after another, each as far off as makes up
for what those before it leave of the same term: ((w - r) U)[k] is its own rounding error alone
(optimal brain quantization in a fixed order; Frantar et al., GPTQ, ICLR 2023, in the form of Chee
et al., QuIP, NeurIPS 2023, which needs no inverse; what AdaRound finds by gradients).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["DAMP", "Order", "compensated"]

Array = np.ndarray[Any, Any]

#: Added to the diagonal of H, relative to its mean: few samples leave it singular.
DAMP = 0.01
#: Columns rounded one by one before the ones behind them are told, and those summed together.
FEW, BLOCK = 16, 1024


@dataclasses.dataclass(frozen=True)
class Order:
    """The order weights are rounded in, by falling H[k, k], and what each asks of later ones.

    Attributes:
        places: the columns in that order.
        upper: U, in that order [k, k].
        pivots: D [k].
        damp: what was added to the diagonal of H.
    """

    places: Array
    upper: Array
    pivots: Array
    damp: float

    @classmethod
    def of(cls, h: Array, dtype: Any = np.float64) -> Order:
        """From a second moment [k, k], singular or not; `dtype` is what is computed in."""
        diagonal = np.diag(h)
        places = np.argsort(-diagonal, kind="stable")
        damp = max(DAMP * float(np.mean(diagonal)), 1e-12)
        back = places[::-1]
        turned = np.take(np.take(h.astype(dtype, copy=False), back, 0), back, 1)
        np.einsum("kk->k", turned)[:] += damp
        try:
            root = np.linalg.cholesky(turned)[::-1, ::-1]
        except np.linalg.LinAlgError:  # one direction is all there is, to seven digits
            if dtype == np.float64:
                raise
            wide = cls.of(h)
            return cls(places, wide.upper.astype(dtype), wide.pivots.astype(dtype), damp)
        pivots = np.diag(root)
        return cls(places, root / pivots, np.square(pivots), damp)

    def errors(self, off: Array) -> Array:
        """E[(off x)^2] for each column of off [k, o], whose rows are in this order."""
        total = np.zeros(off.shape[1], off.dtype)
        for start in range(0, len(off), BLOCK):
            part = slice(start, start + BLOCK)
            total += self._weighed(self.upper[: part.stop, part].T @ off[: part.stop], part)
        return np.asarray(total - self._damped(off))

    def _weighed(self, terms: Array, part: slice = slice(None)) -> Array:
        return np.asarray(self.pivots[part] @ np.square(terms))

    def _damped(self, off: Array) -> Array:
        return np.asarray(np.square(off).sum(axis=0) * off.dtype.type(self.damp))


def compensated(
    w: Array, near: Array, steps: Array, order: Order, low: Array | int, high: Array | int
) -> Array:
    """Integers for w [o, k] in `steps`, between `low` and `high` (these broadcast against w).

    Rows in which that leaves no less than the integers `near` does are as there. All is computed in
    the dtype of `order`.
    """
    places, upper = order.places, order.upper
    # columns lie one after another: each is rounded as a whole
    w, plain, steps, low, high = (
        np.ascontiguousarray(np.broadcast_to(a, w.shape)[:, places].T, upper.dtype)
        for a in (w, near, steps, low, high)
    )
    left, done, off = w.copy(), np.empty_like(w), np.empty_like(w)

    for stop in range(FEW, len(w) + FEW, FEW):
        for k in range(stop - FEW, min(stop, len(w))):
            np.rint(left[k] / steps[k], out=done[k])
            np.clip(done[k], low[k], high[k], out=done[k])
            made = done[k] * steps[k]
            left[k] -= made
            np.subtract(w[k], made, out=off[k])
            left[k + 1 : stop] += upper[k, k + 1 : stop, None] * off[k]
        count = stop & -stop  # as many as halving and halving again tells at once
        before, behind = slice(stop - count, stop), slice(stop, stop + count)
        left[behind] += upper[before, behind].T @ off[before]
    less = order._weighed(left) - order._damped(off) < order.errors(w - plain * steps)
    out = np.empty((w.shape[1], w.shape[0]), w.dtype)
    out[:, places] = np.where(less, done, plain).T
    return out
