import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph.constants import (
    constant_array,
    constant_shape,
    constant_value,
    is_constant,
    number,
    shared,
    weight_of,
)
from graphopt.testing import parse_model

W = np.arange(6, dtype=np.float32).reshape(2, 3)


def value(text, *, inputs=None, constants=None, name="v"):
    """The value `name` of a graph; `w` is an initializer."""
    model = parse_model(
        text, inputs=inputs or {"x": (2, 3)}, constants={"w": W} | (constants or {})
    )
    made = {o.name: o for n in model.graph for o in n.outputs}
    return made.get(name) or model.graph.initializers[name]


def test_an_initializer_and_a_constant_node_are_held():
    held = value("y = Add (x, w)", name="w")
    assert constant_value(held) is held.const_value
    assert constant_shape(held) == (2, 3)
    node = value("v = Constant <value = float[3] {1.0, 2.0, 3.0}> ()  y = Add (x, v)")
    np.testing.assert_array_equal(constant_array(node), [1, 2, 3])
    scalar = value("v = Constant <value_float = 0.5> ()  y = Add (x, v)")
    assert number(scalar) == 0.5
    assert constant_shape(scalar) == ()


def test_a_default_that_callers_may_override_is_no_constant():
    model = parse_model(
        "v = Transpose (w)  y = Add (x, v)", inputs={"x": (3, 2)}, constants={"w": W}
    )
    w = model.graph.initializers["w"]
    assert is_constant(w)
    model.graph.inputs.append(w)
    assert constant_value(w) is None
    assert not is_constant(w)
    assert constant_array(next(iter(model.graph)).outputs[0]) is None
    assert weight_of(next(iter(model.graph)).outputs[0]) is None


def test_nothing_is_no_constant():
    assert constant_value(None) is None
    assert constant_array(None) is None
    assert not is_constant(None)
    assert number(None) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v = Transpose (w)", W.T),
        ("v = Identity (w)", W),
        ("a = Transpose (w)  v = Cast <to = 1> (a)", W.T),
        ("v = Mul (w, w)", W * W),
        ("v = Concat <axis = 0> (w, w)", np.concatenate([W, W])),
        ("a = Abs (w)  s = Sqrt (a)  v = Div (w, s)", None),
        ("v = Tanh (w)", np.tanh(W)),
    ],
)
def test_what_constants_compute_is_constant(text, expected):
    found = value(f"{text}  y = Identity (v)  z = Add (x, w)")
    assert constant_value(found) is None
    assert is_constant(found)
    got = constant_array(found)
    if expected is not None:
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got is not None


@pytest.mark.parametrize(
    "text",
    [
        "v = Add (x, w)",
        "v = RandomNormalLike (w)",
        "v = RandomNormal <shape = [2, 3]> ()",
        "v = com.microsoft.Gelu (w)",
        "q = Cast <to = 3> (w)  s = Constant <value_float = 0.5> ()  v = DequantizeLinear (q, s)",
    ],
)
def test_what_is_not_fixed_or_is_quantized_is_not(text):
    found = value(f"{text}  y = Identity (v)  z = Add (x, w)")
    assert not is_constant(found)
    assert constant_array(found) is None


def test_long_chains_are_activations_and_need_no_stack():
    chain = "a0 = Relu (x)  " + "  ".join(f"a{k} = Relu (a{k - 1})" for k in range(1, 3000))
    assert not is_constant(value(f"{chain}  y = Add (a2999, w)", name="a2999"))


def test_a_diamond_is_computed_once_for_each_node():
    text = "a0 = Identity (w)  " + "  ".join(
        f"a{k} = Add (a{k - 1}, a{k - 1})" for k in range(1, 40)
    )
    got = constant_array(value(f"{text}  y = Add (x, a39)", name="a39"))
    np.testing.assert_array_equal(got, W * 2**39)


def test_a_weight_is_seen_through_identity_and_transpose():
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    text = "a = Identity (c)  b = Transpose <perm = [1, 2, 0]> (a)  v = Transpose (b)  y = Neg (v)"
    found = weight_of(value(text, constants={"c": cube}))
    assert found is not None
    assert found.root.name == "c"
    assert found.shape == (2, 4, 3)
    np.testing.assert_array_equal(found.array(), cube.transpose(1, 2, 0).transpose())


def test_a_transpose_of_unknown_shape_needs_no_annotation():
    found = value("v = Transpose (w)  y = Add (x, v)", inputs={"x": (3, 2)})
    found.producer().inputs[0].shape = None
    assert weight_of(found).perm == (1, 0)


def test_a_computed_weight_is_not_held():
    assert weight_of(value("v = Mul (w, w)  y = Add (x, v)")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v = Transpose (w)  y = MatMul (x, v)", False),
        ("v = Transpose (w)  y = MatMul (x, v)  z = MatMul (x, v)", True),
        ("v = Transpose (w)  y = MatMul (x, v)  z = Neg (w)", True),
        ("a = Cast <to = 10> (w)  v = Transpose (a)  y = Neg (v)  z = Neg (a)", True),
        ("v = Mul (w, w)  y = MatMul (x, v)", False),
    ],
)
def test_numbers_are_shared_through_nodes_that_move_them(text, expected):
    found = value(text, inputs={"x": (2, 3)})
    assert isinstance(found, ir.Value)
    assert shared(found) is expected


def test_an_output_is_shared():
    model = parse_model("y = Identity (w)", inputs={"x": (2, 3)}, constants={"w": W})
    assert shared(model.graph.outputs[0])
