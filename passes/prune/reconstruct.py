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

__all__ = ["DAMPING", "Reader", "eliminate"]

Array = np.ndarray[Any, Any]

#: Added to the covariance's diagonal, as a share of its mean: what samples did not excite.
DAMPING = 1e-3
#: Units leave in this many steps; those that leave together are chosen together.
STEPS = 64


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
    states = [_State.of(r) for r in readers]
    alive = np.ones(size, bool)
    order: list[int] = []
    cost = [0.0]
    step = max(1, round(size / STEPS))
    while alive.sum() > least:
        scores = sum(s.scores(size) for s in states)
        scores = np.where(alive, scores, np.inf)
        leaving = np.argsort(scores, kind="stable")[: min(step, int(alive.sum()) - least)]
        price = sum(s.remove(leaving) for s in states)
        shares = scores[leaving] / max(float(scores[leaving].sum()), 1e-300)
        cost.extend((cost[-1] + np.cumsum(shares * price)).tolist())
        order.extend(leaving.tolist())
        alive[leaving] = False
    rest = np.flatnonzero(alive)
    whole = sum(
        float(np.einsum("mn,nk,mk->", r.weight, r.covariance, r.weight)) / r.energy for r in readers
    )
    cost.extend([max(whole, cost[-1])] * len(rest))
    return Curve(np.array([*order, *rest.tolist()]), np.maximum.accumulate(np.array(cost)))


class _State:
    """A reader's weights and inverse covariance over the features that are left."""

    def __init__(self, weight: Array, inverse: Array, units: Array, energy: float) -> None:
        self.weight, self.inverse, self.units, self.energy = weight, inverse, units, energy

    @classmethod
    def of(cls, reader: Reader) -> _State:
        h = reader.covariance
        damping = DAMPING * float(np.trace(h)) / len(h) + 1e-12
        return cls(
            reader.weight.copy(),
            np.linalg.inv(h + damping * np.eye(len(h))),
            reader.units.copy(),
            reader.energy,
        )

    def scores(self, size: int) -> Array:
        """Per unit what removing it alone would cost (0 for units without features here)."""
        found = np.zeros(size)
        here = np.flatnonzero(self.units >= 0)
        if not len(here):
            return found
        by_unit = here[np.argsort(self.units[here], kind="stable")]
        units, counts = np.unique(self.units[by_unit], return_counts=True)
        for count in np.unique(counts):
            which = units[counts == count]
            at = by_unit[np.isin(self.units[by_unit], which)].reshape(len(which), count)
            blocks = self.inverse[at[:, :, None], at[:, None, :]]
            w = self.weight[:, at].transpose(1, 2, 0)  # units, features, outputs
            found[which] = np.einsum("ufm,ufm->u", w, np.linalg.solve(blocks, w)) / self.energy
        return found

    def remove(self, leaving: Array) -> float:
        """Remove units, refit the rest; returns the cost."""
        out = np.isin(self.units, leaving)
        if not out.any():
            return 0.0
        stay = ~out
        block = np.linalg.inv(self.inverse[np.ix_(out, out)])
        w = self.weight[:, out]
        cost = float(np.einsum("mr,rs,ms->", w, block, w, optimize=True)) / self.energy
        across = block @ self.inverse[np.ix_(out, stay)]
        self.weight = self.weight[:, stay] - w @ across
        kept = self.inverse[np.ix_(stay, stay)]
        self.inverse = kept - self.inverse[np.ix_(stay, out)] @ across
        self.units = self.units[stay]
        return max(cost, 0.0)
