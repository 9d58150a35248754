"""Reconstruction error: units chosen by how well the rest can stand in for them.

The readers of a dimension compute W x. Removing units and refitting W to the rest costs, in closed
form (Optimal Brain Surgeon; Hassibi and Stork 1993, for blocks: Kurtic et al., arXiv:2203.07259),

    W_R (H^-1_RR)^-1 W_R^T,    H = cov(x),  R the unit's features

and leaves W - W_R (H^-1_RR)^-1 H^-1_R: as weights, a Schur complement as H^-1. Going on so, unit
after unit, gives the order of removal and the exact cost of every count.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from graphopt.passes.prune.choice import Curve
from graphopt.passes.prune.least_squares import inverse

__all__ = ["DAMPING", "Reader", "eliminate"]

Array = np.ndarray[Any, Any]

#: Added to the covariance's diagonal, as a share of its mean: what samples did not excite.
DAMPING = 1e-3
#: The same as a share of its sum: moments are summed in float32, and must stay positive definite.
ROUNDING = 1e-6
#: Units leave in this many steps; those that leave together are chosen together.
STEPS = 64
#: What a unit costs whose cost is no number, as where moments are singular: it stays.
DEAR = 1e100
#: Once this share of the features has left, what is left is inverted anew.
SLACK = 0.3
#: Matrices from this size on are inverted in float32 where that is exact to a share of `EXACT`.
LARGE, EXACT = 1024, 0.05


@dataclasses.dataclass
class Reader:
    """One linear operator (or one group of it) that reads a dimension.

    Attributes:
        weight: [outputs, features].
        covariance: [features, features] of what it reads.
        units: unit of each feature; -1 belongs to none and stays.
        energy: variance of what its output goes into, the scale of errors.
    """

    weight: Array
    covariance: Array
    units: Array
    energy: float


def eliminate(readers: list[Reader], size: int, least: int) -> Curve:
    """Order of removal and cost of the units of a dimension, down to `least` kept.

    Costs are errors of the readers' outputs relative to their energy, summed over readers, with
    the weights refitted. Units beyond `least` are listed last, at the cost of losing all.
    """
    states = [_State(r) for r in readers]
    alive = np.ones(size, bool)
    order: list[int] = []
    cost = [0.0]
    step = max(1, round(size / STEPS))
    while alive.sum() > least:
        scores = np.asarray(sum(s.scores(size) for s in states))
        scores = np.where(alive, np.nan_to_num(scores, nan=DEAR, posinf=DEAR), np.inf)
        leaving = np.argsort(scores, kind="stable")[: min(step, int(alive.sum()) - least)]
        price = min(np.nan_to_num(sum(s.remove(leaving) for s in states), nan=DEAR), DEAR)
        some = scores[leaving] + 1e-300
        shares = some / some.sum()
        cost.extend((cost[-1] + np.cumsum(shares * price)).tolist())
        order.extend(leaving.tolist())
        alive[leaving] = False
    rest = np.flatnonzero(alive)
    cost.extend([max(sum(s.whole for s in states), cost[-1])] * len(rest))
    return Curve(np.array([*order, *rest.tolist()]), np.maximum.accumulate(np.array(cost)))


class _State:
    """A reader while its features leave: weights refitted to those left, H^-1 of those.

    The inverse is `inverse - factor @ factor.T`: each step appends columns (a factorization by
    blocks, pivoted in the order of removal), and only its diagonal blocks are kept up. What is left
    is inverted anew once a `SLACK` has left: that costs less than more columns, and forgets the
    rounding of the differences.

    Attributes:
        whole: what losing all features costs.
        inverse: of what was left when it was last inverted.
        factor, columns: what has come off it since, and how many columns that is.
        gone: features that have left since.
        blocks: units with as many features each: which, their features, diagonal blocks of H^-1.
    """

    inverse: Array
    factor: Array
    columns: int
    gone: Array
    blocks: list[tuple[Array, Array, Array]]

    def __init__(self, reader: Reader) -> None:
        h = reader.covariance
        add = (DAMPING / len(h) + ROUNDING) * float(np.trace(h)) + 1e-12
        self.h: Array = h.astype(np.float32 if len(h) >= LARGE else np.float64)
        self.weight, self.units = reader.weight.astype(self.h.dtype), reader.units
        self.energy = reader.energy
        self.whole = float(((self.weight @ self.h) * self.weight).sum()) / self.energy
        np.einsum("ii->i", self.h)[:] += self.h.dtype.type(add)
        #: No eigenvalue of a part of the inverse is smaller, but for rounding.
        self.floor = 1 / float(np.trace(self.h))
        self._invert()

    def scores(self, size: int) -> Array:
        """Per unit what removing it alone would cost (0 for units without features here)."""
        found = np.zeros(size)
        for which, at, block in self.blocks:
            w = self.weight.T[at]  # units, features, outputs
            square = np.linalg.solve(block, w @ w.transpose(0, 2, 1))
            found[which] = np.maximum(np.einsum("uff->u", square), 0) / self.energy
        return found

    def remove(self, leaving: Array) -> float:
        """Remove units, refit the rest; returns the cost."""
        out = np.flatnonzero(np.isin(self.units, leaving))
        if not len(out):
            return 0.0
        factor = self.factor[:, : self.columns]
        rows = self.inverse[:, out] - factor @ factor[out].T
        values, vectors = np.linalg.eigh(rows[out].astype(np.float64))
        root = vectors / np.sqrt(np.maximum(values, max(values[-1] * 1e-12, self.floor)))
        root = root.astype(rows.dtype)
        added, moved = rows @ root, self.weight[:, out] @ root
        self.weight -= moved @ added.T
        price = float(np.square(moved).sum(dtype=np.float64)) / self.energy
        self.gone = np.concatenate([self.gone, out])
        if len(self.gone) > SLACK * len(self.units):
            self._drop()
            return price
        self.factor[:, self.columns : self.columns + len(out)] = added
        self.columns += len(out)
        left = []
        for which, at, block in self.blocks:
            stays = ~np.isin(which, leaving)
            some = added[at[stays]]
            left.append((which[stays], at[stays], block[stays] - some @ some.transpose(0, 2, 1)))
        self.blocks = left
        return price

    def _invert(self) -> None:
        """Invert what is left; no features have left since."""
        self.inverse = _inverse(self.h)
        self.gone = np.empty(0, np.int64)
        columns = int(SLACK * len(self.h))
        self.factor, self.columns = np.empty((len(self.h), columns), self.h.dtype), 0
        here = np.flatnonzero(self.units >= 0)
        here = here[np.argsort(self.units[here], kind="stable")]
        units, counts = np.unique(self.units[here], return_counts=True)
        self.blocks = []
        for count in np.unique(counts):
            which = units[counts == count]
            at = here[np.isin(self.units[here], which)].reshape(len(which), count)
            self.blocks.append((which, at, self.inverse[at[:, :, None], at[:, None, :]]))

    def _drop(self) -> None:
        """Forget the features that have left."""
        stays = np.ones(len(self.units), bool)
        stays[self.gone] = False
        self.weight, self.units = self.weight[:, stays], self.units[stays]
        self.h = self.h[np.ix_(stays, stays)]
        self._invert()


def _inverse(h: Array) -> Array:
    """The inverse, by float64 where `h` is float32 and its inverse would not be exact enough."""
    found = inverse(h)
    if h.dtype == np.float64:
        return found
    probe = np.random.default_rng(0).standard_normal((len(h), 4)).astype(h.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # of what is no inverse at all
        solution = found @ probe
        correction = found @ (probe - h @ solution)  # what a step of iterative refinement makes
        off = np.linalg.norm(correction) / np.linalg.norm(solution)
    return found if off < EXACT else inverse(h.astype(np.float64)).astype(h.dtype)
