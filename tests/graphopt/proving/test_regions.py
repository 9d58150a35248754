"""Regions run alone: what is drawn for them, and what counts as equal."""

import numpy as np
import pytest

from graphopt.proving.numbering import numbered
from graphopt.proving.regions import check
from graphopt.proving.windows import windows_of
from graphopt.testing import parse_model


def told(before, after, inputs=None, constants=None):
    """The last window that was run, with the normal form out of the way."""
    models = [
        parse_model(text, inputs=inputs, constants=constants or {}) for text in (before, after)
    ]
    seen = []
    windows_of(numbered(models[0]), models[1], lambda w: seen.append(check(w)) or seen[-1])
    return seen[-1]


def scalar(x):
    return np.float32(x).reshape(())


@pytest.mark.parametrize(
    ("before", "after", "constants"),
    [
        # only numbers between 4 and 6, or about 40, tell these apart
        ("a = Clip(x, l, h)  y = Clip(a, l, g)", "y = Clip(x, l, h)", {"l": 0, "h": 6, "g": 4}),
        ("c = Greater(x, t)  y = Where(c, x, o)", "c = Less(t, x)  y = Where(c, o, o)",
         {"t": 40, "o": 0}),
        ("a = Add(x, t)  y = Log(a)", "a = Add(x, t)  b = Log(a)  y = Mul(b, o)",
         {"t": -100, "o": 2}),
    ],
)  # fmt: skip
def test_inputs_are_drawn_where_constants_decide(before, after, constants):
    verdict, means = told(before, after, None, {n: scalar(v) for n, v in constants.items()})
    assert verdict == "refuted"
    assert "inputs" in means


def test_sizes_go_past_every_limit():
    bounds = {"s": np.int64([0]), "e": np.int64([300]), "a": np.int64([0])}
    verdict, _ = told("y = Slice(x, s, e, a)", "y = Relu(x)", {"x": ("N", 2)}, bounds)
    assert verdict == "refuted"


def test_a_side_that_does_not_run_at_another_size():
    verdict, means = told(
        "y = Reshape(x, s)", "y = Reshape(x, t)", {"x": ("N", 4)},
        {"s": np.int64([-1, 4]), "t": np.int64([1, 4])},
    )  # fmt: skip
    assert verdict == "refuted"
    assert "does not run at sizes" in means


@pytest.mark.parametrize(("up", "down"), [(1e30, 1e-30), (1e-35, 1e35)])
def test_single_precision_may_not_be_worse(up, down):
    verdict, means = told(
        "y = Mul(x, o)", "a = Mul(x, c)  b = Mul(a, d)  y = Mul(b, o)", None,
        {"c": scalar(up), "d": scalar(down), "o": scalar(3)},
    )  # fmt: skip
    assert verdict == "refuted"
    assert means in ("it overflows where the source does not",
                     "it loses digits where the source does not")  # fmt: skip


def test_digits_that_cancel_are_missed():
    verdict, _ = told(
        "y = Mul(x, o)", "a = Add(x, c)  b = Sub(a, c)  y = Mul(b, o)", None,
        {"c": scalar(1e6), "o": scalar(1)},
    )  # fmt: skip
    assert verdict == "refuted"


def test_equal_regions_are_checked_and_say_on_how_many_inputs():
    verdict, means = told("c = Less(x, z)  y = Not(c)", "y = GreaterOrEqual(x, z)")
    assert verdict == "checked"
    assert means.startswith("equal on ")
