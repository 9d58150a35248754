"""Equivalence of tree ensembles by every input that thresholds tell apart."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.proving.ensembles import are_ensembles, same_ensemble
from graphopt.proving.polynomials import Unprovable
from graphopt.proving.terms import Term

X = Term("input", dtype=ir.DataType.FLOAT)


def stump(feature, threshold, below, above, tree=0, mode="BRANCH_LEQ", missing=0):
    return {
        "nodes_treeids": (tree,) * 3, "nodes_nodeids": (0, 1, 2),
        "nodes_featureids": (feature, 0, 0), "nodes_modes": (mode, "LEAF", "LEAF"),
        "nodes_values": (threshold, 0.0, 0.0), "nodes_truenodeids": (1, 0, 0),
        "nodes_falsenodeids": (2, 0, 0), "nodes_missing_value_tracks_true": (missing, 0, 0),
        "target_treeids": (tree,) * 2, "target_nodeids": (1, 2), "target_ids": (0, 0),
        "target_weights": (below, above),
    }  # fmt: skip


def trees(*stumps, **more):
    made = {k: sum((s[k] for s in stumps), ()) for k in stumps[0]}
    return Term("ai.onnx.ml:TreeEnsembleRegressor", (X,), {**made, "n_targets": 1, **more})


ONE = stump(0, 1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    "other",
    [
        stump(0, float(np.nextafter(np.float32(1), np.float32(2))), 2.0, 3.0),  # the next number
        stump(0, 1.0, 2.0, 3.5),
        stump(1, 1.0, 2.0, 3.0),
        stump(0, 1.0, 3.0, 2.0),
        stump(0, 1.0, 2.0, 3.0, mode="BRANCH_LT"),  # 1 itself
        stump(0, 1.0, 2.0, 3.0, missing=1),  # NaN
        stump(0, 1.0, 3.0, 2.0, mode="BRANCH_GT", missing=0),  # NaN: not above 1 either
    ],
)
def test_what_differs_somewhere_is_not_equal(other):
    assert are_ensembles(trees(ONE), trees(other))
    assert not same_ensemble(trees(ONE), trees(other))


def test_the_same_in_other_words():
    """x <= 1 is x < the next number, and where NaN goes with it not x > 1."""
    above = float(np.nextafter(np.float32(1), np.float32(2)))
    assert same_ensemble(trees(ONE), trees(stump(0, above, 2.0, 3.0, mode="BRANCH_LT")))
    turned = stump(0, 1.0, 3.0, 2.0, mode="BRANCH_GT", missing=1)
    assert same_ensemble(trees(ONE), trees(turned))


def chain(*categories, missing=0):
    """Whether x[0] is one of the categories: 2, else 3. The way out is shared."""
    n = len(categories)
    return {
        "nodes_treeids": (0,) * (n + 2), "nodes_nodeids": tuple(range(n + 2)),
        "nodes_featureids": (0,) * (n + 2), "nodes_modes": ("BRANCH_EQ",) * n + ("LEAF",) * 2,
        "nodes_values": (*categories, 0.0, 0.0), "nodes_truenodeids": (n,) * n + (0, 0),
        "nodes_falsenodeids": (*range(1, n), n + 1, 0, 0),
        "nodes_missing_value_tracks_true": (missing,) * n + (0, 0),
        "target_treeids": (0, 0), "target_nodeids": (n, n + 1), "target_ids": (0, 0),
        "target_weights": (2.0, 3.0),
    }  # fmt: skip


def test_sets_of_categories():
    assert same_ensemble(trees(chain(1.0, 4.0)), trees(chain(4.0, 1.0, 4.0)))
    for other in (chain(1.0), chain(1.0, 5.0), chain(1.0, 4.0, 5.0), chain(1.0, 4.0, missing=1)):
        assert not same_ensemble(trees(chain(1.0, 4.0)), trees(other))


def test_sums_of_trees():
    again, doubled = stump(0, 1.0, 2.0, 3.0, tree=1), stump(0, 1.0, 4.0, 6.0)
    assert same_ensemble(trees(ONE, again), trees(doubled))
    assert not same_ensemble(trees(ONE, again), trees(ONE))
    assert not same_ensemble(trees(ONE), trees(ONE, again))
    assert same_ensemble(
        trees(ONE, again, aggregate_function="MAX"), trees(ONE, aggregate_function="MAX")
    )
    assert not same_ensemble(trees(ONE), trees(ONE, aggregate_function="MAX"))
    constant = stump(2, 0.0, 5.0, 5.0, tree=1)
    assert same_ensemble(trees(ONE, constant), trees(ONE, base_values=(5.0,)))
    assert not same_ensemble(trees(ONE, constant), trees(ONE, base_values=(5.1,)))
    average = trees(ONE, again, aggregate_function="AVERAGE")
    assert not same_ensemble(average, trees(doubled, aggregate_function="AVERAGE"))


def test_what_cannot_be_read_is_not_proved():
    broken = {**ONE, "nodes_truenodeids": (7, 0, 0)}
    with pytest.raises(Unprovable, match="do not fit"):
        same_ensemble(trees(ONE), trees(broken))
