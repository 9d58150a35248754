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
#: Share of the rows that may belong to features that have left.
SLACK = 0.2


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
    whole = sum(float(((r.weight @ r.covariance) * r.weight).sum()) / r.energy for r in readers)
    cost.extend([max(whole, cost[-1])] * len(rest))
    return Curve(np.array([*order, *rest.tolist()]), np.maximum.accumulate(np.array(cost)))


class _State:
    """A reader while its features leave: weights refitted to those left, H^-1 of those.

    The inverse is `inverse - factor @ factor.T`: each step appends columns (a factorization by
    blocks, pivoted in the order of removal), and only its diagonal blocks are kept up. Rows of
    features that have left are dropped once they are a `SLACK` of all.
    """

    def __init__(self, reader: Reader) -> None:
        h = reader.covariance
        damped = h.copy()
        np.einsum("ii->i", damped)[:] += (DAMPING / len(h) + ROUNDING) * np.trace(h) + 1e-12
        self.weight, self.units, self.energy = reader.weight.copy(), reader.units, reader.energy
        self.inverse = inverse(damped)
        #: No eigenvalue of a part of the inverse is smaller, but for rounding.
        self.floor = 1 / float(np.trace(damped))
        self.factor, self.columns = np.empty_like(h), 0
        #: Rows of `inverse` that the factor, the units and the weights still have.
        self.rows, self.gone = np.arange(len(h)), np.empty(0, np.int64)
        here = np.flatnonzero(self.units >= 0)
        here = here[np.argsort(self.units[here], kind="stable")]
        units, counts = np.unique(self.units[here], return_counts=True)
        #: Units with as many features each: which, their features, diagonal blocks of the inverse.
        self.blocks: list[tuple[Array, Array, Array]] = []
        for count in np.unique(counts):
            which = units[counts == count]
            at = here[np.isin(self.units[here], which)].reshape(len(which), count)
            self.blocks.append((which, at, self.inverse[at[:, :, None], at[:, None, :]]))

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
        rows = self.inverse[np.ix_(self.rows, self.rows[out])] - factor @ factor[out].T
        values, vectors = np.linalg.eigh(rows[out])
        root = vectors / np.sqrt(np.maximum(values, max(values[-1] * 1e-12, self.floor)))
        added, moved = rows @ root, self.weight[:, out] @ root
        self.weight -= moved @ added.T
        self.factor[:, self.columns : self.columns + len(out)] = added
        self.columns += len(out)
        left = []
        for which, at, block in self.blocks:
            stays = ~np.isin(which, leaving)
            some = added[at[stays]]
            left.append((which[stays], at[stays], block[stays] - some @ some.transpose(0, 2, 1)))
        self.blocks, self.gone = left, np.concatenate([self.gone, out])
        if len(self.gone) > SLACK * len(self.units):
            self._drop()
        return float((moved**2).sum()) / self.energy

    def _drop(self) -> None:
        """Forget the rows of features that have left."""
        stays = np.ones(len(self.units), bool)
        stays[self.gone] = False
        place = np.cumsum(stays) - 1
        self.weight, self.units = self.weight[:, stays], self.units[stays]
        self.rows = self.rows[stays]
        factor = np.empty((len(self.units), self.factor.shape[1]))
        factor[:, : self.columns] = self.factor[stays, : self.columns]
        self.factor, self.gone = factor, self.gone[:0]
        self.blocks = [(which, place[at], block) for which, at, block in self.blocks]
