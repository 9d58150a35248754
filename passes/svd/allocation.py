"""Rank allocation: which candidate each layer gets under a budget, pure arithmetic.

A budget for the whole model is spent where an error buys most: every layer's candidates are reduced
to the lower convex hull of (cost, error), and the hulls' edges are taken in the order of error per
cost saved until enough is saved. On hulls this greedy choice is the Lagrangian optimum.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeVar

from graphopt.passes.svd.stages import Candidate, Cost

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
    hulls = {k: _hull(curve, originals[k], of) for k, curve in curves.items()}
    order = {k: i for i, k in enumerate(hulls)}
    chosen: dict[Key, Candidate] = {}
    heap: list[tuple[float, int, int, Key]] = []

    def offer(key: Key, step: int) -> None:
        hull = hulls[key]
        if step < len(hull):
            (cost, error, _), (before, was, _) = hull[step], hull[step - 1]
            slope = weights[key] * (error - was) / max(before - cost, 1e-300)
            heapq.heappush(heap, (slope, order[key], step, key))

    for key in hulls:
        offer(key, 1)
    saved = 0.0
    while heap and saved < save:
        _, _, step, key = heapq.heappop(heap)
        cost, _, candidate = hulls[key][step]
        saved += hulls[key][step - 1][0] - cost
        if candidate is not None:
            chosen[key] = candidate
        offer(key, step + 1)
    return chosen


def _hull(
    curve: Sequence[Candidate], original: Cost, of: What
) -> list[tuple[float, float, Candidate | None]]:
    """The lower convex hull from the original (error 0) towards cheaper candidates."""
    points: list[tuple[float, float, Candidate | None]] = [(original.of(of), 0.0, None)]
    points += [(c.cost.of(of), c.error, c) for c in curve if c.cost.of(of) < points[0][0]]
    points.sort(key=lambda p: (-p[0], p[1]))
    hull: list[tuple[float, float, Candidate | None]] = []
    for point in points:
        if hull and point[0] == hull[-1][0]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        # a cheaper point with no more error replaces even the last one
        while len(hull) > 1 and point[1] <= hull[-1][1]:
            hull.pop()
        hull.append(point)
    return hull


def _slope(
    a: tuple[float, float, Candidate | None], b: tuple[float, float, Candidate | None]
) -> float:
    return (b[1] - a[1]) / max(a[0] - b[0], 1e-300)
