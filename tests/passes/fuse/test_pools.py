"""Pooling before activations that rise everywhere."""

import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

X = {"x": (2, 3, 9, 9)}
SLOPES = np.array([0.2, 0.0, 1.5], np.float32).reshape(3, 1, 1)
POOL = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"


@pytest.mark.parametrize(
    "f", ["PRelu({}, s)", "Elu<alpha=0.5>({})", "Selu({})", "Softplus({})", "Softsign({})"]
)
def test_what_rises_comes_after_the_pooling(f):
    constants = {"s": SLOPES} if "PRelu" in f else {}
    check(
        Fuse(),
        before=f"a = {f.format('x')}  y = {POOL}(a)",
        after=f"p = {POOL}(x)  y = {f.format('p')}",
        inputs=X,
        constants=constants,
    )


@pytest.mark.parametrize(
    ("slopes", "because"),
    [
        (-SLOPES, "falls"),
        (np.linspace(0, 1, 27, dtype=np.float32).reshape(3, 1, 9), "place to place"),
    ],
)
def test_refuses(slopes, because):
    check(
        Fuse(),
        before=f"a = PRelu(x, s)  y = {POOL}(a)",
        because=because,
        inputs=X,
        constants={"s": slopes},
    )


def test_where_the_pooling_leaves_as_many_nothing_moves():
    text = "a = Softplus(x)  y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)"
    check(Fuse(), before=text, after=text, inputs=X)


def test_an_activation_that_is_read_elsewhere_stays():
    text = f"a = Softplus(x)  y = {POOL}(a)  z = Neg(a)"
    check(Fuse(), before=text, after=text, inputs=X)
