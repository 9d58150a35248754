import dataclasses

import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.target import ONNX
from graphopt.testing import check

WIDE = dataclasses.replace(ONNX, joins_products=True)
RNG = np.random.default_rng(0)


def weight(*shape):
    return RNG.standard_normal(shape).astype("f4")


W = {"q": weight(8, 8), "k": weight(8, 4), "v": weight(8, 4)}
B = {"a": weight(8), "b": weight(4), "c": weight(4)}
PLAIN = "r = Relu(x)  d = MatMul(r, q)  e = MatMul(r, k)  f = MatMul(r, v)"
BIASED = """r = Relu(x)  g = MatMul(r, q)  h = MatMul(r, k)  i = MatMul(r, v)
    d = Add(g, a)  e = Add(b, h)  f = Add(i, c)"""
READ = "  s = Sigmoid(d)  t = Tanh(e)  u = Exp(f)"


def test_three_products_become_one():
    check(
        Fuse(),
        PLAIN + READ,
        "r = Relu(x)  w = MatMul(r, m)  d, e, f = Split <axis=-1> (w, n)" + READ,
        inputs={"x": (2, 5, 8)},
        constants=W,
        target=WIDE,
    )


def test_biases_are_joined_too():
    check(
        Fuse(),
        BIASED + READ,
        "r = Relu(x)  p = MatMul(r, m)  w = Add(p, o)  d, e, f = Split <axis=-1> (w, n)" + READ,
        inputs={"x": (2, 5, 8)},
        constants={**W, **B},
        target=WIDE,
    )


def test_gemm_turned_or_not():
    turned = {n: np.ascontiguousarray(w.T) for n, w in W.items()}
    check(
        Fuse(),
        "d = Gemm <transB=1> (x, q, a)  e = Gemm <transB=1> (x, k, b)  s = Sigmoid(d)  t = Tanh(e)",
        "w = Gemm <transB=1> (x, m, o)  d, e = Split <axis=-1> (w, n)  s = Sigmoid(d)  t = Tanh(e)",
        inputs={"x": (5, 8)},
        constants={"q": turned["q"], "k": turned["k"], "a": B["a"], "b": B["b"]},
        target=WIDE,
    )


def test_gate_and_up():
    model = check(
        Fuse(),
        "g = MatMul(x, q)  u = MatMul(x, p)  s = Sigmoid(g)  y = Mul(s, u)",
        inputs={"x": (2, 5, 8)},
        constants={"q": W["q"], "p": weight(8, 8)},
        target=WIDE,
    )
    assert [n.op_type for n in model.graph].count("MatMul") == 1


@pytest.mark.parametrize(
    ("text", "constants", "target"),
    [
        (PLAIN + READ, W, ONNX),  # the target does not ask for it
        ("d = MatMul(x, q)  e = MatMul(z, k)  s = Sigmoid(d)  t = Tanh(e)", W, WIDE),
        # a weight that something else reads
        ("d = MatMul(x, q)  e = MatMul(x, q)  s = Sigmoid(d)  t = Tanh(e)", W, WIDE),
        # one has a bias, the other none
        (
            "g = MatMul(x, q)  d = Add(g, a)  e = MatMul(x, k)  s = Sigmoid(d)  t = Tanh(e)",
            {**W, **B},
            WIDE,
        ),
        # an output of the model keeps its node
        ("y = MatMul(x, q)  e = MatMul(x, k)  t = Tanh(e)", W, WIDE),
    ],
)
def test_they_stay_apart(text, constants, target):
    model = check(
        Fuse(), text, inputs={"x": (2, 5, 8), "z": (2, 5, 8)}, constants=constants, target=target
    )
    assert not any(n.op_type == "Split" for n in model.graph)
