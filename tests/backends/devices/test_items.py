"""One item of a batch, and the forms that converters take: each computes what the model did."""

from collections import Counter

import numpy as np
import pytest
from graphopt.backends.devices.forms import FOR_MNN, FOR_NCNN, in_plain_forms
from graphopt.backends.devices.items import batch_of, one_item

from graphopt.execution.runtime import run
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def kinds(model):
    return Counter(n.op_type for n in model.graph)


def test_shapes_and_repeated_constants_of_a_batch_become_those_of_one_item():
    text = "c = Concat<axis=1>(t, x)  r = Reshape(c, s)  y = Transpose<perm=[0,2,1]>(r)"
    constants = {"t": np.repeat(drawn(1, 1, 4), 2, 0), "s": np.array([2, 4, 4])}
    model = parse_model(text, inputs={"x": (2, 3, 4)}, constants=constants)
    assert batch_of(model) == 2
    item = one_item(model, 2)
    x = drawn(2, 3, 4)
    parts = [run(item, {"x": x[k : k + 1]})["y"] for k in range(2)]
    np.testing.assert_allclose(np.concatenate(parts), run(model, {"x": x})["y"])


def test_heads_joined_with_the_batch_are_divided():
    text = "r = Reshape(x, s)  y = Reshape(r, t)"
    constants = {"s": np.array([6, 4]), "t": np.array([2, 3, 4])}
    model = parse_model(text, inputs={"x": (2, 12)}, constants=constants)
    assert batch_of(one_item(model, 2)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "m = ReduceMean<keepdims=1>(x, a)  y = Sub(x, m)",  # over the batch
        "y = Add(x, c)",  # another constant for each item
    ],
)
def test_items_that_are_not_computed_alone_are_refused(text):
    constants = {"a": np.array([0]), "c": drawn(2, 3)}
    model = parse_model(text, inputs={"x": (2, 3)}, constants=constants)
    assert one_item(model, 2) is None


def test_axes_that_are_not_shared_are_no_batch():
    model = parse_model("y = MatMul(x, z)", inputs={"x": (2, 3), "z": (3, 4)})
    assert batch_of(model) == 1


GUARD = "s = Softmax({})  n = IsNaN(s)  y = Where(n, z, s)"


def test_a_guard_of_scores_without_a_mask_goes():
    text = "m = MatMul(x, w)  " + GUARD.format("m")
    constants = {"w": drawn(3, 4), "z": np.float32(0)}
    model = parse_model(text, inputs={"x": (2, 3)}, constants=constants)
    made = in_plain_forms(model)
    assert kinds(made) == {"MatMul": 1, "Softmax": 1}
    x = drawn(2, 3)
    np.testing.assert_array_equal(run(made, {"x": x})["y"], run(model, {"x": x})["y"])


def test_a_guard_of_masked_scores_stays_and_gives_its_value():
    model = parse_model(
        "a = Add(x, m)  " + GUARD.format("a"),
        inputs={"x": (2, 3), "m": (2, 3)},
        constants={"z": np.float32(0)},
    )
    made = in_plain_forms(model)
    assert kinds(made) == {"Add": 1, "Softmax": 1, "Equal": 1, "Not": 1, "Where": 1}
    mask = np.array([[0, -np.inf, 0], [-np.inf] * 3], np.float32)
    feeds = {"x": drawn(2, 3), "m": mask}
    got = run(made, feeds)["y"]
    np.testing.assert_array_equal(got, run(model, feeds)["y"])
    assert (got[1] == 0).all()


GRU = {"w": drawn(1, 12, 3), "r": drawn(1, 12, 4), "b": drawn(1, 24)}
STATE = 'y = GRU<hidden_size=4>(x, w, r, b, "", z)'
COLUMNS = "t = Transpose<perm=[1,0]>(x)  g = GatherND(t, i)  y = Transpose<perm=[1,0]>(g)"


@pytest.mark.parametrize(
    ("text", "shape", "constants", "left"),
    [
        (
            "y = InstanceNormalization<epsilon=0.01>(x, s, b)",
            (2, 3, 7),
            {"s": drawn(3), "b": drawn(3)},
            {"Reshape": 2, "InstanceNormalization": 1},
        ),
        (STATE, (5, 2, 3), {**GRU, "z": np.zeros((1, 2, 4), np.float32)}, {"GRU": 1}),
        (
            "y = ReduceMean<keepdims=0>(x, a)",
            (2, 5, 3),
            {"a": np.array([1])},
            {"Transpose": 1, "GlobalAveragePool": 1, "Reshape": 1},
        ),
        ("y = Gather<axis=1>(x, i)", (2, 5, 3), {"i": np.array(-1)}, {"Slice": 1, "Reshape": 1}),
        (COLUMNS, (2, 5), {"i": np.array([[3], [0]])}, {"MatMul": 1}),
    ],
)
def test_forms_for_ncnn(text, shape, constants, left):
    model = parse_model(text, inputs={"x": shape}, constants=constants)
    made = in_plain_forms(model, *FOR_NCNN)
    assert kinds(made) == left
    x = drawn(*shape)
    np.testing.assert_allclose(run(made, {"x": x})["y"], run(model, {"x": x})["y"], rtol=1e-5)


def test_only_a_first_state_of_zeros_goes():
    for z, kept in ((np.zeros((1, 2, 4), np.float32), 4), (drawn(1, 2, 4), 6)):
        model = parse_model(STATE, inputs={"x": (5, 2, 3)}, constants={**GRU, "z": z})
        (node,) = in_plain_forms(model, *FOR_NCNN).graph
        assert len(node.inputs) == kept


def test_gelu_is_written_by_erf_where_the_device_would_approximate_it():
    x = drawn(2, 64) * 3
    for approximate, left in (("none", 0), ("tanh", 1)):
        text = f'y = Gelu<approximate="{approximate}">(x)'
        model = parse_model(text, inputs={"x": x.shape})
        made = in_plain_forms(model, *FOR_MNN)
        assert kinds(made)["Gelu"] == left
        np.testing.assert_allclose(run(made, {"x": x})["y"], run(model, {"x": x})["y"], atol=1e-6)


def test_both_directions_side_by_side_are_written_as_exporters_write_them():
    text = 'h = LSTM<direction="bidirectional", hidden_size=3>(x, w, r)  '
    text += "t = Transpose<perm=[2,0,1,3]>(h)  y = Reshape(t, shape)"
    constants = {"w": drawn(2, 12, 5), "r": drawn(2, 12, 3), "shape": np.array([1, 4, 6])}
    model = parse_model(text, inputs={"x": (4, 1, 5)}, constants=constants)
    made = in_plain_forms(model, *FOR_NCNN)
    assert [n.op_type for n in made.graph] == ["LSTM", "Transpose", "Reshape", "Transpose"]
    x = drawn(4, 1, 5)
    np.testing.assert_array_equal(run(made, {"x": x})["y"], run(model, {"x": x})["y"])
