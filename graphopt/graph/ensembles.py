"""Tree ensembles of ai.onnx.ml (gradient boosting, random forests): their attributes as trees.

TreeEnsembleClassifier and TreeEnsembleRegressor (versions 1, 3 and 5) and TreeEnsemble (version 5)
say the same in different words. Here a tree is a number in a table of splits and leaves; equal
subtrees have one number. The first two write a set of categories as a chain of equalities with one
way out, `x == a ? A : (x == b ? A : B)`, which is one EQ here, of several numbers.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import onnx_ir as ir

__all__ = ["DOMAIN", "ENSEMBLES", "MODES", "Ensemble", "Leaf", "Split", "Table", "Unreadable"]

DOMAIN = "ai.onnx.ml"
ENSEMBLES = ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
#: Comparisons, in the order in which TreeEnsemble numbers them.
MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER")
#: How the results of trees become one, in the order in which TreeEnsemble numbers them.
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
#: Splits on one way down: more are not followed.
DEEPEST = 300


class Unreadable(ValueError):
    """The attributes are not those of trees, or of none that can be followed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """What a row that ends here adds to which outputs: (output, weight), in order."""

    weights: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """`yes` where x[feature] `mode` value (or x is NaN and `missing`), else `no`.

    Attributes:
        members: the numbers that a MEMBER is one of, or an EQ that has several.
        yes, no: numbers in the table.
    """

    mode: str
    feature: int
    value: float
    missing: bool
    yes: int
    no: int
    members: tuple[float, ...] = ()

    def between(self, yes: int, no: int) -> Split:
        """The same question, with other branches."""
        if (yes, no) == (self.yes, self.no):
            return self
        return Split(self.mode, self.feature, self.value, self.missing, yes, no, self.members)


class Table:
    """Splits and leaves by number, each once."""

    def __init__(self) -> None:
        self.rows: list[Split | Leaf] = []
        self._known: dict[Split | Leaf, int] = {}

    def add(self, row: Split | Leaf) -> int:
        """Its number."""
        k = self._known.get(row)
        if k is None:
            k = self._known[row] = len(self.rows)
            self.rows.append(row)
        return k

    def splits(self, roots: Sequence[int]) -> Iterator[Split]:
        """Every split below `roots`, once."""
        return (r for r in self._below(roots) if isinstance(r, Split))

    def leaves(self, roots: Sequence[int]) -> Iterator[Leaf]:
        """Every leaf below `roots`, once."""
        return (r for r in self._below(roots) if isinstance(r, Leaf))

    def _below(self, roots: Sequence[int]) -> Iterator[Split | Leaf]:
        stack, seen = list(roots), set(roots)
        while stack:
            row = self.rows[stack.pop()]
            yield row
            if isinstance(row, Split):
                for k in (row.yes, row.no):
                    if k not in seen:
                        seen.add(k)
                        stack.append(k)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Trees, and what becomes of their results.

    Attributes:
        op: the operator.
        table, roots: the trees, in the order in which they are summed.
        aggregate: of `AGGREGATES`.
        outputs: classes or targets.
        base: is added to the result, () if nothing is.
        votes: of a classifier, the classes that any leaf votes for and whether a vote is negative:
            with two classes they say how a score becomes two probabilities.
        rest: attributes that say nothing about trees.
        dtype: of the splits and leaves of a TreeEnsemble.
    """

    op: str
    table: Table
    roots: tuple[int, ...]
    aggregate: str
    outputs: int
    base: tuple[float, ...]
    votes: tuple[frozenset[int], bool] | None
    rest: Mapping[str, Any]
    dtype: ir.DataType | None = None

    @classmethod
    def read(cls, op: str, given: Mapping[str, Any], table: Table | None = None) -> Ensemble:
        """From the attributes of a node. Raises Unreadable."""
        table = Table() if table is None else table
        try:
            made = _read_new if op == "TreeEnsemble" else _read_old
            return made(op, given, table)
        except (LookupError, TypeError) as error:
            raise Unreadable(f"its attributes do not fit each other ({error})") from error


# --- versions 1 and 3 ---------------------------------------------------------------------------


def _numbers(given: Mapping[str, Any], name: str) -> list[float]:
    """An attribute of numbers, whichever of its two names it has."""
    tensor = given.get(f"{name}_as_tensor")
    if isinstance(tensor, ir.TensorProtocol) and tensor.size:
        return [float(x) for x in tensor.numpy().ravel()]
    return [float(x) for x in given.get(name, ())]


#: A leaf, or a split and where its branches are.
_Row = Leaf | tuple[Split, int, int]


def _read_old(op: str, given: Mapping[str, Any], table: Table) -> Ensemble:
    kind = "class" if op == "TreeEnsembleClassifier" else "target"
    trees, ids = (list(given.get(f"nodes_{k}ids", ())) for k in ("tree", "node"))
    modes = [str(m).removeprefix("BRANCH_") for m in given.get("nodes_modes", ())]
    features = list(given.get("nodes_featureids", ()))
    values = _numbers(given, "nodes_values")
    yes, no = (list(given.get(f"nodes_{k}nodeids", ())) for k in ("true", "false"))
    missing = list(given.get("nodes_missing_value_tracks_true", ())) or [0] * len(ids)
    if len({len(x) for x in (trees, ids, modes, features, values, yes, no, missing)}) != 1:
        raise Unreadable("its lists of nodes have different lengths")
    at = {key: k for k, key in enumerate(zip(trees, ids, strict=True))}
    starts = [next(ks) for _, ks in groupby(range(len(trees)), key=lambda k: trees[k])]
    if len(at) != len(ids) or len(starts) != len(set(trees)):
        raise Unreadable("a node is there twice")
    weights: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    columns = [list(given.get(f"{kind}_{k}", ())) for k in ("treeids", "nodeids", "ids")]
    for tree, node, output, w in zip(*columns, _numbers(given, f"{kind}_weights"), strict=False):
        weights[tree, node].append((output, w))

    def row(k: int) -> _Row:
        if modes[k] == "LEAF":
            return Leaf(tuple(weights.get((trees[k], ids[k]), ())))
        if modes[k] not in MODES[:-1]:
            raise Unreadable(f"splits of mode {modes[k]}")
        split = Split(modes[k], features[k], values[k], bool(missing[k]), -1, -1)
        chain = [k]
        while True:
            below = at[trees[k], no[chain[-1]]]
            if modes[k] != "EQ" or any(
                x[below] != x[k] for x in (modes, features, missing, trees, yes)
            ):
                break
            if below in chain:
                raise Unreadable("a chain of equalities has no end")
            chain.append(below)
        if len(chain) > 1:
            split = dataclasses.replace(split, members=tuple(values[j] for j in chain))
        return split, at[trees[k], yes[k]], below

    roots = tuple(_tree(start, row, table, len(ids)) for start in starts)
    labels = given.get("classlabels_int64s") or given.get("classlabels_strings") or ()
    voted = [pair for pairs in weights.values() for pair in pairs]
    held = ("nodes_", f"{kind}_", "base_values", "aggregate_function")
    return Ensemble(
        op,
        table,
        roots,
        "SUM" if kind == "class" else str(given.get("aggregate_function", "SUM")),
        len(labels) if kind == "class" else int(given.get("n_targets", 1)),
        tuple(_numbers(given, "base_values")),
        (frozenset(o for o, _ in voted), any(w < 0 for _, w in voted)) if kind == "class" else None,
        {k: v for k, v in given.items() if not k.startswith(held)},
    )


def _tree(start: int, row: Callable[[int], _Row], table: Table, shared: int) -> int:
    """The tree from a node on; those numbered from `shared` on may have several parents."""
    order: list[tuple[int, _Row]] = []
    met = {start}
    stack = [(start, 0)]
    while stack:
        k, depth = stack.pop()
        found = row(k)
        order.append((k, found))
        if depth > DEEPEST:
            raise Unreadable(f"a tree has more than {DEEPEST} splits on one way")
        for below in () if isinstance(found, Leaf) else found[1:]:
            if below in met and below < shared:
                raise Unreadable("branches of a tree meet again")
            met.add(below)
            stack.append((below, depth + 1))
    made: dict[int, int] = {}
    for k, found in reversed(order):  # what is below a node comes after it
        if isinstance(found, Leaf):
            made[k] = table.add(found)
        else:
            split, yes, no = found
            made[k] = table.add(split.between(made[yes], made[no]))
    return made[start]


# --- TreeEnsemble -------------------------------------------------------------------------------


def _read_new(op: str, given: Mapping[str, Any], table: Table) -> Ensemble:
    codes = given["nodes_modes"].numpy().ravel().tolist()
    splits = given["nodes_splits"].numpy().ravel().tolist()
    weights = given["leaf_weights"].numpy().ravel().tolist()
    targets = list(given["leaf_targetids"])
    features, yes, no = (
        list(given[f"nodes_{k}"]) for k in ("featureids", "truenodeids", "falsenodeids")
    )
    ends = list(zip(given["nodes_trueleafs"], given["nodes_falseleafs"], strict=True))
    missing = list(given.get("nodes_missing_value_tracks_true", ())) or [0] * len(codes)
    sets = _sets(given.get("membership_values"))
    members = {k: next(sets) for k, code in enumerate(codes) if MODES[code] == "MEMBER"}
    inner = len(codes)  # leaves are numbered after it

    def row(k: int) -> _Row:
        if k >= inner:
            return Leaf(((targets[k - inner], weights[k - inner]),))
        to_yes, to_no = (
            below + inner if leaf else below
            for below, leaf in zip((yes[k], no[k]), ends[k], strict=True)
        )
        mode, value = MODES[codes[k]], splits[k]
        held = members.get(k, ())
        split = Split(mode, features[k], 0.0 if held else value, bool(missing[k]), -1, -1, held)
        return split, to_yes, to_no

    roots = [
        # a tree of one leaf is written as a split of which both branches are it
        yes[k] + inner if all(ends[k]) and yes[k] == no[k] else k
        for k in given["tree_roots"]
    ]
    return Ensemble(
        op,
        table,
        tuple(_tree(k, row, table, inner) for k in roots),
        AGGREGATES[given.get("aggregate_function", 1)],
        int(given.get("n_targets", 1)),
        (),
        None,
        {k: given[k] for k in ("post_transform", "n_targets", "aggregate_function") if k in given},
        given["nodes_splits"].dtype,
    )


def _sets(tensor: ir.TensorProtocol | None) -> Iterator[tuple[float, ...]]:
    """The numbers of each MEMBER, which NaN ends."""
    held: list[float] = []
    for x in [] if tensor is None else tensor.numpy().ravel().tolist():
        if x == x:
            held.append(x)
        else:
            yield tuple(held)
            held = []
    if held:
        yield tuple(held)
