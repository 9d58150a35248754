import dataclasses

import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.target import ONNX
from graphopt.testing import check

OLD = dataclasses.replace(ONNX, opset=13)
RUNTIME = dataclasses.replace(
    ONNX,
    opset=13,
    operators=frozenset(f"com.microsoft:{n}" for n in ("Gelu", "FastGelu", "QuickGelu")),
)


def constant(name, value):
    return f"{name} = Constant <value_float={value}> ()  "


ERF = [
    "a = Div(x, r)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, half)",
    "a = Mul(x, q)  b = Erf(a)  c = Add(one, b)  d = Mul(half, x)  y = Mul(d, c)",
    "a = Div(x, r)  b = Erf(a)  c = Add(b, one)  d = Mul(c, half)  y = Mul(x, d)",
]
SETUP = (
    constant("r", 1.4142135381698608)
    + constant("q", 0.70710678)
    + constant("half", 0.5)
    + constant("one", 1.0)
)


@pytest.mark.parametrize("body", ERF)
def test_gelu_by_erf(body):
    model = check(Fuse(), SETUP + body, inputs={"x": (2, 3)})
    assert "Gelu" in [n.op_type for n in model.graph]


def test_gelu_of_an_old_opset_needs_the_runtimes_operator():
    check(Fuse(), SETUP + ERF[0], because="no Gelu", opset=13, target=OLD)
    model = check(Fuse(), SETUP + ERF[0], opset=13, target=RUNTIME)
    assert [(n.domain, n.op_type) for n in model.graph if n.op_type != "Constant"] == [
        ("com.microsoft", "Gelu")
    ]


@pytest.mark.parametrize(
    "constants", [("r", 1.5), ("half", 0.4), ("one", 1.1)], ids=["root", "half", "one"]
)
def test_not_quite_gelu_by_erf(constants):
    check(
        Fuse(),
        SETUP.replace(
            next(s for s in SETUP.split("  ") if s.startswith(constants[0])),
            constant(*constants).strip(),
        )
        + ERF[0],
        unchanged=True,
    )


TANH = [
    """d = Pow(x, three)  e = Mul(d, k)  f = Add(x, e)  g = Mul(f, s)  h = Tanh(g)
       i = Add(h, one)  j = Mul(x, half)  y = Mul(j, i)""",
    """a = Mul(x, s)  b = Mul(x, k)  c = Mul(b, x)  d = Add(c, one)  e = Mul(a, d)  f = Tanh(e)
       g = Add(f, one)  h = Mul(x, half)  y = Mul(h, g)""",
    """a = Mul(x, x)  b = Mul(x, a)  c = Mul(b, k)  d = Add(c, x)  e = Mul(d, s)  f = Tanh(e)
       g = Add(f, one)  h = Mul(x, g)  y = Mul(h, half)""",
]
TANH_SETUP = (
    constant("three", 3.0)
    + constant("k", 0.044714998453855515)
    + constant("s", 0.7978845834732056)
    + constant("half", 0.5)
    + constant("one", 1.0)
)


@pytest.mark.parametrize("body", TANH)
def test_gelu_by_tanh(body):
    model = check(Fuse(), TANH_SETUP + body)
    last = list(model.graph)[-1]
    assert last.op_type == "Gelu"
    assert last.attributes["approximate"].as_string() == "tanh"
    model = check(Fuse(), TANH_SETUP + body, target=RUNTIME, opset=13)
    assert list(model.graph)[-1].op_type == "FastGelu"


def test_silu_is_quick_gelu_where_the_target_has_it():
    before = "a = Sigmoid(x)  y = Mul(x, a)"
    check(Fuse(), before, because="neither QuickGelu nor Swish")
    check(Fuse(), before, "y = com.microsoft.QuickGelu <alpha=1.0> (x)", target=RUNTIME)


def test_gelu_by_sigmoid():
    before = constant("k", 1.702) + "a = Mul(x, k)  b = Sigmoid(a)  y = Mul(x, b)"
    model = check(Fuse(), before, target=RUNTIME)
    assert list(model.graph)[-1].op_type == "QuickGelu"


def test_a_gate_by_another_value_is_no_silu():
    check(Fuse(), "a = Sigmoid(z)  y = Mul(x, a)", unchanged=True, target=RUNTIME)


def test_hard_swish():
    setup = constant("three", 3.0) + constant("zero", 0.0) + constant("six", 6.0)
    body = "a = Add(x, three)  b = Clip(a, zero, six)  c = Div(b, six)  y = Mul(x, c)"
    assert list(check(Fuse(), setup + body).graph)[-1].op_type == "HardSwish"
    body = "a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six)"
    assert list(check(Fuse(), setup + body).graph)[-1].op_type == "HardSwish"
    body = "a = Add(x, three)  b = Clip(a, zero, six)  y = Div(b, six)"
    assert list(check(Fuse(), setup + body).graph)[-1].op_type == "HardSigmoid"


def test_another_clip_is_no_hard_sigmoid():
    setup = constant("three", 3.0) + constant("zero", 0.0) + constant("six", 6.5)
    body = "a = Add(x, three)  b = Clip(a, zero, six)  y = Div(b, six)"
    check(Fuse(), setup + body, unchanged=True)


def test_mish():
    check(Fuse(), "a = Softplus(x)  b = Tanh(a)  y = Mul(x, b)", "y = Mish(x)")
    check(Fuse(), "a = Softplus(x)  b = Tanh(a)  y = Mul(z, b)", unchanged=True)


@pytest.mark.parametrize("slopes", [[0.25], [0.25, 0.25, 0.25]])
def test_a_slope_that_is_one_number(slopes):
    check(
        Fuse(),
        before="y = PRelu(x, s)",
        after="y = LeakyRelu<alpha=0.25>(x)",
        inputs={"x": (2, 3, 4, 4)},
        constants={"s": np.float32(slopes).reshape(-1, 1, 1)},
    )


def test_slopes_that_differ_stay():
    text = "y = PRelu(x, s)"
    slopes = np.float32([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    check(Fuse(), text, text, inputs={"x": (2, 3, 4, 4)}, constants={"s": slopes})
