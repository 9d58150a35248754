import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

W = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
P = np.array([0, 0, 1, 2, 0, 0, 3, 0])
X = {"x": (2, 3, 6, 6)}


def test_into_convolution():
    check(
        Fuse(),
        before="a = Pad(x, p)  y = Conv <pads=[1, 1, 1, 1]> (a, w)",
        after="y = Conv <pads=[2, 3, 4, 1]> (x, w)",
        inputs=X,
        constants={"p": P, "w": W},
    )


def test_with_axes():
    check(
        Fuse(),
        before="a = Pad(x, p, , axes)  y = Conv(a, w)",
        after="y = Conv <pads=[0, 1, 0, 2]> (x, w)",
        inputs=X,
        constants={"p": np.array([1, 2]), "axes": np.array([-1]), "w": W},
    )


@pytest.mark.parametrize(
    ("pad", "p", "because"),
    [
        ('Pad <mode="reflect"> (x, p)', P, "only padding with a constant"),
        ("Pad(x, p, one)", P, "not zero"),
        ("Pad(x, p)", np.array([0, 0, -1, 0, 0, 0, 0, 0]), "cuts"),
        ("Pad(x, p)", np.array([1, 0, 1, 0, 0, 0, 0, 0]), "batch or channel"),
    ],
)
def test_refuses(pad, p, because):
    constants = {"p": p, "w": W, "one": np.float32(1.0).reshape(())}
    check(
        Fuse(), before=f"a = {pad}  y = Conv(a, w)", because=because, inputs=X, constants=constants
    )


def test_refuses_automatic_padding():
    check(
        Fuse(),
        before='a = Pad(x, p)  y = Conv <auto_pad="SAME_UPPER", strides=[2, 2]> (a, w)',
        because="by its input's size",
        inputs=X,
        constants={"p": P, "w": W},
    )


def test_into_average_pool():
    check(
        Fuse(),
        before="a = Pad(x, p)  y = AveragePool <kernel_shape=[3, 3]> (a)",
        after="y = AveragePool <kernel_shape=[3, 3], count_include_pad=1, pads=[1, 2, 2, 0]> (x)",
        inputs=X,
        constants={"p": np.array([0, 0, 1, 2, 0, 0, 2, 0])},
    )


def test_an_average_that_ignores_its_own_padding_stays():
    check(
        Fuse(),
        before="a = Pad(x, p)  y = AveragePool <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (a)",
        because="does not count",
        inputs=X,
        constants={"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
    )


def test_into_max_pool():
    low = np.array(-np.inf, np.float32)
    check(
        Fuse(),
        before="a = Pad(x, p, low)  y = MaxPool <kernel_shape=[3, 3]> (a)",
        after="y = MaxPool <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (x)",
        inputs=X,
        constants={"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "low": low},
    )


def test_zeros_before_max_pool_stay():
    check(
        Fuse(),
        before="a = Pad(x, p)  y = MaxPool <kernel_shape=[3, 3]> (a)",
        because="not below every value",
        inputs=X,
        constants={"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
    )
