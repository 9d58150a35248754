"""Coefficients compared as arrays: one element of one constant that differs is seen."""

import numpy as np
import pytest

from graphopt.proving.numbering import numbered
from graphopt.proving.windows import windows_of
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
PARTS = """a = Reshape(x, heads)  q = Transpose<perm=[0,2,1,3]>(a)  e = MatMul(z, w)
b = Reshape(e, heads)  k = Transpose<perm=[0,2,3,1]>(b)  c = Reshape(v, heads)
u = Transpose<perm=[0,2,1,3]>(c)  s = MatMul(q, k)  p = Softmax(s)  o = MatMul(p, u)
t = Transpose<perm=[0,2,1,3]>(o)  r = Reshape(t, back)  y = MatMul(r, n)"""


def constants():
    made = {n: np.random.default_rng(3).standard_normal((8, 8)).astype(np.float32) for n in "wn"}
    return {**made, "heads": np.int64([2, 3, 4, 2]), "back": np.int64([2, 3, 8])}


def proved(first, second):
    inputs = dict.fromkeys("xzv", (2, 3, 8))
    fused = """f = MatMul(z, w)
    g = Attention<q_num_heads=4, kv_num_heads=4, scale=1.0>(x, f, v)  y = MatMul(g, n)"""
    before = parse_model(PARTS, inputs=inputs, constants=first, opset=23)
    after = parse_model(fused, inputs=inputs, constants=second, opset=23)
    return not windows_of(numbered(before), after, lambda w: ("assumed", "")).open


@pytest.mark.parametrize("at", range(64))
def test_one_element_of_a_projection_inside_of_a_softmax(at):
    """The head's index outside and the row's inside once shared a name: a diagonal was compared."""
    other = constants()
    other["w"].reshape(-1)[at] *= np.float32(1.001)
    assert not proved(constants(), other)


def test_equal_constants_are_equal_and_so_is_one_rounding():
    assert proved(constants(), constants())
    x = {"c": np.float32([1, 2, 3])}
    near = {"c": np.nextafter(x["c"], np.float32(9))}
    far = {"c": x["c"] * np.float32(1.00001)}
    for given, same in ((near, True), (far, False)):
        before = parse_model("y = Mul(x, c)", constants=x)
        after = parse_model("y = Mul(x, c)", constants=given)
        assert (not windows_of(numbered(before), after, lambda w: ("assumed", "")).open) is same
