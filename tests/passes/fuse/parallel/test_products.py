import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

RNG = np.random.default_rng(0)


def weight(*shape):
    return RNG.standard_normal(shape).astype("f4") / 4


W = {"w": weight(6, 8), "a": weight(6, 2), "b": weight(2, 8), "c": weight(8)}
ROWS = {"x": (2, 5, 6)}
SCALE = np.float32(0.5)


def test_adapter_of_low_rank_goes_into_the_weight():
    check(
        Fuse(),
        """p = MatMul(x, w)  q = Add(p, c)  d = MatMul(x, a)  e = MatMul(d, b)  s = Mul(e, k)
        y = Add(q, s)""",
        "p = MatMul(x, v)  y = Add(p, c)",
        inputs=ROWS,
        constants={**W, "k": SCALE},
    )


def test_gemms_turned_scaled_and_with_biases():
    check(
        Fuse(),
        """p = Gemm <transB=1, alpha=0.5, beta=2.0> (x, u, c)  q = Gemm (x, w, c)
        y = Add(p, q)""",
        "y = Gemm <transB=1> (x, v, b)",
        inputs={"x": (5, 6)},
        constants={"u": weight(8, 6), "w": W["w"], "c": W["c"]},
    )


def test_value_itself_is_the_diagonal():
    check(
        Fuse(),
        "p = MatMul(x, w)  m = Mul(x, s)  q = Add(p, m)  y = Add(q, x)",
        "y = MatMul(x, v)",
        inputs=ROWS,
        constants={"w": weight(6, 6), "s": weight(6)},
    )


APART = {
    "adapters alone": "d = MatMul(x, a)  e = MatMul(d, b)  f = MatMul(x, a2)  g = MatMul(f, b2)"
    "  y = Add(e, g)",
    "a bend between": "p = MatMul(x, w)  d = MatMul(x, a)  r = Relu(d)  e = MatMul(r, b)"
    "  y = Add(p, e)",
    "read elsewhere": "p = MatMul(x, w)  d = MatMul(x, a)  e = MatMul(d, b)  f = Add(p, e)"
    "  t = Tanh(e)  y = Add(f, t)",
    "a weight of others": "p = MatMul(x, w)  q = MatMul(z, w)  r = MatMul(x, w2)  s = Add(p, r)"
    "  t = Tanh(q)  y = Add(s, t)",
}


@pytest.mark.parametrize("text", APART.values(), ids=APART.keys())
def test_products_that_stay_apart(text):
    check(
        Fuse(),
        text,
        unchanged=True,
        inputs={**ROWS, "z": (2, 5, 6)},
        constants={**W, "a2": weight(6, 2), "b2": weight(2, 8), "w2": weight(6, 8)},
    )
