"""Regions of a graph diff: nodes without a twin that stand together, and what took their place.

A region of the one model and a region of the other that feed the same paired nodes replace each
other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from graphopt.differing.matching import Match

__all__ = ["Region", "regions_of", "slots"]


@dataclasses.dataclass(frozen=True)
class Region:
    """Nodes of the first model that gave way to nodes of the second; one side may be empty."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def regions_of(found: Match, heirs: Mapping[int, list[int]]) -> Iterator[Region]:
    """Connected nodes without a twin of both sides, joined where they feed the same twins,
    or read the same weights.

    Of nodes whose provenance is known that alone says what belongs together.
    """
    a, b = found.a, found.b
    size = len(a.nodes)
    join = _Sets(size + len(b.nodes))
    free_a = [twin is None and x not in heirs for x, twin in enumerate(found.to)]
    free_b = [t is None and not o for t, o in zip(found.back, found.origins, strict=True)]
    for flow, free, shift in ((a, free_a, 0), (b, free_b, size)):
        for k, values in enumerate(flow.reads):
            ups = [flow.maker(v) for v in values] if free[k] else ()
            for up in ups:
                if up is not None and free[up]:
                    join.union(k + shift, up + shift)

    def feed_the_same(x: int | None, y: int | None) -> None:
        if x is not None and y is not None and free_a[x] and free_b[y]:
            join.union(x, y + size)

    for x, y in enumerate(found.to):
        if y is not None:
            for p, q in slots(a.reads[x], b.reads[y]):
                feed_the_same(a.maker(p), b.maker(q))
            for p, q in zip(a.inner(x), b.inner(y), strict=False):
                feed_the_same(a.maker(p), b.maker(q))
    for x, y in found.kin:
        feed_the_same(x, y)
    there = {n: b.maker(v) for v, names in b.outputs.items() for n in names}
    for value, names in a.outputs.items():
        for name in names:
            feed_the_same(a.maker(value), there.get(name))
    for y, origin in enumerate(found.origins):
        for x in origin if found.back[y] is None else ():
            if found.to[x] is None:
                join.union(x, y + size)
    parts: dict[int, tuple[list[int], list[int]]] = {}
    for x, twin in enumerate(found.to):
        if twin is None:
            parts.setdefault(join.find(x), ([], []))[0].append(x)
    for y, twin in enumerate(found.back):
        if twin is None:
            parts.setdefault(join.find(y + size), ([], []))[1].append(y)
    return (Region(tuple(x), tuple(y)) for x, y in parts.values())


class _Sets:
    """Union-find."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def find(self, k: int) -> int:
        while self.parent[k] != k:
            self.parent[k] = self.parent[self.parent[k]]
            k = self.parent[k]
        return k

    def union(self, j: int, k: int) -> None:
        self.parent[self.find(j)] = self.find(k)


def slots(
    p: list[ir.Value | None], q: list[ir.Value | None]
) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    """Inputs of two nodes side by side; trailing ones left out are absent."""
    for k in range(max(len(p), len(q))):
        yield p[k] if k < len(p) else None, q[k] if k < len(q) else None
