"""Trees: what goes, what stays, and that every edit is proved. Ensembles are built by hand."""

import dataclasses
import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.trees import Trees
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.graph.building import Builder, remove_dead
from graphopt.pass_ import Pass
from graphopt.proving.evidence import examine
from graphopt.samples import synthetic
from graphopt.testing import parse_model

KINDS = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE, np.int64: TensorProto.INT64}


def split(feature, value, yes, no, mode="LEQ", missing=0):
    return {"f": feature, "v": value, "yes": yes, "no": no, "m": mode, "missing": missing}


def old(op, *trees, version=1, dtype=np.float32, wide=False, **more):
    """A model of TreeEnsembleClassifier or TreeEnsembleRegressor; a leaf is {output: weight}."""
    kind = "class" if op == "Classifier" else "target"
    rows, votes = [], []
    for tree, root in enumerate(trees):
        ids = itertools.count(1)
        todo = [(0, root)]
        while todo:
            node, one = todo.pop(0)
            if "f" not in one:
                rows.append((tree, node, 0, "LEAF", 0.0, 0, 0, 0))
                votes += [(tree, node, o, w) for o, w in one.items()]
                continue
            yes, no = next(ids), next(ids)
            values = one["v"] if isinstance(one["v"], list) else [one["v"]]  # a chain of EQ
            ways = [node, *(next(ids) for _ in values[1:]), no]
            rows += [
                (tree, way, one["f"], f"BRANCH_{one['m']}", v, yes, below, one["missing"])
                for v, way, below in zip(values, ways, ways[1:], strict=False)
            ]
            todo += [(yes, one["yes"]), (no, one["no"])]
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    columns = dict(zip((*names, "missing_value_tracks_true"), zip(*rows, strict=True), strict=True))
    given = {f"nodes_{k}": list(v) for k, v in columns.items()}
    given["nodes_hitrates"] = [1.0] * len(rows)
    parts = ("treeids", "nodeids", "ids", "weights")
    for name, values in zip(parts, zip(*votes, strict=True), strict=True):
        given[f"{kind}_{name}"] = list(values)
    if wide:
        for name in ("nodes_values", f"{kind}_weights"):
            given[f"{name}_as_tensor"] = numpy_helper.from_array(np.array(given.pop(name)))
    outputs = ["label", "p"] if op == "Classifier" else ["y"]
    given |= {} if op == "Classifier" else {"n_targets": 1}
    node = helper.make_node(
        f"TreeEnsemble{op}", ["x"], outputs, "trees", domain="ai.onnx.ml", **given, **more
    )
    return model([node], version, dtype)


def model(nodes, version, dtype=np.float32, features=3):
    outputs = [o for n in nodes for o in n.output if not any(o in m.input for m in nodes)]
    infos = [
        helper.make_tensor_value_info(o, TensorProto.INT64, ["n"])
        if o == "label"
        else helper.make_tensor_value_info(o, TensorProto.FLOAT, ["n", None])
        for o in outputs
    ]
    x = helper.make_tensor_value_info("x", KINDS[dtype], ["n", features])
    graph = helper.make_graph(nodes, "g", [x], infos)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", version)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def classes(n):
    return {"classlabels_int64s": list(range(n)), "post_transform": "NONE"}


def inputs(one, rows=300):
    samples = synthetic(one, seed=1, shapes={"x": (rows, 3)})
    return [feeds["x"] for _, feeds in zip(range(3), samples, strict=False)]


def reduced(one, rules, exact=True):
    """What the pass makes of a model: its rules, that outputs are equal, all proved, run once."""
    before = one.clone()
    ctx = Context(one, pass_name="trees")
    assert Trees().run(one, ctx) == len(rules)
    assert [e.rule for e in ctx.edits] == list(rules)
    onnx.checker.check_model(ir.to_proto(one))
    for x in inputs(before):
        for a, b in zip(run(before, {"x": x}).values(), run(one, {"x": x}).values(), strict=True):
            assert np.array_equal(a, b) if exact else np.allclose(a, b, rtol=1e-6)
    if rules:
        found = examine(before, one, ctx.edits)
        assert [v for _, v in found.edits] == ["proved"] * len(rules)
        assert not found.open
    assert Trees().run(one, Context(one)) == 0
    return one


def attribute(one, name):
    return one.graph.node("trees").attributes[name].value


def splits(one):
    return [
        (attribute(one, "nodes_featureids")[k], attribute(one, "nodes_values")[k])
        for k, mode in enumerate(attribute(one, "nodes_modes"))
        if mode != "LEAF"
    ]


def test_a_branch_that_no_row_reaches():
    """Below x0 <= 1, x0 <= 2 is always so; NaN went the other way at the first split."""
    inner = split(0, 2.0, {0: 1.0}, {0: 9.0})
    one = reduced(old("Regressor", split(0, 1.0, inner, {0: 3.0})), ["UnreachableBranch"])
    assert splits(one) == [(0, 1.0)]
    assert attribute(one, "target_weights") == (3.0, 1.0)  # where it is not so first


def test_between_a_number_and_the_next_is_none():
    """Not x <= 1 but x < the next float32: nothing; for float64 there is."""
    above = float(np.nextafter(np.float32(1), np.float32(2)))
    tree = split(1, 1.0, {0: 1.0}, split(1, above, {0: 2.0}, {0: 3.0}, "LT", 1))
    reduced(old("Regressor", tree), ["SmallestAttributes"])  # NaN comes there
    tree["no"]["missing"] = 0
    reduced(old("Regressor", tree), ["UnreachableBranch"])
    reduced(old("Regressor", tree, dtype=np.float64, version=3), ["SmallestAttributes"])


def test_equal_branches_and_what_becomes_equal():
    same = split(1, 5.0, {0: 1.0}, {0: 2.0})
    one = reduced(old("Regressor", split(0, 1.0, same, dict(same))), ["EqualBranches"])
    assert splits(one) == [(1, 5.0)]
    tree = split(0, 1.0, split(0, 3.0, {0: 1.0}, {0: 2.0}), split(2, 0.0, {0: 1.0}, {0: 1.0}))
    one = reduced(
        old("Regressor", tree, split(2, 0.5, {0: 0.0}, {0: 1.0})),
        ["UnreachableBranch", "EqualBranches", "ConstantTree"],
    )
    assert splits(one) == [(2, 0.5)]
    assert attribute(one, "base_values") == (1.0,)


@pytest.mark.parametrize(
    ("tree", "value"),
    [
        (split(0, 1.0, {0: 1.0}, split(0, 2.0, {0: 1.0}, {0: 3.0})), 2.0),
        (split(0, 2.0, split(0, 1.0, {0: 1.0}, {0: 3.0}), {0: 3.0}), 1.0),
        (split(0, 2.0, {0: 1.0}, split(0, 1.0, {0: 1.0}, {0: 3.0}, "GT"), "GT"), 1.0),
    ],
)
def test_two_splits_that_are_one(tree, value):
    assert splits(reduced(old("Regressor", tree), ["JoinedSplits"])) == [(0, value)]


def test_splits_that_send_nan_elsewhere_stay_two():
    tree = split(0, 1.0, {0: 1.0}, split(0, 2.0, {0: 1.0}, {0: 3.0}, missing=1))
    assert len(splits(reduced(old("Regressor", tree), ["SmallestAttributes"]))) == 2


def test_equalities_on_one_way():
    """Not 3 and not 3 again; NaN equals nothing."""
    tree = split(0, 3.0, {0: 1.0}, split(0, 3.0, {0: 7.0}, {0: 2.0}, "EQ"), "EQ")
    one = reduced(old("Regressor", tree), ["UnreachableBranch"])
    assert attribute(one, "target_weights") == (2.0, 1.0)
    tree = split(0, 3.0, {0: 2.0}, split(0, 4.0, {0: 7.0}, {0: 1.0}, "EQ"), "NEQ")
    one = reduced(old("Regressor", tree), ["UnreachableBranch"])
    assert attribute(one, "target_weights") == (1.0, 2.0)


def test_a_tree_that_is_there_twice():
    tree = split(0, 1.0, {0: 0.1}, {0: 0.7})
    other = split(1, 1.0, {0: 2.0}, {0: 3.0})
    one = reduced(old("Regressor", tree, other, tree), ["RepeatedTree"], exact=False)
    assert attribute(one, "nodes_treeids")[-1] == 1
    assert attribute(one, "target_weights")[:2] == (np.float32(0.7) * 2, np.float32(0.1) * 2)
    least = old("Regressor", tree, other, tree, tree, aggregate_function="MIN")
    assert len(splits(reduced(least, ["RepeatedTree"]))) == 2
    mean = old("Regressor", tree, other, tree, aggregate_function="AVERAGE")
    assert len(splits(reduced(mean, ["SmallestAttributes"]))) == 3


def test_votes_of_a_classifier_are_joined_where_sums_are_exact():
    """The last bit of a sum decides a tie, and with it the label."""
    whole = split(0, 1.0, {0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 1.0, 2: 1.0})
    one = reduced(old("Classifier", whole, whole, whole, **classes(3)), ["RepeatedTree"])
    assert len(splits(one)) == 1
    parts = split(0, 1.0, {0: 0.1, 1: 0.2, 2: 0.7}, {0: 0.6, 1: 0.3, 2: 0.1})
    one = reduced(old("Classifier", parts, parts, **classes(3)), ["SmallestAttributes"])
    assert len(splits(one)) == 2


def test_votes_of_zero_go_where_no_label_depends_on_them():
    pure = split(0, 1.0, {0: 0.0, 1: 1.0, 2: 0.0}, {0: 0.5, 1: 0.0, 2: 0.5})
    one = reduced(old("Classifier", pure, **classes(3)), ["ZeroVotes"])
    assert attribute(one, "class_ids") == (0, 2, 1)
    # a runtime takes the largest of the sums that were added to: of -1 and nothing, -1
    signed = split(0, 1.0, {0: -1.0, 1: 0.0, 2: -2.0}, {0: 1.0, 1: 0.0, 2: 0.0})
    reduced(old("Classifier", signed, **classes(3)), ["SmallestAttributes"])
    none = split(0, 1.0, {0: 0.0, 1: 0.0, 2: 0.0}, {0: 1.0, 1: 0.0, 2: 0.0})
    reduced(old("Classifier", none, **classes(3)), ["SmallestAttributes"])


def test_two_classes_keep_what_says_how_scores_become_probabilities():
    """The only negative vote lies where no row comes: it must be there all the same."""
    inner = split(0, 2.0, {1: 0.25}, {1: -9.0})
    tree = split(0, 1.0, inner, {1: 0.75})
    one = reduced(old("Classifier", tree, **classes(2)), ["SmallestAttributes"])
    assert len(splits(one)) == 2
    inner["no"] = {1: 9.0}
    assert len(splits(reduced(old("Classifier", tree, **classes(2)), ["UnreachableBranch"]))) == 1


def test_numbers_in_the_smallest_exact_type():
    tree = split(0, 0.5, {0: 1.0}, {0: 2.0})
    one = reduced(
        old("Regressor", tree, version=3, dtype=np.float64, wide=True), ["SmallestAttributes"]
    )
    names = set(one.graph.node("trees").attributes)
    assert {"nodes_values", "target_weights"} <= names
    assert not names & {"nodes_hitrates", "nodes_missing_value_tracks_true"}
    tree = split(0, 0.1, {0: 1.0}, {0: 2.0})
    one = reduced(
        old("Regressor", tree, version=3, dtype=np.float64, wide=True), ["SmallestAttributes"]
    )
    names = set(one.graph.node("trees").attributes)
    assert {"nodes_values_as_tensor", "target_weights"} <= names


def new(modes, values, features, yes, no, leaves, roots, members=(), **more):
    """A model of TreeEnsemble; a leaf below a split is -1 - its number."""
    weights = np.array([w for _, w in leaves], np.float32)
    given = {
        "nodes_modes": numpy_helper.from_array(np.array(modes, np.uint8)),
        "nodes_splits": numpy_helper.from_array(np.array(values, np.float32)),
        "nodes_featureids": features,
        "nodes_trueleafs": [int(k < 0) for k in yes],
        "nodes_falseleafs": [int(k < 0) for k in no],
        "nodes_truenodeids": [k if k >= 0 else -1 - k for k in yes],
        "nodes_falsenodeids": [k if k >= 0 else -1 - k for k in no],
        "leaf_targetids": [t for t, _ in leaves],
        "leaf_weights": numpy_helper.from_array(weights),
        "nodes_hitrates": numpy_helper.from_array(np.ones(len(modes), np.float32)),
        "tree_roots": roots,
        "n_targets": 1,
    }
    if members:
        given["membership_values"] = numpy_helper.from_array(np.array(members, np.float32))
    node = helper.make_node(
        "TreeEnsemble", ["x"], ["y"], "trees", domain="ai.onnx.ml", **given, **more
    )
    return model([node], 5)


def test_one_operator_for_all():
    """TreeEnsemble: unreachable, equal leaves stored once, a tree of one leaf."""
    one = new(
        [0, 0, 1, 0], [1.0, 2.0, 0.0, 0.0], [0, 0, 1, 0], [1, -1, -3, -4], [-2, -3, -5, -4],
        [(0, 1.0), (0, 2.0), (0, 1.0), (0, 5.0), (0, 2.0)], [0, 2, 3],
    )  # fmt: skip
    one = reduced(one, ["UnreachableBranch"])
    assert attribute(one, "leaf_weights").numpy().tolist() == [1.0, 2.0, 5.0]
    assert attribute(one, "nodes_modes").numpy().tolist() == [0, 1, 0]
    assert "nodes_hitrates" not in one.graph.node("trees").attributes


def test_members_of_a_set():
    nan = float("nan")
    one = new(
        [6, 6], [0.0, 0.0], [0, 0], [-1, -2], [1, -3],
        [(0, 1.0), (0, 2.0), (0, 3.0)], [0], members=[1.0, 2.0, nan, 2.0, 3.0, nan],
    )  # fmt: skip
    one = reduced(one, ["SmallestAttributes"])
    assert len(attribute(one, "nodes_featureids")) == 2  # 3 is a member of the second alone


def test_branches_that_meet_again_are_left_alone():
    given = {
        "nodes_treeids": [0] * 4, "nodes_nodeids": [0, 1, 2, 3], "nodes_featureids": [0, 1, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [0.0] * 4,
        "nodes_truenodeids": [2, 2, 0, 0], "nodes_falsenodeids": [1, 3, 0, 0],
        "target_treeids": [0, 0], "target_nodeids": [2, 3], "target_ids": [0, 0],
        "target_weights": [1.0, 2.0], "n_targets": 1,
    }  # fmt: skip
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], "trees", domain="ai.onnx.ml", **given
    )
    one = model([node], 1)
    ctx = Context(one)
    assert Trees().run(one, ctx) == 0
    assert [r.reason for r in ctx.refusals] == ["branches of a tree meet again"]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_set_of_categories_is_a_chain_of_equalities_with_one_way_out(missing):
    """As LightGBM's and XGBoost's categories are converted; what is in it twice is left out."""
    inner = split(0, [1.0, 2.0, 5.0, 7.0], {0: 3.0}, {0: 4.0}, "EQ", missing)
    tree = split(0, [0.0, 1.0, 2.0], {0: 1.0}, split(1, 0.5, inner, {0: 2.0}), "EQ", missing)
    one = reduced(old("Regressor", tree), ["UnreachableBranch"])
    assert splits(one) == [(0, 0), (0, 1), (0, 2), (1, 0.5), (0, 5), (0, 7)]
    ways = attribute(one, "nodes_truenodeids")
    assert ways[0] == ways[1] == ways[2]
    inner = split(0, [0.0, 2.0], {0: 3.0}, {0: 4.0}, "EQ", missing)
    tree = split(0, [0.0, 1.0], inner, {0: 2.0}, "EQ", missing)
    one = reduced(old("Regressor", tree), ["UnreachableBranch"])
    assert splits(one) == [(0, 0), (0, 1), (0, 0)]


def test_a_chain_of_equalities_without_an_end_is_left_alone():
    one = old("Regressor", split(0, [1.0, 2.0], {0: 1.0}, {0: 2.0}, "EQ"))
    node = one.graph.node("trees")
    ways = list(attribute(one, "nodes_falsenodeids"))
    ways[1] = 0  # from the second back to the first
    node.attributes["nodes_falsenodeids"] = ir.AttrInt64s("nodes_falsenodeids", ways)
    ctx = Context(one)
    assert Trees().run(one, ctx) == 0
    assert [r.reason for r in ctx.refusals] == ["a chain of equalities has no end"]


def random_tree(rng, depth, classifier):
    if depth == 0 or rng.random() < 0.15:
        return {int(k): float(rng.integers(0, 4)) for k in range(3 if classifier else 1)}
    modes = ["LEQ", "LEQ", "LT", "GTE", "GT", "EQ", "NEQ"]
    branches = [random_tree(rng, depth - 1, classifier) for _ in range(2)]
    if rng.random() < 0.2:
        some = rng.permutation([-1.0, -0.5, 0.0, 0.5, 1.0])[: rng.integers(2, 5)].tolist()
        return split(int(rng.integers(3)), some, *branches, "EQ", int(rng.random() < 0.3))
    return split(
        int(rng.integers(3)), float(rng.integers(-2, 3)) / 2, *branches, str(rng.choice(modes)),
        int(rng.random() < 0.3),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_random_ensembles_say_the_same(seed):
    """Every combination of what thresholds tell apart; a changed leaf or threshold is no proof."""
    rng = np.random.default_rng(seed)
    classifier = bool(seed % 2)
    trees = [random_tree(rng, 5, classifier) for _ in range(4)]
    trees.append(trees[0])
    made = old(
        "Classifier" if classifier else "Regressor", *trees, **(classes(3) if classifier else {})
    )
    before = made.clone()
    ctx = Context(made)
    assert Trees().run(made, ctx) > 1
    values = np.array([-1, -0.5, 0, 0.5, 1], np.float32)
    values = np.unique([np.nextafter(values, e) for e in (values, -np.inf, np.inf)])
    some = np.concatenate([values, [-np.inf, np.inf, np.nan]]).astype(np.float32)
    grid = np.stack(np.meshgrid(some, some, some), -1).reshape(-1, 3)
    for a, b in zip(
        run(before, {"x": grid}).values(), run(made, {"x": grid}).values(), strict=True
    ):
        assert np.array_equal(a, b)
    found = examine(before, made, ctx.edits)
    assert {v for _, v in found.edits} == {"proved"}
    for name in ("nodes_values", "class_weights" if classifier else "target_weights"):
        wrong = made.clone()
        node = wrong.graph.node("trees")
        held = list(node.attributes[name].value)
        modes = list(node.attributes["nodes_modes"].value)
        k = next(k for k, m in enumerate(modes) if m != "LEAF") if name == "nodes_values" else 0
        held[k] += 0.25
        node.attributes[name] = ir.AttrFloat32s(name, held)
        assert examine(before, wrong, ctx.edits).counts["proved"] == 0


def zipped():
    tree = split(0, 1.0, {0: 0.0, 1: 1.0, 2: 0.0}, {0: 0.5, 1: 0.0, 2: 0.5})
    one = ir.to_proto(old("Classifier", tree, **classes(3)))
    one.graph.node.append(
        helper.make_node(
            "ZipMap", ["p"], ["chances"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]
        )
    )
    entry = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    one.graph.output[1].CopyFrom(
        helper.make_value_info("chances", helper.make_sequence_type_proto(entry))
    )
    return one


def test_dictionaries_stay_and_are_told_of(tmp_path):
    onnx.save(zipped(), tmp_path / "m.onnx")
    result = graphopt.optimize(tmp_path / "m.onnx", "trees", measure=False)
    (step,) = result.report.steps
    assert step.status == "kept"
    assert any("trees(zipmap=False)" in note for note in step.notes)
    rows = run(result.model, {"x": np.zeros((2, 3), np.float32)})["chances"]
    assert rows == [{0: 0.0, 1: 1.0, 2: 0.0}] * 2


def test_dictionaries_become_a_tensor_where_that_is_asked_for(tmp_path):
    onnx.save(zipped(), tmp_path / "m.onnx")
    result = graphopt.optimize(tmp_path / "m.onnx", "trees(zipmap=False)", measure=False)
    (step,) = result.report.steps
    assert (step.status, step.undone) == ("kept", ())
    graphopt.save(result.model, tmp_path / "out.onnx")
    rows = run(graphopt.load(tmp_path / "out.onnx"), {"x": np.zeros((2, 3), np.float32)})
    assert rows["chances"].tolist() == [[0.0, 1.0, 0.0]] * 2
    assert list(result.model.graph.outputs[1].shape)[1] == 3


@dataclasses.dataclass(frozen=True)
class Unzip(Pass):
    """Puts a tensor where dictionaries were, and says nothing of it."""

    def run(self, model, ctx):
        (node,) = [n for n in model.graph if n.op_type == "ZipMap"]
        if not ctx.edit("Unzip", node):
            return 0
        Builder(model, node).take_over(node.outputs[0], node.inputs[0])
        remove_dead([node])
        model.graph.outputs[1].type = ir.TensorType(ir.DataType.FLOAT)
        return 1


def test_nobody_else_changes_dictionaries(tmp_path):
    onnx.save(zipped(), tmp_path / "m.onnx")
    (step,) = graphopt.optimize(tmp_path / "m.onnx", [Unzip()], measure=False).report.steps
    assert step.status == "undone"
    assert "dictionaries became" in step.reason or "invalid graph" in step.reason


def test_models_without_trees_say_so():
    one = parse_model("y = Relu(x)")
    ctx = Context(one)
    assert Trees().run(one, ctx) == 0
    assert ctx.idle == "it has no tree ensembles"
