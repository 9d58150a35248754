"""Layered graph layout (Sugiyama, Tagawa and Toda, 1981): layers, order, coordinates.

Layers by longest path, dummy items along edges that pass layers, order by medians, and coordinates
by least squares under the order (isotonic regression); each in time linear in items and edges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

__all__ = ["DUMMY", "FAR", "Layout", "layered", "separate", "topological"]

#: Width of the way that an edge takes past a layer.
DUMMY = 10.0
#: Edges over more layers are not drawn through, but as a stub at each end.
FAR = 14
#: Space between neighbours in a layer.
GAP = 18.0
#: Sweeps down and up that order the layers, and that place the items.
SWEEPS, PLACINGS = 4, 6


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where items are.

    Attributes:
        layers: items of each layer, from left to right; numbers from the count of items on are
            dummies, places where an edge passes.
        x: centre of every item and dummy; 0 is the middle.
        chains: per source item, its dummies from the layer below it down.
        far: edges that are drawn as stubs.
    """

    layers: list[list[int]]
    x: list[float]
    chains: dict[int, list[int]]
    far: set[tuple[int, int]]


def layered(
    widths: Sequence[float],
    edges: Sequence[tuple[int, int]],
    aside: Collection[int] = (),
) -> Layout:
    """Lay out items of these widths.

    Args:
        widths: of the items.
        edges: from lower numbers to higher ones.
        aside: items that stand beside what flows and do not draw it to them.
    """
    n = len(widths)
    below: list[list[int]] = [[] for _ in range(n)]
    above: list[list[int]] = [[] for _ in range(n)]
    for u, v in dict.fromkeys(edges):
        below[u].append(v)
        above[v].append(u)
    rank = _ranks(below, above)
    far = {(u, v) for u in range(n) for v in below[u] if rank[v] - rank[u] > FAR}
    layers: list[list[int]] = [[] for _ in range(max(rank, default=-1) + 1)]
    for k in range(n):
        layers[rank[k]].append(k)
    up: list[list[int]] = [[] for _ in range(n)]
    down: list[list[int]] = [[] for _ in range(n)]
    chains: dict[int, list[int]] = {}
    for u in range(n):
        near = [v for v in below[u] if (u, v) not in far]
        last = max((rank[v] for v in near), default=rank[u])
        way = [u]
        for depth in range(rank[u] + 1, last):
            dummy = len(up)
            up.append([way[-1]])
            down.append([])
            down[way[-1]].append(dummy)
            layers[depth].append(dummy)
            way.append(dummy)
        chains[u] = way[1:]
        for v in near:
            start = way[rank[v] - rank[u] - 1]
            down[start].append(v)
            up[v].append(start)
    wide = [*widths, *[DUMMY] * (len(up) - n)]
    _order(layers, up, down)
    return Layout(layers, _place(layers, up, down, wide, n, set(aside)), chains, far)


def _ranks(below: list[list[int]], above: list[list[int]]) -> list[int]:
    """Longest way from a source; sources stand just above what they feed."""
    n = len(below)
    rank = [0] * n
    for k in range(n):
        rank[k] = max((rank[u] + 1 for u in above[k]), default=0)
    for k in range(n - 1, -1, -1):
        if not above[k] and below[k]:
            rank[k] = min(rank[v] for v in below[k]) - 1
    return rank


def _order(layers: list[list[int]], up: list[list[int]], down: list[list[int]]) -> None:
    """Sort every layer by the mean place of what each item is joined to, down and up in turn."""
    place = [0.0] * len(up)
    for layer in layers:
        for k, item in enumerate(layer):
            place[item] = k
    for sweep in range(SWEEPS):
        joined = up if sweep % 2 == 0 else down
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            if len(layer) > 1:
                keys = {
                    i: sum(place[j] for j in joined[i]) / len(joined[i]) if joined[i] else place[i]
                    for i in layer
                }
                layer.sort(key=keys.__getitem__)
            half = (len(layer) - 1) / 2
            for k, item in enumerate(layer):
                place[item] = k - half


def _place(
    layers: list[list[int]],
    up: list[list[int]],
    down: list[list[int]],
    widths: list[float],
    items: int,
    aside: set[int],
) -> list[float]:
    """Centres: every layer as near as can be to the mean of what it is joined to, in its order.

    Dummies weigh more than items, so that long edges are straight.
    """
    x = [0.0] * len(up)
    if aside:
        up = [[j for j in above if j not in aside] or above for above in up]
    for sweep in range(PLACINGS + 1):
        joined = [b if i in aside else a for i, (a, b) in enumerate(zip(up, down, strict=True))]
        joined = joined if sweep % 2 == 0 else down
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wish = [
                sum(x[j] for j in joined[i]) / len(joined[i]) if joined[i] else x[i] for i in layer
            ]
            weights = [4.0 if i >= items else 0.02 if i in aside else 1.0 for i in layer]
            for i, at in zip(
                layer, separate(wish, [widths[i] for i in layer], weights), strict=True
            ):
                x[i] = at
    return x


def separate(
    wish: Sequence[float], widths: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """The centres nearest to `wish` (weighted least squares) at which neighbours do not overlap.

    Subtracting what lies to the left of each item leaves a sequence that may not decrease: pools of
    adjacent violators (Barlow et al., 1972).
    """
    if not wish:
        return []
    shift = [0.0]
    for k in range(1, len(wish)):
        shift.append(shift[-1] + (widths[k - 1] + widths[k]) / 2 + GAP)
    pools: list[list[float]] = []  # mean, weight, items
    for want, offset, weight in zip(wish, shift, weights, strict=True):
        pools.append([want - offset, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, heavy, count = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * heavy) / (last[1] + heavy)
            last[1] += heavy
            last[2] += count
    means = [mean for mean, _, count in pools for _ in range(int(count))]
    return [mean + offset for mean, offset in zip(means, shift, strict=True)]


def topological(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The numbers below `count` in an order in which edges go on, what follows at once close by.

    What is on a circle comes last, in its own order.
    """
    waits = [0] * count
    after: list[list[int]] = [[] for _ in range(count)]
    for a, b in dict.fromkeys(edges):
        after[a].append(b)
        waits[b] += 1
    ready = [i for i in range(count - 1, -1, -1) if not waits[i]]
    found: list[int] = []
    while ready:
        i = ready.pop()
        found.append(i)
        for j in reversed(after[i]):
            waits[j] -= 1
            if not waits[j]:
                ready.append(j)
    return found + sorted({*range(count)} - {*found})
