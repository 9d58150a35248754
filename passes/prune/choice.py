"""Choice of how many units each dimension keeps: arithmetic over error curves and work.

Each dimension comes with a *curve*: the order in which its units would go, and what it costs to
have removed the first j of them. A choice is a count per dimension.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from graphopt.analyses.dims import Dimension
from graphopt.analyses.dims.cost_model import Work
from graphopt.knapsack import marginal_steps

__all__ = ["Curve", "allowed_counts", "choose", "fewest", "source_size"]

Array = np.ndarray[Any, Any]
#: How much more a step may cost per gain than one that would go too far: small dimensions were cut
#: to their floor for a hundredth of the work, where half of a large one would have cost less.
DEAR = 4.0


@dataclasses.dataclass(frozen=True)
class Curve:
    """The units of one dimension, cheapest first, and the cost of removing the first j.

    Attributes:
        order: every unit, in the order of removal.
        cost: cost[j] for j = 0 .. size removed units; cost[0] is 0 and it never falls.
    """

    order: Array
    cost: Array

    @classmethod
    def of_scores(cls, scores: Array) -> Curve:
        """Units in order of rising score; their costs add up."""
        order = np.argsort(scores, kind="stable")
        return cls(order, np.concatenate([[0.0], np.cumsum(scores[order])]))

    def kept(self, count: int) -> Array:
        """The units that stay when `count` do, in their original order."""
        return np.sort(self.order[len(self.order) - count :])


def allowed_counts(dim: Dimension, multiple: int, floor: float, source: int) -> list[int]:
    """Counts a dimension may keep, largest first: all of them, or what the target likes.

    Every axis of a weight must stay a multiple of `multiple` where a unit is narrower than that;
    in a dimension that is narrower than four of them, of a half, a quarter ... of it. (On a
    ResNet-20 in int8 smaller steps, of an eighth, are 20 % slower at half the MACs, since kernels
    fill up what is missing; halves are no faster and lose more at 0.3 of the MACs.) At least the
    `fewest` stay, and at least the share `floor`. Long dimensions shrink in steps of a
    sixty-fourth.
    Shares and steps are those of the `source` size, before any earlier round: two rounds cut no
    deeper than one.
    """
    widths = [
        int(np.bincount(m.positions[m.positions >= 0]).max()) for m in dim.members if m.constant
    ]
    needed = multiple // math.gcd(multiple, min(widths, default=1))
    while needed % 2 == 0 and needed * 4 > source:
        needed //= 2
    step = needed * max(1, round(source / 64 / needed))
    least = max(fewest(source), math.ceil(source * floor - 1e-9))
    return [dim.size, *(c for c in range(dim.size - 1, least - 1, -1) if c % step == 0)]


def fewest(units: int) -> int:
    """What stays at least of a dimension: two units, or one of two (heads, groups of keys)."""
    return 2 if units > 2 else 1


def source_size(dim: Dimension, cut_before: Mapping[str, Mapping[int, int]]) -> int:
    """The units a dimension had before any cut: as many as its weights' axes say.

    Args:
        dim: the dimension as it is.
        cut_before: `graphopt.graph.kept.source_sizes` of its model.
    """
    found = dim.size
    for m in dim.members:
        before = cut_before.get(m.input, {}).get(m.axis)
        if before is not None and (m.positions >= 0).all():
            found = max(found, round(dim.size * before / len(m.positions)))
    return found


def choose(
    curves: Mapping[str, Curve],
    counts: Mapping[str, list[int]],
    work: Work,
    ratio: float,
    *,
    uniform: bool = False,
    gain: Work | None = None,
) -> dict[str, int]:
    """Units each dimension keeps so that the share `ratio` of the work goes.

    `uniform` takes the same share from every dimension; otherwise, step by step, the units go that
    cost least per `gain`, until no step comes nearer to the ratio, or those that do cost `DEAR`
    times as much per `gain` as one that would have gone too far.

    Args:
        curves: units in order of removal and their costs, by dimension.
        counts: counts each dimension may keep, largest first.
        work: the work that the ratio is a share of.
        ratio: share of the work to remove, in [0, 1).
        uniform: whether to take the same share everywhere.
        gain: the work that saving is worth (default: `work` itself).
    """
    gain = work if gain is None else gain
    goal = work.total * (1 - ratio)
    if uniform:
        return _uniform(curves, counts, work, goal)
    sizes = {n: len(c.order) for n, c in curves.items()}
    at = dict.fromkeys(curves, 0)
    share = {n: counts[n][0] / sizes[n] for n in curves}
    left = work.left(share)

    over: set[str] = set()  # whose next step would go too far
    limit = math.inf  # what a step may cost per gain

    def price(name: str) -> float | None:
        """Cost per gain of the next step of a dimension."""
        k = at[name]
        if k + 1 >= len(counts[name]) or name in over:
            return None
        now, then = counts[name][k], counts[name][k + 1]
        saved = gain.saved(share, name, then / sizes[name])
        cost = curves[name].cost[sizes[name] - then] - curves[name].cost[sizes[name] - now]
        return float(cost) / saved if saved > 0 else None

    for name in marginal_steps(sorted(curves), price):
        asked = price(name)
        if left <= goal * (1 + 1e-9) or asked is None or asked > limit:
            break
        to = counts[name][at[name] + 1] / sizes[name]
        after = left - work.saved(share, name, to)
        if goal - after > left - goal:
            limit = min(limit, DEAR * asked or math.inf)
            over.add(name)  # further below the goal than it is above now: another may come nearer
            continue
        at[name] += 1
        left, share[name] = after, to
    return {n: counts[n][k] for n, k in at.items()}


def _uniform(
    curves: Mapping[str, Curve], counts: Mapping[str, list[int]], work: Work, goal: float
) -> dict[str, int]:
    """The common share that leaves what is nearest to `goal`."""

    def at(share: float) -> dict[str, int]:
        wanted = {n: share * len(c.order) for n, c in curves.items()}
        return {n: min(counts[n], key=lambda c: (abs(c - w), c)) for n, w in wanted.items()}

    def left(kept: dict[str, int]) -> float:
        return work.left({n: k / len(curves[n].order) for n, k in kept.items()})

    low, high = 0.0, 1.0
    if left(at(1.0)) <= goal:
        return at(1.0)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if left(at(middle)) <= goal else (low, middle)
    return min(at(low), at(high), key=lambda kept: abs(left(kept) - goal))
