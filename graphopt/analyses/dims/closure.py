"""Closure: labels spread from some axes along the equations until all of them hold."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.analyses.dims.system import Array, Merge, Part

__all__ = ["REASONS", "Closure", "Equations", "Labelling"]

NEVER = 1 << 40
#: Why a closure freezes positions by itself; `TWICE` and `INDIVISIBLE` are their places.
REASONS = (
    "the same dimension occurs twice in a merged axis",
    "a reshape divides it in no way that leaves two units",
)
TWICE, INDIVISIBLE = range(len(REASONS))


@dataclasses.dataclass(frozen=True, eq=False)
class Labelling:
    """Units of one seed: per class of axes, the unit of each position (-1: none)."""

    labels: dict[int, Array]
    units: int


@dataclasses.dataclass(frozen=True, eq=False)
class Equations:
    """What closures have to hold, by the classes of axes that occur in it.

    Attributes:
        sizes: of every axis.
        parts, merges: the equations in which a class occurs.
        frozen: per class and position, the index of the reason to freeze it (-1: none).
    """

    sizes: Sequence[int]
    parts: Mapping[int, Sequence[Part]]
    merges: Mapping[int, Sequence[Merge]]
    frozen: Mapping[int, Array]


class Closure:
    """Labels spread from some axes until every equation holds.

    Several seeds may share a closure unless it is `ambiguous`: a product met labels of more than
    one factor, or had to choose one.
    """

    def __init__(self, equations: Equations, seeds: dict[int, Array]) -> None:
        self.equations = equations
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
            self._put(seed, at, np.arange(first, first + len(at)))
            first += len(at)
        self._spread()

    def _at(self, c: int) -> Array:
        """Labels of a class, resolved."""
        found: Array = self.parent[self.labels[c]]
        return found

    def _put(self, c: int, at: Array, labels: Array) -> None:
        """Give the positions `at` of class `c` these labels (-1: nothing to say)."""
        mine = self.labels.get(c)
        if mine is None:
            if not (labels >= 0).any():
                return
            mine = self.labels[c] = np.full(self.equations.sizes[c], -1)
        now = self.parent[mine[at]]
        if np.array_equal(now, labels):
            return
        new = (now < 0) & (labels >= 0)
        if new.any():
            mine[at[new]] = labels[new]
            self._mark(c)
            now = self.parent[mine[at]]
        differ = (now != labels) & (labels >= 0)
        if differ.any():
            self._union(now[differ], labels[differ])

    def _mark(self, c: int) -> None:
        if c not in self.dirty:
            self.dirty.append(c)

    def _union(self, a: Array, b: Array) -> None:
        """Make the units a[k] and b[k] one, and look at every equation again."""
        if self._join(self.parent, a, b):
            for c in self.labels:
                self._mark(c)

    @staticmethod
    def _join(parent: Array, a: Array, b: Array) -> bool:
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

    def _freeze(self, units: Array, reason: int) -> None:
        units = np.unique(units[units >= 0])
        self.why[units] = np.minimum(self.why[units], reason)

    # --- equations --------------------------------------------------------------------------

    def _spread(self) -> None:
        decided: set[Merge] = set()
        while True:
            while self.dirty:
                c = self.dirty.popleft()
                for p in self.equations.parts.get(c, ()):
                    if p.axis in self.labels:
                        self._put(p.whole, p.whole_at, self._at(p.axis)[p.at])
                    if p.whole in self.labels:
                        self._put(p.axis, p.at, self._at(p.whole)[p.whole_at])
                for m in self.equations.merges.get(c, ()):
                    self._merge(m)
            waiting = [m for m in self.pending if m not in decided]
            if not waiting:
                return
            m = min(waiting, key=lambda m: m.order)
            decided.add(m)
            if not any(f in self.labels for f in m.factors):
                self._choose(m)

    def _merge(self, m: Merge) -> None:
        labelled = [k for k, f in enumerate(m.factors) if f in self.labels]
        if len(labelled) > 1:
            self.ambiguous = True
            for c in (m.whole, *m.factors):
                if c in self.labels:
                    self._freeze(self._at(c), TWICE)
        elif labelled:
            self._force(m, labelled[0])
        elif m in self.rigid:
            self._freeze(self._at(m.whole), INDIVISIBLE)
        elif m.whole in self.labels:
            self.pending.add(m)

    def _force(self, m: Merge, k: int) -> None:
        """The whole's labels are those of factor k: spread both ways."""
        f = m.factors[k]
        sizes = [self.equations.sizes[g] for g in m.factors]
        inner = int(np.prod(sizes[k + 1 :]))
        position = np.arange(self.equations.sizes[m.whole]) // inner % sizes[k]
        if m.whole in self.labels:
            whole = self._at(m.whole)
            self._put(f, position, whole)
        if f in self.labels:
            self._put(m.whole, np.arange(len(position)), self._at(f)[position])

    def _choose(self, m: Merge) -> None:
        """Take the factor that leaves most units; none that leaves two: the units stay."""
        self.ambiguous = True
        whole = self._at(m.whole)
        have = np.flatnonzero(whole >= 0)
        best, kept = -1, 1
        sizes = [self.equations.sizes[g] for g in m.factors]
        for k in range(len(sizes)):
            inner = int(np.prod(sizes[k + 1 :]))
            position = have // inner % sizes[k]
            first = np.full(sizes[k], -1)
            first[position[::-1]] = whole[have[::-1]]
            trial = self.parent.copy()
            self._join(trial, first[position], whole[have])
            left = len(np.unique(trial[whole[have]]))
            if left >= kept and left > 1:
                best, kept = k, left
        if best < 0:
            self.rigid.add(m)
            self._freeze(whole, INDIVISIBLE)
        else:
            self._force(m, best)

    # --- result -----------------------------------------------------------------------------

    def finish(self, reasons: dict[int, Array]) -> Labelling | None:
        """Drop frozen units, noting why where they were; None if no unit is left."""
        root_why = np.full(len(self.parent), NEVER)
        np.minimum.at(root_why, self.parent[:-1], self.why)
        for c, labels in self.labels.items():
            why = self.equations.frozen.get(c)
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
