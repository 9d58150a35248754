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
from collections import deque

import numpy as np

from graphopt.analyses.dims.system import Array, Freeze, Merge, Part, System

__all__ = ["Labelling", "Solution", "solve"]

NEVER = 1 << 40
TWICE = "the same dimension occurs twice in a merged axis"
INDIVISIBLE = "a reshape divides it in no way that leaves two units"


@dataclasses.dataclass(frozen=True, eq=False)
class Labelling:
    """Units of one seed: per class of axes, the unit of each position (-1: none)."""

    labels: dict[int, Array]
    units: int


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
        self.texts: list[str] = [TWICE, INDIVISIBLE]
        self._text: dict[str, int] = {TWICE: 0, INDIVISIBLE: 1}
        self.frozen: dict[int, Array] = {}
        for f in sorted(system.freezes, key=lambda f: f.order):
            self._freeze(rep[f.axis], f)
        self.reasons: dict[int, Array] = {c: a.copy() for c, a in self.frozen.items()}

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

        def keep(closure: _Closure) -> None:
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
            closure = _Closure(self, seeds) if len(seeds) > 1 else None
            if closure is not None and not closure.ambiguous:
                keep(closure)
                continue
            for c in seeds:
                if free(c).any():
                    keep(_Closure(self, {c: free(c)}))
        for c in composed:
            if free(c).any():
                keep(_Closure(self, {c: free(c)}))
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


class _Closure:
    """Labels spread from some axes until every equation holds.

    Several seeds may share a closure unless it is `ambiguous`: a product met labels of more than
    one factor, or had to choose one.
    """

    def __init__(self, solver: _Solver, seeds: dict[int, Array]) -> None:
        self.s = solver
        self.ambiguous = False
        n = sum(int(free.sum()) for free in seeds.values())
        self.parent = np.append(np.arange(n), -1)
        self.why = np.full(n, NEVER)
        self.labels: dict[int, Array] = {}
        self.dirty: deque[int] = deque()
        self.pending: set[Merge] = set()
        self.rigid: set[Merge] = set()
        first = 0
        for seed, free in seeds.items():
            at = np.flatnonzero(free)
            self.put(seed, at, np.arange(first, first + len(at)))
            first += len(at)
        self.spread()

    def at(self, c: int) -> Array:
        """Labels of a class, resolved."""
        found: Array = self.parent[self.labels[c]]
        return found

    def put(self, c: int, at: Array, labels: Array) -> None:
        """Give the positions `at` of class `c` these labels (-1: nothing to say)."""
        mine = self.labels.get(c)
        if mine is None:
            if not (labels >= 0).any():
                return
            mine = self.labels[c] = np.full(self.s.sizes[c], -1)
        now = self.parent[mine[at]]
        if np.array_equal(now, labels):
            return
        new = (now < 0) & (labels >= 0)
        if new.any():
            mine[at[new]] = labels[new]
            self.mark(c)
            now = self.parent[mine[at]]
        differ = (now != labels) & (labels >= 0)
        if differ.any():
            self.union(now[differ], labels[differ])

    def mark(self, c: int) -> None:
        if c not in self.dirty:
            self.dirty.append(c)

    def union(self, a: Array, b: Array) -> None:
        """Make the units a[k] and b[k] one, and look at every equation again."""
        if self.join(self.parent, a, b):
            for c in self.labels:
                self.mark(c)

    @staticmethod
    def join(parent: Array, a: Array, b: Array) -> bool:
        pairs = np.unique(np.stack([np.minimum(a, b), np.maximum(a, b)], 1), axis=0)
        changed = False
        for x, y in pairs.tolist():
            while parent[x] != x:
                x = parent[x]
            while parent[y] != y:
                y = parent[y]
            if x != y:
                parent[max(x, y)] = min(x, y)
                changed = True
        if changed:
            while True:
                jumped = parent[parent]
                if (jumped == parent).all():
                    break
                parent[:] = jumped
        return changed

    def freeze(self, units: Array, reason: int) -> None:
        units = np.unique(units[units >= 0])
        self.why[units] = np.minimum(self.why[units], reason)

    # --- equations --------------------------------------------------------------------------

    def spread(self) -> None:
        decided: set[Merge] = set()
        while True:
            while self.dirty:
                c = self.dirty.popleft()
                for p in self.s.parts.get(c, ()):
                    if p.axis in self.labels:
                        self.put(p.whole, p.whole_at, self.at(p.axis)[p.at])
                    if p.whole in self.labels:
                        self.put(p.axis, p.at, self.at(p.whole)[p.whole_at])
                for m in self.s.merges.get(c, ()):
                    self.merge(m)
            waiting = [m for m in self.pending if m not in decided]
            if not waiting:
                return
            m = min(waiting, key=lambda m: m.order)
            decided.add(m)
            if not any(f in self.labels for f in m.factors):
                self.choose(m)

    def merge(self, m: Merge) -> None:
        labelled = [k for k, f in enumerate(m.factors) if f in self.labels]
        if len(labelled) > 1:
            self.ambiguous = True
            for c in (m.whole, *m.factors):
                if c in self.labels:
                    self.freeze(self.at(c), self.s._text[TWICE])
        elif labelled:
            self.force(m, labelled[0])
        elif m in self.rigid:
            self.freeze(self.at(m.whole), self.s._text[INDIVISIBLE])
        elif m.whole in self.labels:
            self.pending.add(m)

    def force(self, m: Merge, k: int) -> None:
        """The whole's labels are those of factor k: spread both ways."""
        f = m.factors[k]
        sizes = [self.s.sizes[g] for g in m.factors]
        inner = int(np.prod(sizes[k + 1 :]))
        position = np.arange(self.s.sizes[m.whole]) // inner % sizes[k]
        if m.whole in self.labels:
            whole = self.at(m.whole)
            self.put(f, position, whole)
        if f in self.labels:
            self.put(m.whole, np.arange(len(position)), self.at(f)[position])

    def choose(self, m: Merge) -> None:
        """Take the factor that leaves most units; none that leaves two: the units stay."""
        self.ambiguous = True
        whole = self.at(m.whole)
        have = np.flatnonzero(whole >= 0)
        best, kept = -1, 1
        sizes = [self.s.sizes[g] for g in m.factors]
        for k in range(len(sizes)):
            inner = int(np.prod(sizes[k + 1 :]))
            position = have // inner % sizes[k]
            first = np.full(sizes[k], -1)
            first[position[::-1]] = whole[have[::-1]]
            trial = self.parent.copy()
            self.join(trial, first[position], whole[have])
            left = len(np.unique(trial[whole[have]]))
            if left >= kept and left > 1:
                best, kept = k, left
        if best < 0:
            self.rigid.add(m)
            self.freeze(whole, self.s._text[INDIVISIBLE])
        else:
            self.force(m, best)

    # --- result -----------------------------------------------------------------------------

    def finish(self, reasons: dict[int, Array]) -> Labelling | None:
        """Drop frozen units, noting why where they were; None if no unit is left."""
        root_why = np.full(len(self.parent), NEVER)
        np.minimum.at(root_why, self.parent[:-1], self.why)
        for c, labels in self.labels.items():
            why = self.s.frozen.get(c)
            if why is not None:
                at = np.flatnonzero((why >= 0) & (labels >= 0))
                np.minimum.at(root_why, self.parent[labels[at]], why[at])
        roots = np.unique(self.parent[:-1])
        alive = roots[root_why[roots] == NEVER]
        number = np.full(len(self.parent), -1)
        number[alive] = np.arange(len(alive))
        kept: dict[int, Array] = {}
        for c, raw in self.labels.items():
            resolved = self.parent[raw]
            why = np.where(resolved >= 0, root_why[resolved], NEVER)
            why[why == NEVER] = -1
            if (why >= 0).any():
                mine = reasons.setdefault(c, np.full(len(why), -1))
                np.copyto(mine, why, where=(mine < 0) & (why >= 0))
            labels = np.where(resolved >= 0, number[resolved], -1)
            if (labels >= 0).any():
                kept[c] = labels
        return Labelling(kept, len(alive)) if len(alive) else None


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
