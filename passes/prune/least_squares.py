"""Least squares with a ridge, from moments of features F and targets Y on samples.

A part of the rows is held out, so that the ridge is chosen by what it does to rows it was not
fitted on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.calibration.moments import Moments

__all__ = ["RIDGES", "Gram", "error", "solve"]

Array = np.ndarray[Any, Any]

#: Ridges tried, relative to each feature's own second moment; infinity keeps the weights.
RIDGES = (float("inf"), 1.0, 1e-1, 1e-2, 1e-3, 1e-5)


def error(m: Moments, w: Array) -> float:
    """Sum of (Y - F w^T)^2 for w [groups, m, n]."""
    cross = np.einsum("gmn,gnm->", w, m.fy)
    square = np.einsum("gmn,gmn->", w @ m.ff, w)
    return float(max(m.yy.sum() - 2 * cross + square, 0.0))


def solve(m: Moments, prior: Array, ridge: float, free: int) -> Array:
    """The w that minimizes |Y - F w^T|^2 + ridge * sum_n ff[n, n] (w - prior)[n]^2.

    The last `free` features (the bias) are not held to their prior.
    """
    if np.isinf(ridge):
        return prior
    weight = np.einsum("gnn->gn", m.ff) * ridge
    floor = max(float(weight.max()), 1e-30) * 1e-9
    weight = np.maximum(weight, floor)
    if free:
        weight[:, -free:] = floor
    a = m.ff + weight[:, None, :] * np.eye(m.ff.shape[1])
    return prior + np.linalg.solve(a, m.fy - m.ff @ prior.transpose(0, 2, 1)).transpose(0, 2, 1)


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
            off = error(self.held, solve(self.fitted, prior, candidate, self.shift))
            if off < after:
                after, ridge, worse = off, candidate, 0
            elif (worse := worse + 1) == 2:
                break  # errors fall, then rise, as the ridge shrinks
        best = solve(self.fitted + self.held, prior, ridge, self.shift)
        if self.shift:
            return best[:, :, :-1], best[:, :, -1].reshape(-1), ridge
        return best, None, ridge
