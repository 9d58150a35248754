"""Decision tree reduction: unreachable branches, equal branches, joined splits, repeated trees.

Each function takes an ensemble to one that says the same of every row; its first line is its
algebra. `x` is the feature that a split asks about, `t` a threshold.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from graphopt.graph.ensembles import Ensemble, Leaf, Split, Table

__all__ = ["REDUCTIONS"]

#: From this on float32 has no longer every whole number.
WHOLE = 1 << 24


class _Range(NamedTuple):
    """What a feature may be on the way to a node: low <= x <= high but not in `apart`, or NaN."""

    low: float = -np.inf
    high: float = np.inf
    apart: frozenset[float] = frozenset()
    nan: bool = True

    @property
    def empty(self) -> bool:
        if self.nan:
            return False
        return self.low > self.high or (self.low == self.high and self.low in self.apart)

    def may_be(self, number: float) -> bool:
        return self.low <= number <= self.high and number not in self.apart


def unreachable(trees: Ensemble, dtype: type[np.floating]) -> Ensemble:
    """s(x ? A : B) -> A where what the splits above s leave of x always goes to A

    x in M ? A : B -> x in N ? A : B, N what they leave of M
    """
    return _each(trees, lambda root, table: _reached(root, {}, table, dtype))


def _reached(
    number: int, known: Mapping[int, _Range], table: Table, dtype: type[np.floating]
) -> int:
    row = table.rows[number]
    if isinstance(row, Leaf):
        return number
    x = known.get(row.feature, _Range())
    if row.mode == "EQ" and (left := [m for m in row.members if x.may_be(m)]):
        members = tuple(left) if len(left) > 1 else ()
        row = dataclasses.replace(row, value=left[0], members=members)
    sides = _sides(row, x, dtype)
    below = [
        None if side.empty else _reached(k, {**known, row.feature: side}, table, dtype)
        for k, side in zip((row.yes, row.no), sides, strict=True)
    ]
    yes, no = below
    if yes is None or no is None:
        only = no if yes is None else yes
        return number if only is None else only
    return table.add(row.between(yes, no))


def _sides(split: Split, x: _Range, dtype: type[np.floating]) -> tuple[_Range, _Range]:
    """What of a range goes either way, or more than that. Of NaN in a MEMBER nothing is said."""
    t = split.value
    first = x.nan and (split.missing or split.mode in ("NEQ", "MEMBER"))
    second = x.nan and not (split.missing or split.mode == "NEQ")
    if split.mode in ("EQ", "NEQ", "MEMBER"):
        met = split.members if split.members or split.mode == "MEMBER" else (t,)
        inside = [m for m in met if x.may_be(m)]
        yes = x._replace(low=min(inside, default=np.inf), high=max(inside, default=-np.inf))
        no = x._replace(apart=x.apart | set(met))
        if split.mode == "NEQ":
            yes, no = no, yes
        return yes._replace(nan=first), no._replace(nan=second)
    with np.errstate(over="ignore"):
        under, over = (float(np.nextafter(dtype(t), dtype(end))) for end in (-np.inf, np.inf))
    low = {"LEQ": t, "LT": under, "GTE": under, "GT": t}[split.mode]
    high = {"LEQ": over, "LT": t, "GTE": t, "GT": over}[split.mode]
    yes, no = x._replace(high=min(x.high, low)), x._replace(low=max(x.low, high))
    if split.mode[0] == "G":
        yes, no = no, yes
    return yes._replace(nan=first), no._replace(nan=second)


def equal_branches(trees: Ensemble, dtype: type[np.floating]) -> Ensemble:
    """x ? A : A -> A"""
    return _each(trees, lambda root, table: _rebuilt(root, table, _alike))


def _alike(split: Split, table: Table) -> int:
    return split.yes if split.yes == split.no else table.add(split)


def joined_splits(trees: Ensemble, dtype: type[np.floating]) -> Ensemble:
    """x<=s ? A : (x<=t ? A : B) -> x<=max(s,t) ? A : B, and the same with the branches swapped"""
    return _each(trees, lambda root, table: _rebuilt(root, table, _joined))


def _joined(split: Split, table: Table) -> int:
    # by mode: which of two thresholds splits off what either of them does, and what both do
    if split.mode in ("LEQ", "LT", "GTE", "GT"):
        either, both = (max, min) if split.mode[0] == "L" else (min, max)
        for side, other, choose in (("no", "yes", either), ("yes", "no", both)):
            below = table.rows[getattr(split, side)]
            if not isinstance(below, Split) or getattr(below, other) != getattr(split, other):
                continue
            asked = [(s.mode, s.feature, s.missing) for s in (split, below)]
            if asked[0] == asked[1]:
                return table.add(dataclasses.replace(below, value=choose(split.value, below.value)))
    return table.add(split)


def zero_votes(trees: Ensemble, dtype: type[np.floating]) -> Ensemble:
    """s + 0 -> s, where no argmax depends on whether 0 was added"""
    if trees.op == "TreeEnsemble" or trees.aggregate not in ("SUM", "AVERAGE"):
        return trees
    if trees.votes is not None:
        decided = any(
            all(any(w > 0 for _, w in leaf.weights) for leaf in trees.table.leaves([root]))
            for root in trees.roots
        )
        if trees.outputs <= 2 or trees.votes[1] or trees.base or not decided:
            return trees
    made = {
        k: trees.table.add(Leaf(tuple(p for p in row.weights if p[1]) or row.weights[:1]))
        for k, row in enumerate(list(trees.table.rows))
        if isinstance(row, Leaf)
    }
    return _each(trees, lambda root, table: _rebuilt(root, table, _kept, made))


def _kept(split: Split, table: Table) -> int:
    return table.add(split)


def repeated_trees(trees: Ensemble, dtype: type[np.floating]) -> Ensemble:
    """T + T -> 2 T, max(T, T) -> T; of a classifier only where its sums are exact in any order"""
    found = Counter(trees.roots)
    if len(found) == len(trees.roots) or trees.aggregate == "AVERAGE":
        return trees
    if trees.aggregate != "SUM":
        return dataclasses.replace(trees, roots=tuple(found))
    if trees.votes is not None and not _exact(trees):
        return trees
    roots: list[int] = []
    for root, times in found.items():
        scaled = _scaled(root, times, trees.table)
        roots += [root] * times if scaled is None else [scaled]
    return dataclasses.replace(trees, roots=tuple(roots))


def _exact(trees: Ensemble) -> bool:
    """Whether every sum of votes is a whole number that float32 has."""
    weights = [w for leaf in trees.table.leaves(trees.roots) for _, w in leaf.weights]
    most = max((abs(w) for w in weights), default=0.0)
    return all(w == int(w) for w in weights) and most * len(trees.roots) < WHOLE


def _scaled(root: int, times: int, table: Table) -> int | None:
    """`times` the tree; None where float32 has not all of its numbers."""
    made = {}
    for k, row in enumerate(list(table.rows)):
        if isinstance(row, Leaf):
            made[k] = table.add(Leaf(tuple((o, w * times) for o, w in row.weights)))
    new = _rebuilt(root, table, _kept, made)
    weights = [w for leaf in table.leaves([new]) for _, w in leaf.weights]
    return new if times == 1 or all(float(np.float32(w)) == w for w in weights) else None


def constant_trees(trees: Ensemble, dtype: type[np.floating]) -> Ensemble:
    """T + c -> T, and c is added to what is added to every sum"""
    if trees.op != "TreeEnsembleRegressor" or trees.aggregate != "SUM":
        return trees
    rows = trees.table.rows
    constants = [r for root in trees.roots if isinstance(r := rows[root], Leaf)]
    roots = tuple(root for root in trees.roots if isinstance(rows[root], Split))
    if not constants or not roots:
        return trees
    base = np.array(trees.base or [0.0] * trees.outputs, np.float64)
    for leaf in constants:
        for output, weight in leaf.weights:
            base[output] += weight
    return dataclasses.replace(trees, roots=roots, base=tuple(base.tolist()))


def _each(trees: Ensemble, function: Callable[[int, Table], int]) -> Ensemble:
    return dataclasses.replace(trees, roots=tuple(function(r, trees.table) for r in trees.roots))


def _rebuilt(
    number: int,
    table: Table,
    made_of: Callable[[Split, Table], int],
    known: dict[int, int] | None = None,
) -> int:
    """The tree with every split made anew of its new branches, leaves as they are `known`."""
    known = {} if known is None else known
    stack = [number]
    while stack:
        k = stack[-1]
        row = table.rows[k]
        if k in known:
            stack.pop()
        elif isinstance(row, Leaf):
            known[stack.pop()] = k
        elif row.yes in known and row.no in known:
            known[stack.pop()] = made_of(row.between(known[row.yes], known[row.no]), table)
        else:
            stack += [row.yes, row.no]
    return known[number]


Reduction = Callable[[Ensemble, "type[np.floating]"], Ensemble]
#: By the name that edits are recorded under, in the order in which one leaves work for the next.
REDUCTIONS: dict[str, Reduction] = {
    "UnreachableBranch": unreachable,
    "EqualBranches": equal_branches,
    "JoinedSplits": joined_splits,
    "ZeroVotes": zero_votes,
    "RepeatedTree": repeated_trees,
    "ConstantTree": constant_trees,
}
