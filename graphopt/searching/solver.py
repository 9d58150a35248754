"""Multiple-choice knapsack: one option of every group, least cost within a budget of loss.

    min sum_g cost[g, o_g]    such that    sum_g loss[g, o_g] <= budget

Dynamic programming over a grid of costs: after g groups, the least loss of every total cost. Costs
are rounded to the grid, which errs to both sides, losses are exact; one table answers every budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Knapsack"]

Array = np.ndarray[Any, Any]
#: Points of the grid of costs.
GRID = 4000


@dataclasses.dataclass(frozen=True)
class Knapsack:
    """Every group's options solved for all budgets.

    Attributes:
        taken: by group and total cost, the option taken.
        steps: by group, the rounded cost of each option.
        least: by total cost, the least loss.
    """

    taken: Array
    steps: tuple[Array, ...]
    least: Array

    @classmethod
    def of(cls, costs: Sequence[Array], losses: Sequence[Array], grid: int = GRID) -> Knapsack:
        """Solve for options that cost `costs[g][o]` and lose `losses[g][o]` (inf: not to be had).

        Each group needs an option of finite loss.
        """
        able = [np.isfinite(lo) & np.isfinite(c) for c, lo in zip(costs, losses, strict=True)]
        lows = [float(c[a].min()) for c, a in zip(costs, able, strict=True)]
        spans = [float(c[a].max()) - low for c, a, low in zip(costs, able, lows, strict=True)]
        unit = max(sum(spans) / grid, 1e-300)
        steps = tuple(
            np.where(a, np.rint((np.where(a, c, low) - low) / unit), -1).astype(np.int64)
            for c, a, low in zip(costs, able, lows, strict=True)
        )
        width = sum(int(s.max()) for s in steps) + 1
        least = np.full(width, np.inf)
        least[0] = 0.0
        taken = np.zeros((len(steps), width), np.int16)
        for g, (step, loss) in enumerate(zip(steps, losses, strict=True)):
            best = np.full(width, np.inf)
            for o in np.argsort(loss, kind="stable"):
                if step[o] < 0:
                    continue
                moved = np.full(width, np.inf)
                moved[step[o] :] = least[: width - step[o]] + loss[o]
                better = moved < best
                best = np.where(better, moved, best)
                taken[g] = np.where(better, o, taken[g])
            least = best
        return cls(taken, steps, least)

    def solve(self, budget: float) -> tuple[int, ...] | None:
        """The option of each group, least total cost within `budget`; None if none is within."""
        able = np.flatnonzero(self.least <= budget * (1 + 1e-9) + 1e-15)
        if not len(able):
            return None
        at = int(able[0])
        found = []
        for g in reversed(range(len(self.steps))):
            option = int(self.taken[g][at])
            found.append(option)
            at -= int(self.steps[g][option])
        return tuple(reversed(found))
