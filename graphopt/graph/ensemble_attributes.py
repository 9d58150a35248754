"""Tree ensembles of ai.onnx.ml written: trees as the attributes of a node, in few bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.ensembles import MODES, Ensemble, Leaf, Split

__all__ = ["attributes_of"]


def attributes_of(trees: Ensemble, wide: bool) -> dict[str, Any]:
    """The attributes of a node that is `trees`; `wide`: its input is float64.

    What nothing reads (hit rates) and what says the default is left out. Numbers that float32 holds
    are stored in it, and equal leaves of a TreeEnsemble once.
    """
    new = trees.op == "TreeEnsemble"
    return {**trees.rest, **(_in_one_table(trees) if new else _in_two_tables(trees, wide))}


def _in_two_tables(trees: Ensemble, wide: bool) -> dict[str, Any]:
    kind = "class" if trees.op == "TreeEnsembleClassifier" else "target"
    rows = trees.table.rows
    nodes: dict[str, list[Any]] = defaultdict(list)
    votes: dict[str, list[Any]] = defaultdict(list)
    for tree, root in enumerate(trees.roots):
        ids = count(1)
        stack = [(root, 0)]
        while stack:
            number, node = stack.pop()
            row = rows[number]
            if isinstance(row, Leaf):
                _place(nodes, tree, node, Split("LEAF", 0, 0.0, False, 0, 0))
                votes["treeids"] += [tree] * len(row.weights)
                votes["nodeids"] += [node] * len(row.weights)
                votes["ids"] += [o for o, _ in row.weights]
                votes["weights"] += [w for _, w in row.weights]
                continue
            no, yes = next(ids), next(ids)
            stack += [(row.yes, yes), (row.no, no)]
            if not row.members:
                _place(nodes, tree, node, row.between(yes, no))
                continue
            ways = [node, *(next(ids) for _ in row.members[1:]), no]
            for k, value in enumerate(row.members):
                equal = Split("EQ", row.feature, value, row.missing, yes, ways[k + 1])
                _place(nodes, tree, ways[k], equal)
    if not any(nodes["missing_value_tracks_true"]):
        del nodes["missing_value_tracks_true"]
    made: dict[str, Any] = {f"nodes_{k}": v for k, v in nodes.items() if k != "values"}
    made |= {f"{kind}_{k}": v for k, v in votes.items() if k != "weights"}
    made |= _stored("nodes_values", nodes["values"], wide)
    made |= _stored(f"{kind}_weights", votes["weights"], wide)
    made |= _stored("base_values", trees.base, wide) if trees.base else {}
    if trees.aggregate != "SUM":
        made["aggregate_function"] = trees.aggregate
    return made


def _place(nodes: dict[str, list[Any]], tree: int, node: int, split: Split) -> None:
    """Add a node, whose branches are the ids of others."""
    nodes["treeids"].append(tree)
    nodes["nodeids"].append(node)
    nodes["modes"].append(f"BRANCH_{split.mode}" if split.mode != "LEAF" else "LEAF")
    nodes["featureids"].append(split.feature)
    nodes["values"].append(split.value)
    nodes["truenodeids"].append(split.yes)
    nodes["falsenodeids"].append(split.no)
    nodes["missing_value_tracks_true"].append(int(split.missing))


def _stored(name: str, values: Sequence[float], wide: bool) -> dict[str, Any]:
    """Numbers as float32 where it holds them all."""
    array = np.array(values, np.float64)
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not wide or np.array_equal(narrow.astype(np.float64), array):
        return {name: [float(x) for x in narrow]}
    return {f"{name}_as_tensor": ir.Tensor(array)}


def _in_one_table(trees: Ensemble) -> dict[str, Any]:
    rows = trees.table.rows
    lists: dict[str, list[Any]] = defaultdict(list)
    leaves: dict[tuple[int, float], int] = {}
    members: list[float] = []

    def end(row: Split | Leaf) -> int:
        assert isinstance(row, Leaf)
        return leaves.setdefault(row.weights[0], len(leaves))

    def place(split: Split) -> int:
        lists["modes"].append(MODES.index(split.mode))
        lists["splits"].append(split.value)
        lists["featureids"].append(split.feature)
        lists["missing"].append(int(split.missing))
        for name in ("truenodeids", "falsenodeids", "trueleafs", "falseleafs"):
            lists[name].append(0)
        members.extend((*split.members, np.nan) if split.mode == "MEMBER" else ())
        return len(lists["modes"]) - 1

    roots = []
    for root in trees.roots:
        row = rows[root]
        roots.append(len(lists["modes"]))
        if isinstance(row, Leaf):
            k = place(Split("LEQ", 0, 0.0, False, -1, -1))
            for name in ("true", "false"):
                lists[f"{name}leafs"][k], lists[f"{name}nodeids"][k] = 1, end(row)
            continue
        stack: list[tuple[Split, int, str]] = [(row, -1, "")]
        while stack:
            split, above, side = stack.pop()
            k = place(split)
            if above >= 0:
                lists[f"{side}nodeids"][above] = k
            for name, number in (("true", split.yes), ("false", split.no)):
                below = rows[number]
                if isinstance(below, Split):
                    stack.append((below, k, name))
                else:
                    lists[f"{name}leafs"][k], lists[f"{name}nodeids"][k] = 1, end(below)
    assert trees.dtype is not None
    kind = trees.dtype.numpy()
    missing, codes = lists.pop("missing"), lists.pop("modes")
    made: dict[str, Any] = {f"nodes_{k}": v for k, v in lists.items() if k != "splits"}
    made["nodes_modes"] = ir.Tensor(np.array(codes, np.uint8))
    made["nodes_splits"] = ir.Tensor(np.array(lists["splits"], kind))
    made["leaf_weights"] = ir.Tensor(np.array([w for _, w in leaves], kind))
    made["leaf_targetids"] = [o for o, _ in leaves]
    made["tree_roots"] = roots
    if any(missing):
        made["nodes_missing_value_tracks_true"] = missing
    if members:
        made["membership_values"] = ir.Tensor(np.array(members, kind))
    return made
