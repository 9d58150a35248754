"""Samples that would spoil a calibration: outliers, constants, narrow ranges."""

import numpy as np
import pytest

from graphopt.samples import Samples, plausible
from graphopt.testing import parse_model

X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
FREE = parse_model("y = Relu (x)", inputs={"x": ("n", 4)})
FIXED = parse_model("y = Relu (x)", inputs={"x": (1, 4)})


def runs(model, x):
    """As one run, or one for each sample where the batch is fixed."""
    return Samples([{"x": x}] if model is FREE else [{"x": row[np.newaxis]} for row in x])


@pytest.mark.parametrize("model", [FREE, FIXED])
@pytest.mark.parametrize("absurd", [3e38, -3e38, 1e9])
def test_a_sample_that_cannot_be_is_left_out_and_said(model, absurd):
    x = X.copy()
    x[3, 2] = absurd
    rest, notes = plausible(runs(model, x), model)
    assert np.array_equal(np.concatenate([f["x"] for f in rest]), np.delete(x, 3, axis=0))
    assert len(notes) == 1
    assert "in 1 of 16 samples" in notes[0]
    assert notes[0].endswith("these were left out")


def test_a_sample_that_reaches_far_stays():
    """Pixels of 0..255 among those of 0..1."""
    x = X.copy()
    x[3] *= 255
    rest, notes = plausible(runs(FREE, x), FREE)
    assert len(next(iter(rest))["x"]) == 16
    assert len(notes) == 1
    assert "in 1 of 16 samples" in notes[0]


def test_infinities_are_no_outliers():
    x = X.copy()
    x[3, 2] = -np.inf
    rest, notes = plausible(runs(FREE, x), FREE)
    assert len(next(iter(rest))["x"]) == 16
    assert not notes


@pytest.mark.parametrize("value", [0.0, 3.25])
def test_constants_say_nothing(value):
    rest, notes = plausible(Samples([{"x": np.full((4, 4), value, np.float32)}] * 2), FREE)
    assert rest is None
    assert notes == [f"'x' is {value:g} throughout: no range follows from that"]


def test_a_constant_beside_what_varies_is_said():
    model = parse_model("y = Mul (x, k)", inputs={"x": ("n", 4), "k": ()})
    rest, notes = plausible(Samples([{"x": X, "k": np.float32(2)}]), model)
    assert rest is not None
    assert notes == ["'k' is 2 throughout: no range follows from that"]


@pytest.mark.parametrize(("peak", "narrow"), [(25, True), (200, False)])
def test_pixels_that_fill_a_part_of_their_range(peak, narrow):
    model = parse_model(
        "y = Div (x, k)",
        constants={"k": np.array(255, np.float32)},
        inputs={"x": ("n", 3, 8, 8)},
    )
    x = np.random.default_rng(0).uniform(0, peak, (4, 3, 8, 8)).astype(np.float32)
    _, notes = plausible(Samples([{"x": x}]), model)
    assert [n.endswith("of the 255 the model scales") for n in notes] == [True] * narrow
