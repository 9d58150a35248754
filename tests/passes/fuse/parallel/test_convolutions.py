import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

RNG = np.random.default_rng(0)


def weight(*shape):
    return RNG.standard_normal(shape).astype("f4")


W = {"u": weight(4, 4, 3, 3), "v": weight(4, 4, 1, 1), "a": weight(4), "b": weight(4)}
NORM = {n: np.abs(weight(4)) + 0.5 for n in ("scale", "shift", "mean", "var")}
ONE = "y = Conv <pads=[1,1,1,1]> (x, w, c)"
IMAGE = {"x": (2, 4, 6, 5)}


def test_branches_of_a_repvgg_block_are_one_convolution():
    made = check(
        Fuse(),
        """d = Conv <pads=[1,1,1,1]> (x, u, a)  e = Conv (x, v, b)  f = Add(d, e)
        g, = BatchNormalization (x, scale, shift, mean, var)  h = Add(f, g)  y = Relu(h)""",
        "h = Conv <pads=[1,1,1,1]> (x, w, c)  y = Relu(h)",
        inputs=IMAGE,
        constants={**W, **NORM},
    )
    (w,) = (v for v in made.graph.initializers.values() if len(v.shape) == 4)
    outside = w.const_value.numpy().copy()
    outside[:, :, 1, 1] = W["u"][:, :, 1, 1]
    np.testing.assert_array_equal(outside, W["u"])


def test_value_itself_is_the_middle_of_a_kernel():
    check(
        Fuse(),
        "d = Conv <pads=[1,1,1,1]> (x, u)  y = Add(x, d)",
        ONE,
        inputs=IMAGE,
        constants={"u": W["u"]},
    )


def test_strides_and_a_sum_of_many():
    check(
        Fuse(),
        """d = Conv <pads=[1,1,1,1], strides=[2,2]> (x, u)  e = Conv <strides=[2,2]> (x, v, b)
        r = Relu(z)  y = Sum(r, d, e)""",
        """s = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w, c)  r = Relu(z)  y = Sum(s, r)""",
        inputs={"x": (2, 4, 8, 6), "z": (2, 4, 4, 3)},
        constants=W,
    )


def test_strips_lie_inside_of_the_square_whatever_the_order():
    check(
        Fuse(),
        """d = Conv <pads=[1,0,1,0]> (x, v)  e = Conv <pads=[0,1,0,1]> (x, h)  f = Add(d, e)
        g = Conv <pads=[1,1,1,1]> (x, u)  y = Add(f, g)""",
        ONE,
        inputs=IMAGE,
        constants={"u": W["u"], "v": weight(4, 4, 3, 1), "h": weight(4, 4, 1, 3)},
    )


def test_dilated_taps_fall_on_those_of_a_larger_kernel():
    check(
        Fuse(),
        """d = Conv <pads=[3,3], group=4> (x, u)
        e = Conv <pads=[3,3], dilations=[3], group=4> (x, v)  y = Add(d, e)""",
        "y = Conv <pads=[3,3], group=4> (x, w, c)",
        inputs={"x": (2, 4, 9)},
        constants={"u": weight(4, 1, 7), "v": weight(4, 1, 3)},
    )


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_lie_inside_of_wider_groups(groups):
    check(
        Fuse(),
        f"""d = Conv <pads=[1,1,1,1], group=2> (x, u)  e = Conv <group={groups}> (x, v, b)
        y = Add(e, d)""",
        "y = Conv <pads=[1,1,1,1], group=2> (x, w, c)",
        inputs=IMAGE,
        constants={"u": weight(8, 2, 3, 3), "v": weight(8, 4 // groups, 1, 1), "b": weight(8)},
    )


APART = {
    "another value": "d = Conv <pads=[1,1,1,1]> (x, u)  e = Conv (z, v)  y = Add(d, e)",
    "beyond the window": "d = Conv <pads=[1,0,1,0]> (x, p)  e = Conv <pads=[0,1,0,1]> (x, q)"
    "  y = Add(d, e)",
    "between the taps": "d = Conv <pads=[2,2,2,2], dilations=[2,2]> (x, u)"
    "  e = Conv <pads=[1,1,1,1]> (x, u)  y = Add(d, e)",
    "read elsewhere": "d = Conv <pads=[1,1,1,1]> (x, u)  e = Conv (x, v)  f = Add(d, e)"
    "  r = Relu(d)  y = Add(f, r)",
    "one image for all": "d = Conv (x, v)  m = GlobalAveragePool(x)  e = Conv (m, v)"
    "  y = Add(d, e)",
    "its size follows from the input": 'd = Conv <auto_pad="SAME_UPPER"> (x, u)  e = Conv (x, v)'
    "  y = Add(d, e)",
}


@pytest.mark.parametrize("text", APART.values(), ids=APART.keys())
def test_branches_that_stay_apart(text):
    check(
        Fuse(),
        text,
        unchanged=True,
        inputs={**IMAGE, "z": (2, 4, 6, 5)},
        constants={**W, "p": weight(4, 4, 3, 1), "q": weight(4, 4, 1, 3)},
    )


def test_value_scaled_beside_a_strided_convolution_stays():
    check(
        Fuse(),
        "d = Conv <pads=[1,1,1,1], strides=[2,2]> (x, u)  y = Add(d, x)",
        unchanged=True,
        inputs={"x": (2, 4, 1, 1)},
        constants={"u": W["u"]},
    )


def test_sum_that_overflows_is_refused():
    check(
        Fuse(),
        "d = Conv (x, v)  e = Conv (x, w)  y = Add(d, e)",
        because="overflow",
        inputs=IMAGE,
        constants={n: np.full((4, 4, 1, 1), 3e38, "f4") for n in "vw"},
    )
