"""Least squares with a ridge, from moments of features F and targets Y on samples.

A part of the rows is held out, so that the ridge is chosen by what it does to rows it was not
fitted on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.calibration.moments import Moments

__all__ = ["LEAF", "RIDGES", "Gram", "error", "fit_weighted", "inverse", "solve"]

Array = np.ndarray[Any, Any]

#: Ridges tried, relative to each feature's own second moment; infinity keeps the weights.
RIDGES = (float("inf"), 1.0, 1e-1, 1e-2, 1e-3, 1e-5)
#: Steps of conjugate gradients, and what a row of no weight counts.
STEPS, LEVEL = 4, 0.1
#: Matrices up to this size are inverted at once.
LEAF = 256


def error(m: Moments, w: Array) -> Array:
    """Sum of (Y - F w^T)^2 for w [groups, m, n], by output [groups, m]."""
    cross = np.einsum("gmn,gnm->gm", w, m.fy)
    square = np.einsum("gmn,gmn->gm", w @ m.ff, w)
    return np.asarray(np.maximum(m.yy - 2 * cross + square, 0.0))


def solve(m: Moments, prior: Array, ridge: float, free: int) -> Array:
    """The w that minimizes |Y - F w^T|^2 + ridge * sum_n ff[n, n] (w - prior)[n]^2.

    The last `free` features (the bias) are not held to their prior.
    """
    if np.isinf(ridge):
        return prior
    a = m.ff + _ridge(m, ridge, free)[:, None, :] * np.eye(m.ff.shape[1])
    return prior + np.linalg.solve(a, m.fy - m.ff @ prior.transpose(0, 2, 1)).transpose(0, 2, 1)


def _ridge(m: Moments, ridge: float, free: int) -> Array:
    """What is added to the diagonal [groups, n]; next to nothing for the last `free`."""
    weight: Array = np.einsum("gnn->gn", m.ff) * ridge
    floor = max(float(weight.max()), 1e-30) * 1e-9
    weight = np.maximum(weight, floor)
    if free:
        weight[:, -free:] = floor
    return weight


def inverse(a: Array) -> Array:
    """The inverse of a symmetric positive definite matrix, by halves.

    With the Schur complement of one half nearly all is matrix products: half the time of a general
    inverse.
    """
    if len(a) <= LEAF:
        found: Array = np.linalg.inv(a)
        return (found + found.T) / 2
    k = len(a) // 2
    first = inverse(a[:k, :k])
    across = first @ a[:k, k:]
    rest = inverse(a[k:, k:] - a[k:, :k] @ across)
    corner = across @ rest
    made = np.empty_like(a)
    made[:k, :k], made[k:, k:] = first + corner @ across.T, rest
    made[:k, k:], made[k:, :k] = -corner, -corner.T
    return made


def fit_weighted(
    f: Array,
    y: Array,
    weights: Array,
    start: tuple[Array, Array],
    prior: tuple[Array, Array],
    ridge: float,
) -> tuple[Array, Array]:
    """Weight [m, n] and bias [m] with less of the sum of weights * (y - w f - b)^2.

    Conjugate gradients from `start` on, preconditioned by the problem without weights: a few steps
    go most of the way.

    Args:
        f: [rows, n], float32.
        y: [rows, m].
        weights: of the squares [rows, m]; only their ratios within an output count.
        start: weight and bias.
        prior: likewise, what `ridge` holds the weight to.
        ridge: relative to each feature's own second moment.
    """
    f = np.concatenate([f, np.ones((len(f), 1), f.dtype)], axis=1)
    x, held = (np.concatenate([w, b[:, None]], axis=1).T for w, b in (start, prior))
    # rows without influence count a little: the samples do not show all there is
    share = (LEVEL + (1 - LEVEL) * weights / np.maximum(weights.mean(0), 1e-30)).astype(f.dtype)
    square = (f.T @ f).astype(np.float64)
    add = ridge * np.diag(square)[:, None]
    add[-1] = 1e-9 * add.max()
    root = inverse(square + np.diag(add[:, 0]))
    rest = f.T @ (share * (y - f @ x.astype(f.dtype))) + add * (held - x)
    step = root @ rest
    way, now = step, (rest * step).sum(0)
    for _ in range(STEPS):
        turned = f.T @ (share * (f @ way.astype(f.dtype))) + add * way
        far = now / np.maximum((way * turned).sum(0), 1e-30)
        x, rest = x + far * way, rest - far * turned
        step = root @ rest
        after = (rest * step).sum(0)
        way, now = step + after / np.maximum(now, 1e-30) * way, after
    return x[:-1].T, x[-1]


class Gram:
    """Moments of the rows to fit on and of those held out, with a bias feature if wanted."""

    def __init__(self, groups: int, features: int, outputs: int, *, shift: bool) -> None:
        self.shift = shift
        self._again: tuple[Array, Array] | None = None
        n = features + shift
        self.fitted = Moments.zero(groups, n, outputs)
        self.held = Moments.zero(groups, n, outputs)

    def add(self, f: Array, y: Array, fit: float) -> None:
        """Add rows; the first share `fit` of them to fit on, the rest is held out."""
        f = self._shifted(f)
        cut = round(f.shape[1] * fit)
        self.fitted.add(f[:, :cut], y[:, :cut])
        self.held.add(f[:, cut:], y[:, cut:])

    def fit(self, w: Array, b: Array | None) -> tuple[Array, Array | None, float]:
        """Refitted weight and bias, and the ridge chosen (infinity: nothing beats them as is)."""
        prior = w
        if self.shift:
            bias = np.zeros(w.shape[:2]) if b is None else b.reshape(w.shape[:2])
            prior = np.concatenate([w, bias[:, :, None]], axis=2)
        # every output counts alike: a few of much variance would hide what the others lose
        scale = np.maximum(self.held.yy, 1e-12 * self.held.yy.max(initial=1e-30))
        after, ridge, worse = np.inf, RIDGES[0], 0
        for candidate in RIDGES:
            off = (error(self.held, solve(self.fitted, prior, candidate, self.shift)) / scale).sum()
            if off < after:
                after, ridge, worse = off, candidate, 0
            elif (worse := worse + 1) == 2:
                break  # errors fall, then rise, as the ridge shrinks
        self._prior, self._chosen = prior, ridge
        return *self._parts(solve(self.fitted + self.held, prior, ridge, self.shift)), ridge

    def cross(self, f: Array, y: Array) -> Array:
        """Sum of f y^T over rows [groups, n, m]."""
        found: Array = self._shifted(f).transpose(0, 2, 1) @ y
        return found

    def fit_again(self, cross: Array) -> tuple[Array, Array | None]:
        """Weight and bias for other targets of all rows, at the ridge that `fit` chose.

        Args:
            cross: the sum of `cross` over the rows.
        """
        if self._again is None:
            m = self.fitted + self.held
            ridge = _ridge(m, self._chosen, self.shift)
            damped = m.ff + ridge[:, None, :] * np.eye(m.ff.shape[1])
            solution = np.stack([inverse(a) for a in damped])
            self._again = solution, ridge[:, :, None] * self._prior.transpose(0, 2, 1)
        solution, held_to = self._again
        return self._parts((solution @ (cross + held_to)).transpose(0, 2, 1))

    def _shifted(self, f: Array) -> Array:
        if not self.shift:
            return f
        return np.concatenate([f, np.ones((*f.shape[:2], 1), f.dtype)], axis=2)

    def _parts(self, w: Array) -> tuple[Array, Array | None]:
        """Weight and bias."""
        return (w[:, :, :-1], w[:, :, -1].reshape(-1)) if self.shift else (w, None)
