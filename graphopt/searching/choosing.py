"""Choosing: the cheapest choice whose predicted loss is within a budget.

Costs of options depend on each other: an operator's time on the sizes of both its axes and on its
form. So the knapsack is solved for the costs of single options around a choice, then around what
that gave, until nothing gets cheaper; single swaps end it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt.searching.cost import CostModel, Prediction
from graphopt.searching.loss import Losses
from graphopt.searching.solver import Knapsack
from graphopt.searching.space import Choice

__all__ = ["cheapest"]

Array = np.ndarray[Any, Any]
#: Rounds of solving around the last choice, and of single swaps after them.
ROUNDS, SWAPS = 6, 12
#: Steps by which the price of what is over a limit is found.
HALVINGS = 8


def cheapest(
    cost: CostModel,
    losses: Losses,
    budget: float,
    objective: str,
    limits: Mapping[str, float] | None = None,
) -> Choice:
    """The choice of least predicted `objective` that loses at most `budget`.

    Args:
        cost: predicts what choices cost.
        losses: predicts what they lose.
        budget: in units of `losses`.
        objective: one of `OBJECTIVES`.
        limits: other figures that must stay at or below these, as far as that can be had.
    """
    limits = limits or {}
    prices = dict.fromkeys(limits, 0.0)
    found = _solved(cost, losses, budget, objective, prices)
    for name, limit in limits.items():
        if getattr(cost.predict(found), name) <= limit:
            continue
        nothing = cost.predict(cost.space.nothing)
        low, high = 0.0, 100 * getattr(nothing, objective) / max(getattr(nothing, name), 1e-12)
        for _ in range(HALVINGS):  # the price of the figure at which its limit is met
            prices[name] = high if low == 0.0 and prices[name] == 0.0 else (low + high) / 2
            tried = _solved(cost, losses, budget, objective, prices)
            met = getattr(cost.predict(tried), name) <= limit
            low, high = (low, prices[name]) if met else (prices[name], high)
            if met or getattr(cost.predict(found), name) > limit:
                found = tried
        prices[name] = high
    return found


def _solved(
    cost: CostModel, losses: Losses, budget: float, objective: str, prices: Mapping[str, float]
) -> Choice:
    def total(one: Prediction) -> float:
        extra = sum(price * getattr(one, name) for name, price in prices.items())
        return float(getattr(one, objective) + extra)

    weighted = losses.weighted()
    best = at = cost.space.nothing
    seen = {at}
    for _ in range(ROUNDS):
        costs = [np.array([total(p) for p in row]) for row in cost.around(at)]
        solved = Knapsack.of(costs, weighted).solve(budget)
        if solved is None or solved in seen:
            break
        at = solved
        seen.add(at)
        if total(cost.predict(at)) < total(cost.predict(best)):
            best = at
    return _swapped(cost, weighted, budget, best, total)


def _swapped(
    cost: CostModel,
    weighted: list[Array],
    budget: float,
    choice: Choice,
    total: Callable[[Prediction], float],
) -> Choice:
    """The choice after the swaps of one option that save most within the budget."""
    for _ in range(SWAPS):
        spent = float(sum(row[k] for row, k in zip(weighted, choice, strict=True)))
        now = total(cost.predict(choice))
        gains = [
            (now - total(p), g, k)
            for g, row in enumerate(cost.around(choice))
            for k, p in enumerate(row)
            if spent - weighted[g][choice[g]] + weighted[g][k] <= budget
        ]
        gain, g, k = max(gains, default=(0.0, 0, 0))
        if not gain > 1e-6 * abs(now):
            return choice
        choice = (*choice[:g], k, *choice[g + 1 :])
    return choice
