"""Rank allocation: which candidate each layer gets under a budget (`graphopt.knapsack`)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeVar

from graphopt.passes.svd.stages import Candidate, Cost

from graphopt.knapsack import lower_hull, marginal_steps, slope

__all__ = ["allot", "cheapest"]

What = Literal["macs", "params"]
Key = TypeVar("Key", bound=Hashable)


def cheapest(curve: Sequence[Candidate], error: float, of: What) -> Candidate | None:
    """The candidate of least cost whose relative squared error is at most `error`."""
    able = [c for c in curve if c.error <= error]
    return min(able, key=lambda c: (c.cost.of(of), c.error), default=None)


def allot(
    curves: Mapping[Key, Sequence[Candidate]],
    originals: Mapping[Key, Cost],
    weights: Mapping[Key, float],
    save: float,
    of: What,
) -> dict[Key, Candidate]:
    """One candidate for some of the layers, saving at least `save` if they can.

    Args:
        curves: candidates by layer.
        originals: what each layer costs as it is (its error is 0).
        weights: what a layer's relative squared error weighs in the sum that is minimized.
        save: cost to save.
        of: "macs" or "params".
    """
    hulls = {}
    for key, curve in curves.items():
        own = originals[key].of(of)
        less = [(c.cost.of(of), c.error, c) for c in curve if c.cost.of(of) < own]
        hulls[key] = lower_hull([(own, 0.0, None), *less])
    at = dict.fromkeys(hulls, 0)

    def price(key: Key) -> float | None:
        hull, k = hulls[key], at[key]
        return weights[key] * slope(hull[k], hull[k + 1]) if k + 1 < len(hull) else None

    saved = 0.0
    for key in marginal_steps(hulls, price):
        if saved >= save:
            break
        saved += hulls[key][at[key]][0] - hulls[key][at[key] + 1][0]
        at[key] += 1
    return {k: c for k, hull in hulls.items() if (c := hull[at[k]][2]) is not None}
