import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

S, U = "Squeeze(x, zero)", "Unsqueeze"
AXES = {"zero": np.int64([0]), "one": np.int64([1])}


@pytest.mark.parametrize(
    ("shape", "before", "after", "constants"),
    [
        ((1, 3, 4), f"a = {S}  b = Sigmoid(a)  y = {U}(b, zero)", "y = Sigmoid(x)", {}),
        # a constant along the last axis stays as it is, one in front of a dropped axis does not
        ((1, 3, 4), f"a = {S}  b = Mul(a, c)  d = Tanh(b)  y = {U}(d, zero)",
         "b = Mul(x, c)  y = Tanh(b)", {"c": np.arange(4, dtype="f4")}),
        ((2, 1, 4), f"a = Squeeze(x, one)  b = Mul(a, c)  d = Tanh(b)  y = {U}(d, one)",
         "b = Mul(x, k)  y = Tanh(b)", {"c": np.arange(2, dtype="f4").reshape(2, 1)}),
        # a residual, and two that were squeezed
        ((1, 3, 4), f"a = {S}  b = Tanh(a)  c = Add(a, b)  y = {U}(c, zero)",
         "b = Tanh(x)  y = Add(x, b)", {}),
        ((1, 3, 4), f"a = {S}  z = Exp(x)  w = Squeeze(z, zero)  b = Add(a, w)  y = {U}(b, zero)",
         "z = Exp(x)  y = Add(x, z)", {}),
        # added and dropped again
        ((3, 4), f"a = {U}(x, zero)  b = Tanh(a)  y = Squeeze(b, zero)", "y = Tanh(x)", {}),
        ((3, 4), f"a = {U}(x, zero)  b = Add(a, c)  d = Exp(b)  y = Squeeze(d, zero)",
         "b = Add(x, k)  y = Exp(b)", {"c": np.ones((1, 3, 4), "f4")}),
    ],
)  # fmt: skip
def test_they_stay(shape, before, after, constants):
    check(Fuse(), before, after, inputs={"x": shape}, constants={**AXES, **constants})


@pytest.mark.parametrize(
    ("shape", "before"),
    [
        # what is read elsewhere is needed without the axis
        ((1, 3, 4), f"a = {S}  b = Tanh(a)  y = {U}(b, zero)  w = MatMul(m, b)"),
        # another axis comes back
        ((1, 3, 4), f"a = {S}  b = Tanh(a)  y = {U}(b, one)"),
        # a sum along an axis is not elementwise
        ((1, 3, 4), f"a = {S}  b = CumSum(a, zero)  y = {U}(b, zero)"),
    ],
)
def test_they_do_not(shape, before):
    made = check(
        Fuse(), before, inputs={"x": shape}, constants={**AXES, "m": np.ones((2, 3), "f4")}
    )
    assert any(n.op_type == "Squeeze" for n in made.graph)


def test_an_nhwc_network_without_a_batch():
    """A scale behind the layout is multiplied into the convolution, and no Transpose is left."""
    rng = np.random.default_rng(0)
    weights = {k: rng.standard_normal((4, 4, 3, 3)).astype("f4") for k in "uv"}
    check(
        Fuse(),
        before="""a = Conv(x, u)
            b = Transpose <perm=[0, 2, 3, 1]> (a)
            c = Squeeze(b, zero)
            d = Mul(c, s)
            e = Add(d, t)
            f = Elu(e)
            g = Unsqueeze(f, zero)
            h = Transpose <perm=[0, 3, 1, 2]> (g)
            y = Conv(h, v)""",
        after="a = Conv(x, w, k)  f = Elu(a)  y = Conv(f, v)",
        inputs={"x": (1, 4, 9, 9)},
        constants={
            **AXES,
            **weights,
            "s": np.array([2, 3, 4, 5], "f4"),
            "t": np.array([1, 0, -1, 2], "f4"),
        },
    )
