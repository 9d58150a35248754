"""Solving: which positions of which axes belong to one unit, the finest way that is consistent.

A *labelling* gives some positions of some axes a unit; removing a unit removes all positions that
carry its label. It is consistent if

    same, part   both positions carry the same label, or neither carries one
    merge        the labels of the whole depend on the position in one factor alone, and are its
                 labels; a position of a product stays if it stays in every labelling, so several
                 consistent labellings (heads; channels within a head) may be cut at once
    freeze       its positions carry no label

From a seed, an axis that is neither a product nor made of parts, each position with a label of its
own, labels are spread along the equations (a closure). Where two labels meet they become one:
units get coarser until all equations agree. Labels spread as far as they must and no further, so
the result is the finest consistent labelling, whatever the order of the equations. The one free
choice is a product reached from outside with labels that fit no factor: it takes the factor that
leaves most units, products in the order in which the graph states them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from graphopt.analyses.dims.closure import REASONS, Closure, Equations, Labelling
from graphopt.analyses.dims.system import Array, Freeze, Merge, Part, System

__all__ = ["Solution", "solve"]


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """All labellings, the class of each axis, and why positions of a class are frozen.

    Attributes:
        classes: per axis its class (the first axis that it is the same as).
        labellings: consistent labellings with live units only.
        reasons: per class and position, the index of a reason in `texts` (-1: none).
        texts: the reasons.
    """

    classes: Array
    labellings: list[Labelling]
    reasons: dict[int, Array]
    texts: list[str]


def solve(system: System) -> Solution:
    """The finest consistent labellings of `system`."""
    return _Solver(system).run()


class _Solver:
    def __init__(self, system: System) -> None:
        self.sizes = system.sizes
        self.classes = _join(len(system.sizes), system.sames)
        rep = self.classes.tolist()
        self.parts: dict[int, list[Part]] = {}
        self.merges: dict[int, list[Merge]] = {}
        self.wholes: set[int] = set()
        self.composed: set[int] = set()
        for p in sorted(system.parts, key=lambda p: p.order):
            p = dataclasses.replace(p, axis=rep[p.axis], whole=rep[p.whole])
            for c in {p.axis, p.whole}:
                self.parts.setdefault(c, []).append(p)
            if p.axis != p.whole and self.sizes[p.axis] <= self.sizes[p.whole]:
                self.composed.add(p.whole)
        seen: set[tuple[int, ...]] = set()
        for m in sorted(system.merges, key=lambda m: m.order):
            m = Merge(rep[m.whole], tuple(rep[f] for f in m.factors), m.order)
            if (m.whole, *m.factors) in seen:
                continue
            seen.add((m.whole, *m.factors))
            self.wholes.add(m.whole)
            for c in {m.whole, *m.factors}:
                self.merges.setdefault(c, []).append(m)
        self.texts: list[str] = list(REASONS)
        self._text: dict[str, int] = {text: k for k, text in enumerate(REASONS)}
        self.frozen: dict[int, Array] = {}
        for f in sorted(system.freezes, key=lambda f: f.order):
            self._freeze(rep[f.axis], f)
        self.reasons: dict[int, Array] = {c: a.copy() for c, a in self.frozen.items()}
        self.equations = Equations(self.sizes, self.parts, self.merges, self.frozen)

    def _freeze(self, c: int, f: Freeze) -> None:
        if f.reason not in self._text:
            self._text[f.reason] = len(self.texts)
            self.texts.append(f.reason)
        why = self.frozen.setdefault(c, np.full(self.sizes[c], -1))
        at = np.arange(self.sizes[c]) if f.at is None else f.at
        why[at] = np.where(why[at] < 0, self._text[f.reason], why[at])

    def run(self) -> Solution:
        touched: dict[int, Array] = {}
        labellings: list[Labelling] = []
        classes = sorted(set(self.classes.tolist()))
        simple = [c for c in classes if c not in self.wholes and c not in self.composed]
        composed = [c for c in classes if c not in self.wholes and c in self.composed]

        def keep(closure: Closure) -> None:
            for k, labels in closure.labels.items():
                mask = touched.setdefault(k, np.zeros(self.sizes[k], bool))
                mask |= labels >= 0
            found = closure.finish(self.reasons)
            if found is not None:
                labellings.append(found)

        def free(c: int) -> Array:
            open_ = ~touched[c] if c in touched else np.ones(self.sizes[c], bool)
            if c in self.frozen and ((self.frozen[c] >= 0).all() or c not in self.composed):
                open_ &= self.frozen[c] < 0
            return open_

        for group in self._together(simple):
            seeds = {c: f for c in group for f in [free(c)] if f.any()}
            closure = Closure(self.equations, seeds) if len(seeds) > 1 else None
            if closure is not None and not closure.ambiguous:
                keep(closure)
                continue
            for c in seeds:
                if free(c).any():
                    keep(Closure(self.equations, {c: free(c)}))
        for c in composed:
            if free(c).any():
                keep(Closure(self.equations, {c: free(c)}))
        self._inherit(classes)
        return Solution(self.classes, labellings, self.reasons, self.texts)

    def _together(self, seeds: list[int]) -> list[list[int]]:
        """Seeds that parts connect (branches of a concatenation), which one closure may serve."""
        pairs = [(p.axis, p.whole) for c in self.parts for p in self.parts[c]]
        component = _join(len(self.sizes), pairs)
        groups: dict[int, list[int]] = {}
        for c in seeds:
            groups.setdefault(int(component[c]), []).append(c)
        return list(groups.values())

    def _inherit(self, classes: list[int]) -> None:
        """Frozen factors freeze their product: hand their reason on."""
        for c in classes:
            if c in self.reasons:
                continue
            for m in self.merges.get(c, ()):
                known = [self.reasons[f] for f in m.factors if f in self.reasons]
                if m.whole == c and known:
                    self.reasons[c] = np.full(self.sizes[c], int(known[0].max()))
                    break


def _join(n: int, pairs: list[tuple[int, int]]) -> Array:
    """Per axis the smallest axis that it is the same as, along any chain of pairs."""
    parent = list(range(n))

    def find(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for a, b in pairs:
        ra, rb = find(a), find(b)
        if ra != rb:
            parent[max(ra, rb)] = min(ra, rb)
    return np.array([find(x) for x in range(n)], dtype=np.int64)
