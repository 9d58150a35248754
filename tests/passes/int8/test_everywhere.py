"""Q/DQ everywhere, activations of 16 bits where 8 spoil the outputs: what an NPU wants."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.backends.devices.fixed import at_fixed_shapes
from graphopt.backends.qnn import BACKEND
from graphopt.passes.int8 import Int8

from graphopt.budget import Budget
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.graph.constants import constant_value
from graphopt.samples import Samples
from graphopt.testing import parse_model

QNN = BACKEND.target("qnn")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized(model, feeds, budget=None):
    """The model in integers, its context, and its relative error on `feeds`."""
    expected = [run(model, f)["y"] for f in feeds]
    made = model.clone()
    ctx = Context(made, samples=Samples(feeds), target=QNN, budget=budget)
    Int8(balance=False).run(made, ctx)
    found = [run(made, f)["y"] for f in feeds]
    error = np.linalg.norm(np.subtract(found, expected)) / np.linalg.norm(expected)
    return made, ctx, error


def widths(model):
    """How often activations are rounded to each type."""
    return Counter(n.outputs[0].dtype.name for n in model.graph if n.op_type == "QuantizeLinear")


NET = """
e = Gather(table, i)  l = LayerNormalization(e, gamma, beta)  m = MatMul(l, w)
h = Gelu(m)  z = MatMul(h, v)  a = Add(z, e)  t = Transpose<perm=[0,2,1]>(a)
k = MatMul(a, t)  p = Softmax(k)  o = MatMul(p, a)  r = ReduceMean<keepdims=0>(o, one)
c = Clip(r, low, high)  s = Sub(c, third)  y = Gemm(s, g, b)
"""
CONSTANTS = {
    "table": normal(20, 8, seed=1),
    "gamma": 1 + 0.1 * normal(8, seed=2),
    "beta": normal(8, seed=3),
    "w": 0.3 * normal(8, 16, seed=4),
    "v": 0.3 * normal(16, 8, seed=5),
    "one": np.array([1]),
    "low": np.float32(-1),
    "high": np.float32(1),
    "third": np.float32(1 / 3),
    "g": normal(8, 3, seed=6),
    "b": normal(3, seed=7),
}


def net():
    return parse_model(NET, inputs={"i": np.zeros((2, 6), np.int64)}, constants=CONSTANTS, opset=20)


def test_nothing_stays_float():
    rng = np.random.default_rng(0)
    feeds = [{"i": rng.integers(0, 20, (2, 6))} for _ in range(4)]
    made, _, error = quantized(net(), feeds)
    assert error < 0.05
    assert BACKEND.falls_off(at_fixed_shapes(made, QNN)) == []
    assert widths(made).keys() == {"UINT8"}


def test_whole_numbers_are_not_rounded():
    text = """
    n = Shape(x)  b = Gather(n, zero)  s = Concat<axis=0>(b, rest)  f = Reshape(x, s)
    m = MatMul(f, w)  k = ArgMax<axis=1>(m)  y = Add(k, rest)
    """
    constants = {"zero": np.array([0]), "rest": np.array([-1]), "w": normal(12, 3)}
    model = parse_model(text, inputs={"x": (2, 3, 4)}, constants=constants)
    made, _, _ = quantized(model, [{"x": normal(2, 3, 4)}])
    rounded = [n.inputs[0].name for n in made.graph if n.op_type == "QuantizeLinear"]
    assert rounded == ["x", "f", "m"]


def test_weights_are_unsigned_around_128():
    w = normal(4, 3, 3, 3)
    model = parse_model("y = Conv(x, w)", inputs={"x": (1, 3, 8, 8)}, constants={"w": w})
    made, _, _ = quantized(model, [{"x": normal(1, 3, 8, 8)}])
    (conv,) = [n for n in made.graph if n.op_type == "Conv"]
    integers, scale, zero = (constant_value(v) for v in conv.inputs[1].producer().inputs)
    assert integers.dtype is ir.DataType.UINT8
    assert zero.numpy() == 128
    floats = (integers.numpy().astype(np.float32) - 128) * scale.numpy()
    np.testing.assert_allclose(floats, w, atol=float(scale.numpy()) / 2 * 1.001)


def test_once_is_enough():
    feeds = [{"i": np.random.default_rng(0).integers(0, 20, (2, 6))}]
    made, _, _ = quantized(net(), feeds)
    _, ctx, error = quantized(made, feeds)
    assert error == 0
    assert any("as the target wants it: kept" in n for n in ctx.notes)


def test_what_multiplies_no_weights_is_not_worth_it():
    model = parse_model("a = Neg(x)  y = Softmax(a)", inputs={"x": (1, 4)})
    made, ctx, error = quantized(model, [{"x": normal(1, 4)}])
    assert error == 0
    assert not widths(made)
    assert ctx.idle.startswith("no layer to quantize")


# A channel a hundred times the others, which what reads it does not look at.
SPOILT = "a = Conv(x, u)  s = Mul(a, k)  b = Conv(s, v)  c = Relu(b)  d = Conv(c, w)  y = Relu(d)"


def spoilt():
    u, v, w = (normal(8, 8, 1, 1, seed=s) for s in (1, 2, 3))
    v[:, 0] = 0
    k = np.array([100, *[1.5] * 7], np.float32).reshape(1, 8, 1, 1)
    constants = {"u": u, "v": v, "w": w, "k": k}
    model = parse_model(SPOILT, inputs={"x": (1, 8, 6, 6)}, constants=constants)
    return model, [{"x": normal(1, 8, 6, 6, seed=s)} for s in range(4)]


def test_stages_that_8_bits_spoil_get_16_and_nothing_stays_float():
    _, _, free = quantized(*spoilt())
    assert free > 0.3, "the test's outlier must spoil the whole model"
    made, ctx, error = quantized(*spoilt(), Budget(max_error=0.04))
    assert error <= 0.04
    assert widths(made).keys() == {"UINT8", "UINT16"}
    assert BACKEND.falls_off(at_fixed_shapes(made, QNN)) == [], "no operator has two widths"
    assert any("of 3 stages have activations of 16 bits" in n for n in ctx.notes)
    assert not ctx.refusals
    # what was rounded to 16 bits is rounded again for an operator of 8
    again = [
        n
        for n in made.graph
        if n.op_type == "QuantizeLinear"
        and (before := n.inputs[0].producer()) is not None
        and before.op_type == "DequantizeLinear"
    ]
    assert [n.outputs[0].dtype.name for n in again] == ["UINT8"]


def test_where_16_bits_do_not_do_units_go_back_to_float():
    made, ctx, error = quantized(*spoilt(), Budget(max_error=0.004))
    assert error <= 0.004
    assert ctx.refusals
    assert "DynamicQuantizeLinear" not in {n.op_type for n in made.graph}


@pytest.mark.parametrize("budget", [None, Budget(max_error=0.04)])
def test_a_replay_decides_the_same(budget):
    model, feeds = spoilt()
    made, ctx, _ = quantized(model, feeds, budget)
    again = model.clone()
    replayed = Context(again, samples=Samples(feeds), target=QNN, budget=budget, facts=ctx.facts)
    Int8(balance=False).run(again, replayed)
    assert widths(again) == widths(made)
