import numpy as np
import pytest

from graphopt.calibration.sensitivity import BROKEN, movement, sensitivities
from graphopt.testing import parse_model

X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def scaled(s):
    return parse_model(
        "a = Mul(x, s)  y = Add(x, a)", inputs={"x": X}, constants={"s": np.float32([s])}
    )


def test_it_is_the_squared_relative_error_of_the_outputs():
    """y = (1 + s) x: a change from s to s' moves it by (s' - s) / (1 + s) of its size."""
    feeds = [{"x": X}, {"x": 2 * X}]
    found = sensitivities(scaled(1.0), feeds, [(s, scaled(s)) for s in (1.0, 1.5, 3.0)])
    assert found == pytest.approx({1.0: 0.0, 1.5: 0.25**2, 3.0: 1.0}, rel=1e-5)


def test_the_worst_float_output_counts():
    before = [{"a": np.ones(4), "b": np.ones(4), "ids": np.arange(4)}]
    after = [{"a": np.ones(4) * 1.1, "b": np.ones(4) * 0.7, "ids": np.arange(4)[::-1]}]
    assert movement(before, after) == pytest.approx(0.09)


def test_outputs_that_broke_count_as_much_and_finite():
    assert movement([{"a": np.ones(2)}], [{"a": np.array([1, np.nan])}]) == BROKEN
    assert movement([{"a": np.ones(2)}], [{"a": np.array([1, np.inf])}]) == BROKEN


def test_nan_and_inf_where_they_were_are_no_movement():
    masked = {"a": np.array([1.0, np.nan, -np.inf])}
    assert movement([masked], [masked]) == 0
    assert movement([masked], [{"a": np.array([2.0, np.nan, -np.inf])}]) == 1
