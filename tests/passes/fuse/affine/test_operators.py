import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

RNG = np.random.default_rng(7)


def f(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def pos(*shape):
    return (np.abs(RNG.standard_normal(shape)) + 0.5).astype(np.float32)


def bn(n):
    return {"g": pos(n), "h": f(n), "m": f(n), "v": pos(n)}


BN = "BatchNormalization(a, g, h, m, v)"


@pytest.mark.parametrize(
    ("linear", "after", "w", "channels"),
    [
        ("Conv <pads=[1, 1, 1, 1]> (x, w)", "Conv <pads=[1, 1, 1, 1]> (x, w, b)", (4, 6, 3, 3), 4),
        ("Conv <group=2> (x, w)", "Conv <group=2> (x, w, b)", (4, 3, 3, 3), 4),
        ("ConvTranspose (x, w)", "ConvTranspose (x, w, b)", (6, 4, 3, 3), 4),
        ("ConvTranspose <group=2> (x, w)", "ConvTranspose <group=2> (x, w, b)", (6, 2, 3, 3), 4),
    ],
)
def test_batch_norm_into_convolutions(linear, after, w, channels):
    check(
        Fuse(),
        before=f"a = {linear}  y = {BN}",
        after=f"y = {after}",
        inputs={"x": (2, 6, 5, 5)},
        constants={"w": f(*w), **bn(channels)},
    )


def test_batch_norm_into_a_convolution_with_bias():
    check(
        Fuse(),
        before=f"a = Conv(x, w, b)  y = {BN}",
        after="y = Conv(x, w, b)",
        inputs={"x": (2, 6, 5, 5)},
        constants={"w": f(4, 6, 3, 3), "b": f(4), **bn(4)},
    )


@pytest.mark.parametrize("t", [0, 1])
def test_batch_norm_into_gemm(t):
    check(
        Fuse(),
        before=f"a = Gemm <alpha=0.5, beta=2.0, transB={t}> (x, w, b)  y = {BN}",
        after=f"y = Gemm <alpha=0.5, transB={t}> (x, w, b)",
        inputs={"x": (2, 3)},
        constants={"w": f(4, 3) if t else f(3, 4), "b": f(1, 4), **bn(4)},
    )


def test_batch_norm_into_matmul_is_a_gemm():
    check(
        Fuse(),
        before=f"a = MatMul(x, w)  y = {BN}",
        after="y = Gemm(x, w, b)",
        inputs={"x": (2, 3)},
        constants={"w": f(3, 4), **bn(4)},
    )


def test_batch_norm_before_an_unpadded_convolution():
    check(
        Fuse(),
        before="a = BatchNormalization(x, g, h, m, v)  y = Conv <group=2> (a, w, b)",
        after="y = Conv <group=2> (x, w, b)",
        inputs={"x": (2, 6, 5, 5)},
        constants={"w": f(4, 3, 3, 3), "b": f(4), **bn(6)},
    )


def test_batch_norm_before_padding_is_refused():
    check(
        Fuse(),
        before="a = BatchNormalization(x, g, h, m, v)  y = Conv <pads=[1, 1, 1, 1]> (a, w)",
        because="padding would add zeros",
        inputs={"x": (2, 6, 5, 5)},
        constants={"w": f(4, 6, 3, 3), **bn(6)},
    )


def test_batch_norm_of_a_value_used_twice_stays():
    check(
        Fuse(),
        before=f"a = Conv(x, w)  y = {BN}  z = Relu(a)",
        unchanged=True,
        inputs={"x": (2, 6, 5, 5)},
        constants={"w": f(4, 6, 3, 3), **bn(4)},
    )


def test_a_tied_weight_is_not_scaled():
    check(
        Fuse(),
        before=f"a = Conv(x, w)  y = {BN}  z = Conv(x, w)",
        because="used elsewhere",
        inputs={"x": (2, 6, 5, 5)},
        constants={"w": f(4, 6, 3, 3), **bn(4)},
    )


def test_a_batch_norm_that_overflows_half_precision_is_refused():
    half = {k: v.astype(np.float16) for k, v in bn(4).items()}
    half["g"] = np.full(4, 6e4, np.float16)
    check(
        Fuse(),
        before=f"a = Conv(x, w)  y = {BN}",
        because="overflow",
        inputs={"x": np.zeros((1, 6, 3, 3), np.float16)},
        constants={"w": np.full((4, 6, 3, 3), 30, np.float16), **half},
    )


@pytest.mark.parametrize(
    "op", ["Mul(a, c)", "Mul(c, a)", "Div(a, c)", "Add(a, c)", "Sub(a, c)", "Sub(c, a)", "Neg(a)"]
)
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1)])
def test_arithmetic_into_convolution(op, shape):
    biased = not op.startswith(("Mul", "Div", "Neg"))
    check(
        Fuse(),
        before=f"a = Conv(x, w)  y = {op}",
        after="y = Conv(x, w, b)" if biased else "y = Conv(x, w)",
        inputs={"x": (2, 6, 5, 5)},
        constants={"w": f(4, 6, 3, 3), "c": pos(*shape)},
    )


@pytest.mark.parametrize("shape", [(3,), (3, 3), (1, 4, 3, 1), (2, 1, 1, 1), (1, 1, 4, 1, 1)])
def test_a_constant_across_other_axes_stays(shape):
    check(
        Fuse(),
        before="a = Conv(x, w)  y = Mul(a, c)",
        unchanged=True,
        inputs={"x": (1, 6, 5, 5)},
        constants={"w": f(4, 6, 3, 3), "c": pos(*shape)},
    )


@pytest.mark.parametrize("op", ["Mul(a, c)", "Div(a, c)", "Neg(a)"])
def test_a_scale_into_matmul(op):
    check(
        Fuse(),
        before=f"a = MatMul(x, w)  y = {op}",
        after="y = MatMul(x, w)",
        inputs={"x": (2, 5, 3)},
        constants={"w": f(3, 4), "c": pos(4)},
    )


def test_a_scale_into_a_matmul_from_the_left():
    check(
        Fuse(),
        before="a = Mul(x, c)  b = MatMul(w, a)  y = Mul(b, d)",
        after="y = MatMul(w, x)",
        inputs={"x": (2, 3, 5)},
        constants={"w": f(4, 3), "c": pos(3, 1), "d": pos(4, 1)},
    )


def test_a_constant_that_broadcasts_a_matmul_stays():
    check(
        Fuse(),
        before="a = MatMul(x, w)  y = Mul(a, c)",
        unchanged=True,
        inputs={"x": (2, 3)},
        constants={"w": f(3, 4), "c": pos(1, 1, 4)},
    )


def test_a_scale_before_grouped_convolution():
    check(
        Fuse(),
        before="a = Mul(x, c)  y = Conv <group=2, pads=[1, 1, 1, 1]> (a, w, b)",
        after="y = Conv <group=2, pads=[1, 1, 1, 1]> (x, w, b)",
        inputs={"x": (2, 6, 5, 5)},
        constants={"w": f(4, 3, 3, 3), "b": f(4), "c": pos(6, 1, 1)},
    )


def test_a_scale_before_transposed_convolution():
    check(
        Fuse(),
        before="a = Div(x, c)  y = ConvTranspose <group=2, pads=[1, 1, 1, 1]> (a, w)",
        after="y = ConvTranspose <group=2, pads=[1, 1, 1, 1]> (x, w)",
        inputs={"x": (2, 6, 5, 5)},
        constants={"w": f(6, 2, 3, 3), "c": pos(6, 1, 1)},
    )


@pytest.mark.parametrize(
    ("before", "shape", "c", "w"),
    [
        ("a = Mul(x, c)  y = Conv(a, w)", (1, 1, 4, 4), (1, 3, 1, 1), (2, 3, 3, 3)),
        ("a = Add(x, c)  y = Conv(a, w)", (1, 1, 4, 4), (3, 1, 1), (2, 3, 3, 3)),
        ("a = Mul(x, c)  y = MatMul(a, w)", (5, 1), (3,), (3, 4)),
        ("a = Mul(x, c)  y = MatMul(a, w)", (5, 3), (1, 1, 3), (3, 4)),
        ("a = Sub(x, c)  y = Gemm(a, w)", (5, 1), (3,), (3, 4)),
    ],
)
def test_a_constant_that_makes_channels_of_one_stays(before, shape, c, w):
    """Found by random graphs: an Expand before a product is dropped, and the product broadcasts."""
    check(
        Fuse(),
        before=before,
        unchanged=True,
        inputs={"x": shape},
        constants={"w": f(*w), "c": pos(*c)},
    )


def test_a_shift_before_gemm():
    check(
        Fuse(),
        before="a = Sub(c, x)  y = Gemm <alpha=0.5, beta=3.0, transB=1> (a, w, b)",
        after="y = Gemm <alpha=0.5, transB=1> (x, w, b)",
        inputs={"x": (2, 3)},
        constants={"w": f(4, 3), "b": f(4), "c": f(3)},
    )


def test_a_weight_that_is_an_input_stays():
    check(
        Fuse(),
        before="a = Conv(x, w)  y = Mul(a, c)",
        unchanged=True,
        inputs={"x": (2, 6, 5, 5), "w": (4, 6, 3, 3)},
        constants={"c": pos(4, 1, 1)},
    )


def test_a_division_by_zero_stays():
    # a Conv whose output divided by zero is Inf must stay so
    check(
        Fuse(),
        before="a = Conv(x, w)  y = Div(a, c)",
        because="not finite",
        inputs={"x": (1, 6, 5, 5)},
        constants={"w": f(4, 6, 3, 3), "c": np.zeros((4, 1, 1), np.float32)},
    )


def test_integers_are_not_touched():
    check(
        Fuse(),
        before="a = MatMul(x, w)  y = Mul(a, c)",
        unchanged=True,
        inputs={"x": np.ones((2, 3), np.int32)},
        constants={"w": np.ones((3, 4), np.int32), "c": np.full(4, 2, np.int32)},
    )


@pytest.mark.parametrize("shape", [(4,), (1,), (1, 1, 4)])
def test_layer_scale_into_a_product_and_its_bias(shape):
    check(
        Fuse(),
        before="a = MatMul(x, w)  b = Add(a, h)  y = Mul(b, s)",
        after="a = MatMul(x, w)  y = Add(a, h)",
        inputs={"x": (2, 5, 3)},
        constants={"w": f(3, 4), "h": f(4), "s": f(*shape)},
    )


def test_a_scale_along_the_rows_stays_after_the_bias():
    check(
        Fuse(),
        before="a = MatMul(x, w)  b = Add(a, h)  y = Mul(b, s)",
        unchanged=True,
        inputs={"x": (2, 5, 3)},
        constants={"w": f(3, 4), "h": f(4), "s": f(5, 1)},
    )


def test_a_scale_after_the_bias_of_a_tied_weight_stays():
    check(
        Fuse(),
        before="a = MatMul(x, w)  b = Add(a, h)  y = Mul(b, s)  z = MatMul(x, w)",
        unchanged=True,
        inputs={"x": (2, 5, 3)},
        constants={"w": f(3, 4), "h": f(4), "s": f(4)},
    )
