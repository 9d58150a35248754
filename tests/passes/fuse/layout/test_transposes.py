import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

IN = {"x": (2, 4, 3, 5), "z": (2, 4, 3, 5)}
T, B = "Transpose <perm=[0, 2, 3, 1]>", "Transpose <perm=[0, 3, 1, 2]>"


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("before", "after", "constants"),
    [
        # through one operator, and through a chain with a constant along the last axis
        (f"a = {T}(x)  b = Relu(a)  y = {B}(b)", "y = Relu(x)", {}),
        (
            f"a = {T}(x)  b = Add(a, c)  d = Sigmoid(b)  y = {B}(d)",
            "b = Add(x, k)  y = Sigmoid(b)",
            {"c": np.arange(4, dtype="f4")},
        ),
        # a scalar needs no other layout, the last of two operands neither
        (f"a = {T}(x)  b = Mul(c, a)  y = {B}(b)", "y = Mul(c, x)", {"c": np.float32(2)}),
        # two meet in one operator: one is left, behind it
        (f"a = {T}(x)  b = {T}(z)  y = Add(a, b)", f"s = Add(x, z)  y = {T}(s)", {}),
        # a residual around it all
        (
            f"a = {T}(x)  b = Relu(a)  c = Add(a, b)  y = {B}(c)",
            "b = Relu(x)  y = Add(x, b)",
            {},
        ),
        # operators that name axes
        (
            f"a = {T}(x)  b = {T}(z)  c = Concat <axis=3> (a, b)  y = {B}(c)",
            "y = Concat <axis=1> (x, z)",
            {},
        ),
        (f"a = {T}(x)  b = Softmax <axis=-1> (a)  y = {B}(b)", "y = Softmax <axis=1> (x)", {}),
        (
            f"a = {T}(x)  b = Pad(a, p)  y = {B}(b)",
            "y = Pad(x, k)",
            {"p": ints(0, 1, 2, 0, 0, 3, 4, 0)},
        ),
        (
            f"a = {T}(x)  b = ReduceMean(a, r)  c = Sub(a, b)  y = {B}(c)",
            "b = ReduceMean(x, k)  y = Sub(x, b)",
            {"r": ints(1, 2)},
        ),
        (
            f"a = {T}(x)  b, c = Split <axis=3> (a, s)  d = Tanh(c)  y = {B}(b)  w = {B}(d)",
            "y, c = Split <axis=1> (x, s)  w = Tanh(c)",
            {"s": ints(2, 2)},
        ),
        # a reduction that drops axes ends the layout
        (
            f"a = {T}(x)  b = Relu(a)  y = ReduceMean <keepdims=0> (b, r)",
            "b = Relu(x)  y = ReduceMean <keepdims=0> (b, k)",
            {"r": ints(1, 2)},
        ),
    ],
)
def test_they_meet(before, after, constants):
    check(Fuse(), before, after, inputs=IN, constants=constants)


@pytest.mark.parametrize(
    ("before", "constants"),
    [
        # what reads the value needs the layout: nothing is gained
        (f"a = {T}(x)  y = Relu(a)", {}),
        (f"a = {T}(x)  b = Relu(a)  y = MatMul(b, w)", {"w": np.ones((4, 4), "f4")}),
        # another permutation is no inverse
        (f"a = {T}(x)  b = Relu(a)  y = {T}(b)", {}),
        # a Transpose would go and another come
        (f"a = {T}(x)  b = Relu(a)  y = {B}(b)  w = MatMul(b, m)", {"m": np.ones((4, 2), "f4")}),
        # the result's axes would come in another order
        (
            "a = Transpose <perm=[0, 3, 2, 1]> (x)  y = ReduceMean <keepdims=0> (a, r)",
            {"r": ints(0, 1)},
        ),
    ],
)
def test_they_do_not(before, constants):
    model = check(Fuse(), before, inputs=IN, constants=constants)
    assert any(n.op_type == "Transpose" for n in model.graph)


def test_a_block_of_an_nhwc_network():
    """As converters from TensorFlow write it: every convolution between two Transposes."""
    conv = "Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]>"
    rng = np.random.default_rng(0)
    weights = {k: rng.standard_normal((4, 4, 3, 3)).astype("f4") for k in "uvw"}
    check(
        Fuse(),
        before=f"""a = {B}(x)
            b = {conv}(a, u)
            c = {T}(b)
            d = Clip(c, low, high)
            e = {B}(d)
            f = {conv}(e, v)
            g = {T}(f)
            h = Add(g, x)
            i = {B}(h)
            j = {conv}(i, w)
            k = {T}(j)
            y = ReduceMean <keepdims=0> (k, r)""",
        after=f"""a = {B}(x)
            b = {conv}(a, u)
            d = Clip(b, low, high)
            f = {conv}(d, v)
            h = Add(f, a)
            j = {conv}(h, w)
            y = ReduceMean <keepdims=0> (j, k)""",
        inputs={"x": (2, 6, 5, 4)},
        constants={
            **weights,
            "low": np.float32(0),
            "high": np.float32(6),
            "r": ints(1, 2),
        },
    )


def test_softmax_before_opset_13_took_a_matrix():
    before = f"a = {T}(x)  b = Softmax <axis=1> (a)  y = {B}(b)"
    model = check(Fuse(), before, inputs=IN, opset=12)
    assert [n.op_type for n in model.graph].count("Transpose") == 2


def test_an_output_in_the_layout_keeps_one():
    check(
        Fuse(),
        before=f"a = {T}(x)  b = {T}(z)  c = Add(a, b)  y = Relu(c)  d = {B}(c)  w = Tanh(d)",
        after=f"c = Add(x, z)  r = Relu(c)  y = {T}(r)  w = Tanh(c)",
        inputs=IN,
    )
