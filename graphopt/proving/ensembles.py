"""Equivalence of tree ensembles, by all inputs that their thresholds tell apart.

What a tree does with x[f] depends only on where x[f] lies among the thresholds of feature f. So
the thresholds, the next number on either side of each, the infinities and NaN stand for every
input: two trees are one function if they agree wherever a way down both of them keeps some of these
numbers for every feature. This is a decision procedure, not a test: nothing is sampled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.ensembles import DOMAIN, ENSEMBLES, Ensemble, Leaf, Split, Table, Unreadable
from graphopt.proving.polynomials import Unprovable
from graphopt.proving.terms import Term

__all__ = ["are_ensembles", "same_ensemble"]

#: Inputs on which trees that may be equal are found.
PROBES = 64
#: Pairs of branches that are followed.
LARGEST = 1 << 21
#: Relative difference of two sums of the same constants: a few roundings of float32.
ROUNDING = 2.0**-20

Payload = tuple[tuple[int, float], ...]
Row = dict[int, float]


def are_ensembles(old: Term, new: Term) -> bool:
    """Whether two terms are the same output of two tree ensembles that read the same."""
    known = [f"{DOMAIN}:{op}" for op in ENSEMBLES]
    alike = old.args == new.args and old.output == new.output
    return old.op == new.op and old.op in known and alike


def same_ensemble(old: Term, new: Term) -> bool:
    """Whether two ensembles (see `are_ensembles`) are one function, sums of trees in any order.

    Raises:
        Unprovable: they cannot be read, or are too large.
    """
    table = Table()
    op = old.op.rpartition(":")[2]
    try:
        a, b = (Ensemble.read(op, term.attributes, table) for term in (old, new))
    except Unreadable as error:
        raise Unprovable(str(error)) from error
    if (a.aggregate, a.outputs, dict(a.rest)) != (b.aggregate, b.outputs, dict(b.rest)):
        return False
    x = old.args[0]
    dtype = np.float32 if x is not None and x.dtype is ir.DataType.FLOAT else np.float64
    return _Equivalence(a, b, table, dtype)()


class _Equivalence:
    """Two ensembles of one table."""

    def __init__(self, a: Ensemble, b: Ensemble, table: Table, dtype: type[np.floating]) -> None:
        self.a, self.b, self.table, self.dtype = a, b, table, dtype
        self.zeros = self._ignores_zeros()
        self.work = 0
        rng = np.random.default_rng(0)
        numbers = self._representatives([*a.roots, *b.roots])
        self.probes: list[Row] = [
            {f: float(rng.choice(n)) for f, n in numbers.items()} for _ in range(PROBES)
        ]

    def __call__(self) -> bool:
        if self.a.votes != self.b.votes and self.a.outputs <= 2:
            return False
        if len(self.a.roots) == len(self.b.roots) and self.a.base == self.b.base:
            pairs = zip(self.a.roots, self.b.roots, strict=True)
            return all(self.equal(one, two) for one, two in pairs)
        return self.a.aggregate in ("MIN", "MAX", "SUM") and self._matched()

    def _ignores_zeros(self) -> bool:
        """Whether a vote of 0 says nothing: it is added, or never the largest of several sums.

        A runtime takes the largest of those sums that any leaf added to. Where no vote is negative
        and one tree always gives a positive one, that is never one of zeros.
        """
        if self.a.votes is None:
            return self.a.aggregate in ("SUM", "AVERAGE") and self.a.op != "TreeEnsemble"
        return (
            self.a.outputs > 2
            and not self.a.base
            and not self.a.votes[1]
            and any(
                all(any(w > 0 for _, w in leaf.weights) for leaf in self.table.leaves([root]))
                for root in self.b.roots
            )
        )

    def _representatives(self, roots: Sequence[int]) -> dict[int, np.ndarray]:
        found: dict[int, set[float]] = defaultdict(set)
        for split in self.table.splits(roots):
            found[split.feature].update(split.members or (split.value,))
        made = {}
        for feature, values in found.items():
            at = np.array(sorted(values), np.float64).astype(self.dtype)
            if np.isnan(at).any() or len(at) != len(values):
                raise Unprovable("a threshold that its input's type does not have")
            with np.errstate(over="ignore"):
                sides = [np.nextafter(at, self.dtype(end)) for end in (-np.inf, np.inf)]
            ends = np.array([-np.inf, np.inf, np.nan], self.dtype)
            made[feature] = np.unique(np.concatenate([at, *sides, ends])).astype(np.float64)
        return made

    # --- sums of trees ---------------------------------------------------------------------------

    def _matched(self) -> bool:
        """Every tree of `b` is some equal trees of `a` together; those left over are constants."""
        groups: dict[tuple[Payload, ...], list[int]] = defaultdict(list)
        for root in self.a.roots:
            groups[self._results(root, 1)].append(root)
        for root in self.b.roots:
            if not self._stands_for_some(root, groups):
                return False
        base = self._base(self.a)
        for roots in groups.values():
            for root in roots:
                leaf = self._first_leaf(root)
                if self.a.aggregate != "SUM" or not self.equal(root, self.table.add(leaf)):
                    return False
                for output, weight in leaf.weights:
                    base[output] += weight
        have = self._base(self.b)
        size = sum(abs(x) for x in base) + 1e-300
        return all(abs(x - y) <= ROUNDING * size for x, y in zip(base, have, strict=True))

    def _stands_for_some(self, root: int, groups: dict[tuple[Payload, ...], list[int]]) -> bool:
        for key, roots in list(groups.items()):
            times = len(roots) if self.a.aggregate == "SUM" else 1
            for n in dict.fromkeys((1, times)):
                if self._results(root, 1) != self._results(roots[0], n):
                    continue
                scaled = self._scaled(roots[0], n)
                taken = roots[:n] if self.a.aggregate == "SUM" else roots
                if self.equal(root, scaled) and all(self.equal(taken[0], r) for r in taken):
                    del groups[key]
                    if len(taken) < len(roots):
                        groups[key] = roots[len(taken) :]
                    return True
        return False

    def _base(self, trees: Ensemble) -> list[float]:
        base = list(trees.base) or [0.0] * trees.outputs
        if len(base) != trees.outputs or (trees.votes is not None and self.a.base != self.b.base):
            raise Unprovable("a base of another length")
        return base

    def _scaled(self, root: int, n: int) -> int:
        """The tree with every weight times `n`."""
        if n == 1:
            return root
        row = self.table.rows[root]
        if isinstance(row, Leaf):
            return self.table.add(Leaf(tuple((o, w * n) for o, w in row.weights)))
        yes, no = self._scaled(row.yes, n), self._scaled(row.no, n)
        return self.table.add(row.between(yes, no))

    def _results(self, root: int, n: int) -> tuple[Payload, ...]:
        """What a tree, its weights times `n`, says of the probes."""
        found = []
        for x in self.probes:
            row = self.table.rows[root]
            while isinstance(row, Split):
                at = np.array([x[row.feature]])
                row = self.table.rows[row.yes if _taken(row, at)[0] else row.no]
            found.append(self._payload(row, n))
        return tuple(found)

    def _first_leaf(self, root: int) -> Leaf:
        row = self.table.rows[root]
        while isinstance(row, Split):
            row = self.table.rows[row.no]
        return row

    def _payload(self, leaf: Leaf, n: int = 1) -> Payload:
        """What a leaf adds, by output."""
        made: dict[int, float] = {}
        for output, weight in leaf.weights:
            made[output] = made.get(output, 0.0) + weight * n
        return tuple(sorted((o, w) for o, w in made.items() if w or not self.zeros))

    # --- one tree against another ----------------------------------------------------------------

    def equal(self, one: int, two: int) -> bool:
        """Whether two trees are one function."""
        return one == two or self._follow(one, two, self._representatives([one, two]))

    def _follow(self, one: int, two: int, left: Mapping[int, np.ndarray]) -> bool:
        """`left`: by feature the numbers that come this way."""
        self.work += 1
        if self.work > LARGEST:
            raise Unprovable("its trees are too large to be followed together")
        if one == two:
            return True
        first, second = self.table.rows[one], self.table.rows[two]
        if isinstance(first, Leaf) and isinstance(second, Leaf):
            return self._payload(first) == self._payload(second)
        split = first if isinstance(first, Split) else second
        assert isinstance(split, Split)
        numbers = left[split.feature]
        alike = (
            isinstance(first, Split) and isinstance(second, Split) and _test(first) == _test(second)
        )
        taken = _taken(split, numbers)
        other = ~taken
        if split.mode == "MEMBER":  # of NaN in it nothing is said
            taken, other = taken | np.isnan(numbers), other | np.isnan(numbers)
        for side, some in (("yes", numbers[taken]), ("no", numbers[other])):
            if not some.size:
                continue
            # both go the same way where both ask the same, else the one that asks
            pair = (
                getattr(first, side) if alike or split is first else one,
                getattr(second, side) if alike or split is not first else two,
            )
            if not self._follow(*pair, {**left, split.feature: some}):
                return False
        return True


def _test(split: Split) -> tuple[object, ...]:
    """What a split asks."""
    return split.mode, split.feature, split.value, split.missing, split.members


def _taken(split: Split, x: np.ndarray) -> np.ndarray:
    """Which numbers go the way of `yes`."""
    v = split.value
    if split.members or split.mode == "MEMBER":
        made = np.isin(x, split.members)
    else:
        made = {
            "LEQ": x <= v, "LT": x < v, "GTE": x >= v, "GT": x > v, "EQ": x == v, "NEQ": x != v
        }[split.mode]  # fmt: skip
    return made | np.isnan(x) if split.missing else made
