"""Knapsack: a budget spent over layers, each with a row of options (multiple-choice knapsack).

Greedy by marginal cost: the step that costs least for what it gains is taken, again and again. On
convex rows of options that is the Lagrangian optimum. Prices may rise as steps are taken, since
layers that meet save less together: they are asked again when their turn comes (lazy greedy;
Minoux 1978).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

__all__ = ["left_out", "lower_hull", "marginal_steps", "slope"]

K = TypeVar("K")
Point = TypeVar("Point", bound=tuple[Any, ...])


def marginal_steps(keys: Iterable[K], price: Callable[[K], float | None]) -> Iterator[K]:
    """Whose next step is the cheapest, step after step; the caller takes it and breaks off.

    Args:
        keys: the layers; of equal prices the first counts.
        price: cost for gain of the next step of a key as things are, or None if there is none.
    """
    heap = [(p, k, key) for k, key in enumerate(keys) if (p := price(key)) is not None]
    heapq.heapify(heap)
    while heap:
        _, k, key = heapq.heappop(heap)
        now = price(key)
        if now is None:
            continue
        if heap and now > heap[0][0] + 1e-12 * abs(heap[0][0]):
            heapq.heappush(heap, (now, k, key))  # it rose as others went on
            continue
        yield key
        following = price(key)
        if following is not None:
            heapq.heappush(heap, (following, k, key))


def left_out(order: Sequence[K], cost: Mapping[K, float]) -> list[list[K]]:
    """What stays out of the knapsack, for each capacity that makes a difference, the largest first.

    Items are taken in `order` wherever they fit, so that one that is larger than the knapsack keeps
    no others out. The first of the lists is empty, the last one has all the items.
    """
    sums = [*accumulate(cost[k] for k in order), *accumulate(sorted(cost[k] for k in order))]
    found: list[list[K]] = []
    for capacity in sorted(set(sums), reverse=True):
        rest, out = capacity * (1 + 1e-9), []
        for key in order:
            if cost[key] <= rest:
                rest -= cost[key]
            else:
                out.append(key)
        if out not in found:
            found.append(out)
    return [*found, list(order)] if list(order) not in found else found


def lower_hull(points: Sequence[Point]) -> list[Point]:
    """Points (cost, error, ...) from the most costly down, on the lower convex hull."""
    hull: list[Point] = []
    for point in sorted(points, key=lambda p: (-p[0], p[1])):
        if hull and point[0] == hull[-1][0]:
            continue
        while len(hull) > 1 and slope(hull[-2], hull[-1]) >= slope(hull[-2], point):
            hull.pop()
        # a cheaper point with no more error replaces even the last one
        while len(hull) > 1 and point[1] <= hull[-1][1]:
            hull.pop()
        hull.append(point)
    return hull


def slope(a: tuple[Any, ...], b: tuple[Any, ...]) -> float:
    """Error added per cost saved from point `a` to `b`."""
    return float((b[1] - a[1]) / max(a[0] - b[0], 1e-300))
