"""Inputs drawn for what they mean, and shapes bound for dynamic axes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from graphopt.analyses.binding import bind_shapes
from graphopt.errors import SamplesError, UsageError
from graphopt.execution.runtime import run
from graphopt.samples import synthetic
from graphopt.samples.thresholds import categories_of, thresholds_of
from graphopt.testing import parse_model

FLOAT, INT, BOOL = "FLOAT", "INT64", "BOOL"


def model(
    text: str,
    inputs: dict[str, tuple[str, list[int | str | None]]],
    constants: dict[str, np.ndarray] | None = None,
) -> ir.Model:
    """Nodes as text, inputs as (dtype, dims); values never used are outputs."""
    graph = onnx.parser.parse_graph(f"g () => () {{ {text} }}")
    for name, (dtype, dims) in inputs.items():
        kind = getattr(onnx.TensorProto, dtype)
        graph.input.append(helper.make_tensor_value_info(name, kind, dims))
    for name, array in (constants or {}).items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    used = {i for n in graph.node for i in n.input}
    for name in (o for n in graph.node for o in n.output if o and o not in used):
        graph.output.append(onnx.ValueInfoProto(name=name))
    domains = (("", 20), ("my", 1), ("com.microsoft", 1))
    imports = [helper.make_opsetid(*one) for one in domains]
    made = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def drawn(one: ir.Model, runs: int = 4, **given: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """Feeds for `one`, each of which runs and gives finite outputs."""
    shapes, _ = bind_shapes(one, given)
    feeds = list(synthetic(one, seed=0, shapes=shapes, runs=runs))
    for feed in feeds:
        for array in run(one, feed).values():
            assert array.dtype.kind != "f" or np.isfinite(array).all()
    return feeds


TABLE = np.ones((50, 4), np.float32)

IDS: dict[str, tuple[str, dict[str, np.ndarray], int]] = {
    "an embedding": ("y = Gather (t, x)", {"t": TABLE}, 50),
    "cast before": ("c = Cast <to=6> (x) y = Gather (t, c)", {"t": TABLE}, 50),
    "reshaped and sliced": (
        "u = Unsqueeze (x, a) r = Reshape (u, s) l = Slice (r, b, e) y = Gather (t, l)",
        {
            "t": TABLE,
            "a": np.array([0]),
            "s": np.array([-1]),
            "b": np.array([0]),
            "e": np.array([3]),
        },
        50,
    ),
    "the smaller of two tables": (
        "y = Gather (t, x) z = Gather (s, x)",
        {"t": TABLE, "s": np.ones((7, 2), np.float32)},
        7,
    ),
    "another axis": ("y = Gather <axis=1> (t, x)", {"t": TABLE}, 4),
    "rows of several fields": (
        "o = Add (x, f) y = Gather (t, o)",
        {"t": TABLE, "f": np.array([0, 10, 20, 30, 44])},
        6,
    ),
    "one hot": (
        "y = OneHot (x, d, v)",
        {"d": np.array([9]), "v": np.array([0, 1], np.float32)},
        9,
    ),
    "a quantized table": (
        "d = DequantizeLinear (q, s) y = Gather (d, x)",
        {"q": np.ones((8, 4), np.int8), "s": np.array(0.1, np.float32)},
        8,
    ),
    "scattered rows": (
        "u = Unsqueeze (x, a) n = Shape (x) y = ScatterND (t, u, w)",
        {"t": TABLE, "a": np.array([-1]), "w": np.ones((2, 5, 4), np.float32)},
        50,
    ),
}


@pytest.mark.parametrize("case", IDS)
def test_ids_lie_within_what_they_index(case):
    text, constants, high = IDS[case]
    values = np.concatenate(
        [f["x"].ravel() for f in drawn(model(text, {"x": (INT, [2, 5])}, constants), runs=40)]
    )
    assert values.min() == 0
    assert values.max() == high - 1


def test_ids_given_as_floats():
    one = model("c = Cast <to=7> (x) y = Gather (t, c)", {"x": (FLOAT, [2, 5])}, {"t": TABLE})
    (first, *_) = drawn(one)
    assert np.array_equal(first["x"], np.rint(first["x"]))


def test_ids_inside_a_function():
    one = model("y = my.Embed (x)", {"x": (INT, [2, 5])})
    value = ir.Value(name="a")
    table = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(TABLE))], name="t")
    table.outputs[0].const_value = ir.tensor(TABLE)
    gather = ir.Node("", "Gather", [table.outputs[0], value], name="g")
    body = ir.Graph(
        [value], gather.outputs, nodes=[table, gather], opset_imports={"": 20}, name="body"
    )
    one.functions[("my", "Embed", "")] = ir.Function("my", "Embed", graph=body, attributes=())
    values = [f["x"].max() for f in synthetic(one, shapes={"x": (2, 5)}, runs=40)]
    assert max(values) == 49


MASKS: dict[str, tuple[str, str]] = {
    "attention_mask": ("c = Cast <to=1> (attention_mask) y = Identity (c)", INT),
    "by a cast to bool": ("y = Cast <to=9> (x)", INT),
    "by a comparison": ("y = Equal (x, zero)", INT),
    "by one minus it": ("y = Sub (one, x)", INT),
    "bool": ("y = Not (x)", BOOL),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_have_padding_and_a_valid_token_in_each_row(case):
    text, dtype = MASKS[case]
    name = "attention_mask" if "attention" in text else "x"
    constants = {"zero": np.array(0), "one": np.array(1)}
    constants = {k: v for k, v in constants.items() if f", {k})" in text or f"({k}," in text}
    for feed in drawn(model(text, {name: (dtype, [3, 8])}, constants)):
        mask = feed[name].astype(int)
        assert set(np.unique(mask)) == {0, 1}
        assert (mask[:, 0] == 1).all()
        assert (np.diff(mask, axis=1) <= 0).all(), "padding is on the right"
        assert mask[0].all()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_mask_of_one_row_is_padded_too(rows):
    one = model("y = Cast <to=9> (x)", {"x": (INT, [rows, 8])})
    assert all((f["x"] == 0).any() for f in drawn(one))


def test_float_masks_are_added_or_multiplied():
    one = model("y = Add (x, mask)", {"x": (FLOAT, [2, 1, 4, 4]), "mask": (FLOAT, [2, 1, 1, 4])})
    assert set(np.unique(drawn(one)[0]["mask"])) <= {np.float32(-1e4), np.float32(0)}
    one = model("y = Mul (x, mask)", {"x": (FLOAT, [2, 4]), "mask": (FLOAT, [2, 4])})
    assert set(np.unique(drawn(one)[0]["mask"])) <= {0.0, 1.0}


def test_positions_count_up():
    one = model("y = Gather (t, position_ids)", {"position_ids": (INT, [2, 5])}, {"t": TABLE})
    assert np.array_equal(drawn(one)[0]["position_ids"], [[0, 1, 2, 3, 4]] * 2)


def test_token_types_are_within_their_table():
    one = model(
        "y = Gather (t, token_type_ids)",
        {"token_type_ids": (INT, [2, 50])},
        {"t": np.ones((2, 4), np.float32)},
    )
    assert set(np.unique(drawn(one)[0]["token_type_ids"])) == {0, 1}


def test_lengths_are_those_of_the_sequence():
    one = model(
        "y, h = GRU <hidden_size=3> (x, w, r, , n)",
        {"x": (FLOAT, [6, 2, 4]), "n": ("INT32", [2])},
        {"w": np.ones((1, 9, 4), "f4"), "r": np.ones((1, 9, 3), "f4")},
    )
    assert drawn(one)[0]["n"].max() <= 6


SIZES: dict[str, tuple[str, dict[str, tuple[str, list[int | str | None]]]]] = {
    "Reshape": ("y = Reshape (x, s)", {"x": (FLOAT, [1]), "s": (INT, [2])}),
    "Expand": ("y = Expand (x, s)", {"x": (FLOAT, [3]), "s": (INT, [2])}),
    "Tile": ("y = Tile (x, s)", {"x": (FLOAT, [2, 3]), "s": (INT, [2])}),
    "ConstantOfShape": ("y = ConstantOfShape (s)", {"s": (INT, [3])}),
    "Range": ("y = Range (a, b, c)", {"a": (INT, []), "b": (INT, []), "c": (INT, [])}),
    "TopK": ("y, i = TopK (x, s)", {"x": (FLOAT, [2, 3]), "s": (INT, [1])}),
    "Slice": ("y = Slice (x, a, b)", {"x": (FLOAT, [4]), "a": (INT, [1]), "b": (INT, [1])}),
    "Unsqueeze": ("y = Unsqueeze (x, s)", {"x": (FLOAT, [4]), "s": (INT, [1])}),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_are_ones_that_work(case):
    drawn(model(*SIZES[case]))


def test_flags_are_true():
    text = """
    y = If (c) <
        then_branch = t () => (float[n] a) { a = Identity (x) },
        else_branch = e () => (float[n] b) { b = Neg (x) }
    >"""
    assert drawn(model(text, {"c": (BOOL, []), "x": (FLOAT, [3])}))[0]["c"]


@pytest.mark.parametrize(
    ("text", "constant", "low", "high"),
    [
        ("y = Relu (x)", None, -6, 6),
        ("y = Div (x, k)", 255.0, 0, 255),
        ("y = Mul (x, k)", 1 / 255, 0, 255),
        ("y = Sub (x, k)", 0.45, 0, 1),
        ("y = Sub (x, k)", 117.0, 0, 255),
    ],
)
def test_images_are_in_the_range_the_model_scales(text, constant, low, high):
    constants = {} if constant is None else {"k": np.array(constant, np.float32)}
    x = drawn(model(text, {"x": (FLOAT, [1, 3, 32, 32])}, constants))[0]["x"]
    assert low <= x.min() < x.max() <= high
    assert x.max() - x.min() > (high - low) / 3
    rough = np.abs(np.diff(x, axis=3)).mean()
    assert rough < x.std(), "neighbours are alike"


def test_bytes_span_their_range():
    x = drawn(model("y = Cast <to=1> (x)", {"x": ("UINT8", [1, 64, 64, 3])}))[0]["x"]
    assert (x.min(), x.max()) == (0, 255)


def test_what_goes_into_a_logarithm_is_positive():
    drawn(model("y = Log (x)", {"x": (FLOAT, [2, 80, 10])}))


def test_other_floats_are_normal():
    x = drawn(model("y = Relu (x)", {"x": (FLOAT, [100, 100])}))[0]["x"]
    assert abs(x.mean()) < 0.1
    assert abs(x.std() - 1) < 0.1


def test_text():
    one = model("y = Identity (x)", {"x": ("STRING", [2])})
    assert drawn(one)[0]["x"].dtype == object


def test_the_seed_decides():
    one = model("y = Relu (x)", {"x": (FLOAT, [3, 3])})
    shapes, _ = bind_shapes(one)
    first, same, other = (synthetic(one, seed=s, shapes=shapes) for s in (1, 1, 2))
    assert first.digest() == first.digest() == same.digest() != other.digest()
    a, b = first
    assert not np.array_equal(a["x"], b["x"])
    assert first.synthetic


# --- shapes ---------------------------------------------------------------------------------


def test_fixed_shapes_say_nothing():
    assert bind_shapes(model("y = Relu (x)", {"x": (FLOAT, [2, 3])})) == ({"x": (2, 3)}, [])


def test_a_free_batch_is_one_and_said():
    shapes, notes = bind_shapes(model("y = Relu (x)", {"x": (FLOAT, ["n", 3])}))
    assert shapes == {"x": (1, 3)}
    assert "x=1x3" in notes[0]
    assert "--shape" in notes[0]


def test_given_shapes_are_taken_and_shared():
    two = model("y = Add (a, b)", {"a": (FLOAT, ["n", "t"]), "b": (FLOAT, ["n", "t"])})
    assert bind_shapes(two, {"a": [4, 7]}) == (
        {"a": (4, 7), "b": (4, 7)},
        ["Dynamic axes were bound to b=4x7; --shape binds them otherwise."],
    )


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"z": (1, 2)}, "no such input"),
        ({"a": (1, 2, 3)}, r"the model takes float32\[n, 3\]"),
        ({"a": (1, 4)}, r"the model takes float32\[n, 3\]"),
        ({"a": (1, 3), "b": (2, 3)}, "axis 'n' has 1"),
    ],
)
def test_given_shapes_that_do_not_fit(given, word):
    two = model("y = Add (a, b)", {"a": (FLOAT, ["n", 3]), "b": (FLOAT, ["n", 3])})
    with pytest.raises(UsageError, match=word):
        bind_shapes(two, given)


def sequence(limit: int) -> ir.Model:
    """Tokens with learned positions: sequences longer than `limit` do not run."""
    text = """
    n = Shape <start=1, end=2> (ids) z = Squeeze (n)
    r = Range (zero, z, one) p = Gather (t, r) e = Gather (t, ids) y = Add (e, p)"""
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "t": np.ones((limit, 4), np.float32),
    }
    return model(text, {"ids": (INT, ["batch", "sequence"])}, constants)


@pytest.mark.parametrize(("limit", "size"), [(512, 16), (10, 8), (3, 1)])
def test_sequences_get_a_length_that_runs(limit, size):
    shapes, _ = bind_shapes(sequence(limit))
    assert shapes == {"ids": (1, size)}


def test_images_get_a_size_that_runs():
    text = "c = Conv <strides=[32, 32]> (x, w) f = Flatten (c) y = MatMul (f, v)"
    for side in (224, 64):
        constants = {
            "w": np.ones((2, 3, 32, 32), np.float32),
            "v": np.ones((2 * (side // 32) ** 2, 5), np.float32),
        }
        shapes, _ = bind_shapes(model(text, {"x": (FLOAT, ["n", 3, "h", "w"])}, constants))
        assert shapes == {"x": (1, 3, side, side)}


def test_sizes_follow_the_samples():
    one = model("y = Relu (x)", {"x": (FLOAT, ["n", 3, "h", "w"])})
    like = {"x": np.zeros((8, 3, 48, 40), np.float32)}
    assert bind_shapes(one, like=like)[0] == {"x": (1, 3, 48, 40)}
    assert bind_shapes(one, {"x": (2, 3, 5, 5)}, like=like)[0] == {"x": (2, 3, 5, 5)}


def test_sums_of_axes():
    """As exporters of generators name the mask's length."""
    one = model(
        "c = Concat <axis=1> (past, x) y = Mul (c, mask)",
        {
            "past": (FLOAT, ["batch", "past_length"]),
            "x": (FLOAT, ["batch", "new_length"]),
            "mask": (FLOAT, ["batch", "past_length + new_length"]),
        },
    )
    shapes, _ = bind_shapes(one)
    assert shapes["mask"][1] == shapes["past"][1] + shapes["x"][1]
    drawn(one)


def test_axes_without_a_name():
    one = model("y = Relu (x)", {"x": (FLOAT, [None, None, 8])})
    shapes, _ = bind_shapes(one)
    assert shapes["x"][0] == 1
    assert shapes["x"][2] == 8


def test_no_sizes_that_run():
    one = model("y = MatMul (x, w)", {"x": (FLOAT, ["n", "k"])}, {"w": np.ones((77, 2), "f4")})
    _, notes = bind_shapes(one)
    assert "--shape" in notes[0]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_number_that_the_graph_compares_with_is_given(shape):
    """A sampling rate: any other takes the branch that nobody uses, or none."""
    model = parse_model(
        "e = Equal (rate, known)  y = Where (e, x, z)",
        constants={"known": np.array(16000), "z": np.float32([0])},
        inputs={"rate": np.zeros(shape, np.int64), "x": (2, 3)},
    )
    (feed, *_) = synthetic(model, shapes={"rate": shape, "x": (2, 3)})
    assert feed["rate"].shape == shape
    assert (feed["rate"] == 16000).all()


def test_an_input_that_is_too_large_is_not_drawn():
    huge = model("y = Relu(x)", {"x": (FLOAT, [1 << 31])})
    with pytest.raises(SamplesError, match=r"8\.6 GB: too large to draw; give --samples"):
        synthetic(huge, shapes={"x": (1 << 31,)})


def trees(mode: str = "BRANCH_LEQ", missing: int = 0) -> onnx.NodeProto:
    """x[1] at 3, x[0] at -2; columns are scaled by 2 after 1 was taken away."""
    return helper.make_node(
        "TreeEnsembleRegressor", ["s"], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0] * 5, nodes_nodeids=[0, 1, 2, 3, 4], nodes_featureids=[1, 0, 0, 0, 0],
        nodes_modes=[mode, mode, "LEAF", "LEAF", "LEAF"], nodes_values=[3.0, -2.0, 0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 3, 0, 0, 0], nodes_falsenodeids=[2, 4, 0, 0, 0],
        nodes_missing_value_tracks_true=[missing, 0, 0, 0, 0],
        target_treeids=[0] * 3, target_nodeids=[2, 3, 4], target_ids=[0] * 3,
        target_weights=[1.0, 2.0, 3.0],
    )  # fmt: skip


@pytest.mark.parametrize("scaled", [False, True])
def test_what_trees_read_lies_about_their_thresholds(scaled: bool) -> None:
    before = (
        helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
        if scaled
        else helper.make_node("Cast", ["x"], ["s"], to=1)
    )
    graph = helper.make_graph(
        [before, trees(missing=1)], "g",
        [helper.make_tensor_value_info("x", 1, [None, 3])],
        [helper.make_tensor_value_info("y", 1, [None, 1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    made = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    samples = list(synthetic(made, seed=0, shapes={"x": (1, 3)}))
    assert len(samples) == 64  # a row takes one way down a tree
    x = np.concatenate([s["x"] for s in samples])
    for column, at in enumerate((0.0, 2.5) if scaled else (-2.0, 3.0)):
        threshold = np.float32(at)
        seen = set(x[:, column].tolist())
        wanted = {threshold, *(np.nextafter(threshold, np.float32(e)) for e in (-np.inf, np.inf))}
        assert wanted <= seen
    assert np.isnan(x[:, 1]).any()
    assert not np.isnan(x[:, 0]).any()
    assert 0.5 < x[:, 2].std() < 1.5


def test_branches_that_meet_again_have_thresholds_too() -> None:
    """Lists that are no tree, as those of LightGBM with categories."""
    node = trees("BRANCH_EQ")
    by_name = {a.name: a for a in node.attribute}
    by_name["nodes_truenodeids"].ints[1] = 1  # the second split leads to itself
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("s", 1, [None, 3])],
        [helper.make_tensor_value_info("y", 1, [None, 1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    made = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    (value,) = made.graph.inputs
    assert thresholds_of(value) == ((-2.0,), (3.0,))
    assert categories_of(value) == {0, 1}


def test_texts_that_an_encoder_knows() -> None:
    node = helper.make_node(
        "OneHotEncoder", ["x"], ["y"], domain="ai.onnx.ml", cats_strings=["red", "green"]
    )
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.STRING, [None, 1])],
        [helper.make_tensor_value_info("y", 1, [None, 1, 2])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    made = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    (first, *_) = synthetic(made, seed=0, shapes={"x": (20, 1)})
    assert set(first["x"].ravel().tolist()) == {"red", "green"}


GRAPH_NETWORK = """
    shown = Gather<axis = 0>(table, kind)
    h = Gemm<transB = 1>(shown, w)
    gate = Sigmoid(h)
    z = Mul(h, gate)
    first = Constant<value = int64 {0}>()
    ends = Gather<axis = 0>(edges, first)
    sent = Gather<axis = 0>(z, ends)
    axes = Constant<value = int64[1] {1}>()
    at = Unsqueeze(graph, axes)
    back = GatherND(sums, at)
    y = Concat<axis = 1>(z, back)
"""


def graph_network() -> ir.Model:
    """Messages along edges between nodes, each of which is in a graph."""
    return model(
        GRAPH_NETWORK,
        {
            "kind": (INT, ["nodes"]),
            "edges": (INT, [2, "edges"]),
            "graph": (INT, ["nodes"]),
            "sums": (FLOAT, ["graphs", 3]),
        },
        {"table": np.ones((5, 3), np.float32), "w": np.ones((3, 3), np.float32)},
    )


def test_ids_stay_within_the_axis_that_they_count_along():
    """Ends of edges count nodes: the axis of another input, behind layers without shapes."""
    one = graph_network()
    for v in one.graph:
        for o in v.outputs:
            o.shape = None
    shapes, notes = bind_shapes(one)
    assert shapes == {"kind": (16,), "edges": (2, 16), "graph": (16,), "sums": (16, 3)}
    assert notes[0].startswith("Dynamic axes were bound to kind=16")
    small = {"kind": (3,), "edges": (2, 40), "graph": (3,), "sums": (2, 3)}
    for feeds in synthetic(one, shapes=small):
        assert set(np.unique(feeds["edges"])) == {0, 1, 2}
        assert set(np.unique(feeds["kind"])) <= set(range(5))
        assert set(np.unique(feeds["graph"])) <= {0, 1}
        assert run(one, feeds)["y"].shape == (3, 6)


def test_an_axis_that_others_share_is_no_sound():
    """Scores of candidates beside their features, either first."""
    scores, features = ("FLOAT", ["n", "k"]), ("FLOAT", ["n", "k", 8])
    for inputs in ({"s": scores, "f": features}, {"f": features, "s": scores}):
        one = model("y = ReduceSum(f) z = Relu(s)", inputs)
        assert bind_shapes(one)[0] == {"s": (1, 16), "f": (1, 16, 8)}
    alone = model("z = Relu(s)", {"s": scores})
    assert bind_shapes(alone)[0] == {"s": (1, 16000)}


def test_ids_of_a_table_in_blocks_are_within_its_rows():
    text = "y = com.microsoft.GatherBlockQuantized <bits = 8, block_size = 16> (t, x, s)"
    constants = {"t": np.ones((7, 32), np.uint8), "s": np.ones((7, 2), np.float32)}
    one = model(text, {"x": (INT, ["n", 5])}, constants)
    values = np.concatenate([f["x"].ravel() for f in drawn(one, runs=40, x=(2, 5))])
    assert (values.min(), values.max()) == (0, 6)
    assert bind_shapes(one)[0] == {"x": (1, 5)}
