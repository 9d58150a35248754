"""Second moments of features and targets, streamed, and the least squares they answer.

Everything least squares needs of any number of samples is in three small matrices: F^T F, F^T Y
and the sum of Y^2. A part of the rows is held out, so that the ridge is chosen by what it does to
rows it was not fitted on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["RIDGES", "Gram", "Moments"]

Array = np.ndarray[Any, Any]

#: Ridges tried, relative to each feature's own second moment; infinity keeps the weights.
RIDGES = (float("inf"), 1.0, 1e-1, 1e-2, 1e-3, 1e-5)


@dataclasses.dataclass
class Moments:
    """F^T F [groups, n, n], F^T Y [groups, n, m], sum of Y^2 [groups, m], and how many rows."""

    ff: Array
    fy: Array
    yy: Array
    rows: int = 0

    @classmethod
    def zero(cls, groups: int, features: int, outputs: int) -> Moments:
        """No rows yet."""
        return cls(
            np.zeros((groups, features, features)),
            np.zeros((groups, features, outputs)),
            np.zeros((groups, outputs)),
        )

    def add(self, f: Array, y: Array) -> None:
        """Add rows: f [groups, rows, n], y [groups, rows, m]."""
        self.ff += f.transpose(0, 2, 1) @ f
        self.fy += f.transpose(0, 2, 1) @ y
        self.yy += np.einsum("grm,grm->gm", y, y, dtype=np.float64)
        self.rows += f.shape[1]

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.ff + other.ff, self.fy + other.fy, self.yy + other.yy, self.rows + other.rows
        )

    def covariance(self) -> Array:
        """Covariance of the features [groups, n - 1, n - 1], where the last of them is 1."""
        second = self.ff / max(self.rows, 1)
        mean = second[:, -1, :-1]
        covariance: Array = second[:, :-1, :-1] - mean[:, :, None] * mean[:, None, :]
        return covariance

    def error(self, w: Array) -> float:
        """Sum of (Y - F W^T)^2 for w [groups, m, n]."""
        cross = np.einsum("gmn,gnm->", w, self.fy)
        square = np.einsum("gmn,gmn->", w @ self.ff, w)
        return float(max(self.yy.sum() - 2 * cross + square, 0.0))

    def solve(self, prior: Array, ridge: float, free: int) -> Array:
        """The w that minimizes |Y - F w^T|^2 + ridge * sum_n ff[n, n] (w - prior)[n]^2.

        The last `free` features (the bias) are not held to their prior.
        """
        if np.isinf(ridge):
            return prior
        weight = np.einsum("gnn->gn", self.ff) * ridge
        floor = max(float(weight.max()), 1e-30) * 1e-9
        weight = np.maximum(weight, floor)
        if free:
            weight[:, -free:] = floor
        a = self.ff + weight[:, None, :] * np.eye(self.ff.shape[1])
        return prior + np.linalg.solve(a, self.fy - self.ff @ prior.transpose(0, 2, 1)).transpose(
            0, 2, 1
        )


class Gram:
    """Moments of the rows to fit on and of those held out, with a bias feature if wanted."""

    def __init__(self, groups: int, features: int, outputs: int, *, shift: bool) -> None:
        self.shift = shift
        n = features + shift
        self.fitted = Moments.zero(groups, n, outputs)
        self.held = Moments.zero(groups, n, outputs)

    def add(self, f: Array, y: Array, fit: float) -> None:
        """Add rows; the first share `fit` of them to fit on, the rest is held out."""
        if self.shift:
            f = np.concatenate([f, np.ones((*f.shape[:2], 1), f.dtype)], axis=2)
        cut = round(f.shape[1] * fit)
        self.fitted.add(f[:, :cut], y[:, :cut])
        self.held.add(f[:, cut:], y[:, cut:])

    def fit(self, w: Array, b: Array | None) -> tuple[Array, Array | None, float]:
        """Refitted weight and bias, and the ridge chosen (infinity: nothing beats them as is)."""
        prior = w
        if self.shift:
            bias = np.zeros(w.shape[:2]) if b is None else b.reshape(w.shape[:2])
            prior = np.concatenate([w, bias[:, :, None]], axis=2)
        after, ridge, worse = np.inf, RIDGES[0], 0
        for candidate in RIDGES:
            error = self.held.error(self.fitted.solve(prior, candidate, self.shift))
            if error < after:
                after, ridge, worse = error, candidate, 0
            elif (worse := worse + 1) == 2:
                break  # errors fall, then rise, as the ridge shrinks
        best = (self.fitted + self.held).solve(prior, ridge, self.shift)
        if self.shift:
            return best[:, :, :-1], best[:, :, -1].reshape(-1), ridge
        return best, None, ridge
