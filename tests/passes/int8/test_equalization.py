import dataclasses

import numpy as np
import pytest
from graphopt.passes.int8 import Int8

from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.target import ONNX, Int8Scheme
from graphopt.testing import parse_model

DYNAMIC = dataclasses.replace(ONNX, int8=Int8Scheme(dynamic=frozenset({"Gemm", "MatMul"})))
NORM = "n = LayerNormalization(x, g, b)  q = MatMul(n, w)  k = MatMul(n, v)  y = Add(q, k)"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outlying():
    """A norm whose gain makes one channel a hundred times the others."""
    g = np.abs(normal(32, seed=1)) + 0.5
    g[5] *= 100
    w, v = normal(32, 16, seed=2), normal(32, 16, seed=3)
    w[5] /= 100
    v[5] /= 100
    return {"g": g, "b": normal(32, seed=4), "w": w, "v": v}


def errors(before, inputs, constants, target, **options):
    """Relative output error without and with balancing, and the balanced model and context."""
    found = []
    for balance in (False, True):
        model = parse_model(before, inputs=inputs, constants=constants)
        feeds = [{k: normal(*v, seed=s) for k, v in inputs.items()} for s in range(2)]
        expected = run(model, feeds[0])["y"]
        ctx = Context(model, target=target, samples=Samples(feeds))
        Int8(balance=balance, **options).run(model, ctx)
        got = run(model, feeds[0])["y"]
        found.append(float(np.linalg.norm(got - expected) / np.linalg.norm(expected)))
    return *found, model, ctx


@pytest.mark.parametrize("target", [ONNX, DYNAMIC], ids=["static", "dynamic"])
def test_an_outlying_channel_of_a_norm_moves_into_the_weights(target):
    plain, balanced, _, ctx = errors(NORM, {"x": (8, 32)}, outlying(), target)
    assert plain > 0.1
    assert balanced < plain / 5
    assert any("balanced" in n for n in ctx.notes)


def test_channels_of_two_convolutions_are_equalized():
    u, c, w = normal(8, 8, 1, 1, seed=1), normal(8, seed=2), normal(8, 8, 3, 3, seed=3)
    u[0] *= 300
    c[0] *= 300
    w[:, 0] /= 300
    before = "a = Conv(x, u, c)  r = Relu(a)  y = Conv(r, w)"
    constants = {"u": u, "c": c, "w": w}
    plain, balanced, _, _ = errors(before, {"x": (1, 8, 9, 9)}, constants, ONNX)
    assert plain > 0.1
    assert balanced < plain / 5


def test_what_is_even_stays_as_it_is():
    constants = {"g": np.ones(32, np.float32), "b": np.zeros(32, np.float32)}
    constants |= {"w": normal(32, 16, seed=2), "v": normal(32, 16, seed=3)}
    *_, ctx = errors(NORM, {"x": (8, 32)}, constants, DYNAMIC)
    assert not any("balanced" in n for n in ctx.notes)


@pytest.mark.parametrize(
    "before",
    [
        NORM + "  z = Tanh(n)",  # a float reader sees the activation
        "n = LayerNormalization(x, g, b)  q = MatMul(n, w)  k = MatMul(n, v)  s = Add(q, k)  "
        "h = Mul(s, s)  o = Mul(x, g)  y = Concat <axis=1> (h, o)",  # the gain has another reader
    ],
)
def test_what_others_read_is_not_scaled(before):
    *_, ctx = errors(before, {"x": (8, 32)}, outlying(), DYNAMIC)
    assert not any("balanced" in n for n in ctx.notes)


def test_a_unit_that_samples_hardly_wake_is_no_outlier():
    u, c, w = normal(8, 8, 1, 1, seed=1), normal(8, seed=2), normal(8, 8, 3, 3, seed=3)
    c[0] = -20.0  # dead on samples
    u[1] *= 300
    c[1] *= 300
    w[:, 1] /= 300
    before = "a = Conv(x, u, c)  r = Relu(a)  y = Conv(r, w)"
    model = parse_model(before, inputs={"x": (1, 8, 9, 9)}, constants={"u": u, "c": c, "w": w})
    ctx = Context(model, target=ONNX, samples=Samples([{"x": normal(1, 8, 9, 9)}]))
    awake = {"x": 6 * np.sign(u[0]) * np.ones((1, 8, 9, 9), np.float32)}
    expected = run(model, awake)["y"]
    Int8().run(model, ctx)
    assert any("balanced" in n for n in ctx.notes)
    got = run(model, awake)["y"]
    assert np.linalg.norm(got - expected) < 1.5 * np.linalg.norm(expected)


def normalized(gain):
    """A pooled convolution whose channels a normalization brings to one scale."""
    c = {"u": normal(8, 8, 1, 1, seed=1), "c": normal(8, seed=2), "w": normal(8, 8, 3, 3, seed=3)}
    c["u"][0] *= gain
    c["c"][0] *= gain
    c |= {"g": np.ones(8, np.float32), "b": normal(8, seed=4), "m": np.zeros(8, np.float32)}
    c["v"] = np.ones(8, np.float32)
    c["v"][0] = gain**2
    return c


def test_channels_are_equalized_through_a_pool_for_a_normalization():
    before = """
    a = Conv(x, u, c)  r = Relu(a)  p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
    n = BatchNormalization(p, g, b, m, v)  y = Conv(n, w)
    """
    plain, balanced, _, _ = errors(before, {"x": (1, 8, 12, 12)}, normalized(300), ONNX)
    assert plain > 0.1
    assert balanced < plain / 5


def test_a_new_node_divides_what_no_producer_can():
    w = normal(8, 8, 3, seed=3)
    w[:, 0] /= 300
    s = np.ones((8, 1), np.float32)
    s[0] = 300
    before = "a = Mul(x, s)  r = Tanh(x)  m = Add(a, r)  y = Conv(m, w)  z = Identity(m)"
    constants = {"s": s, "w": w}
    plain, balanced, model, _ = errors(before, {"x": (1, 8, 20)}, constants, ONNX)
    assert plain > 0.1
    assert balanced < plain / 5
    assert [n.op_type for n in model.graph].count("Mul") == 2
