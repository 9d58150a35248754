import gc

import numpy as np
import pytest
from graphopt.passes.int8 import Int8
from hypothesis import given
from hypothesis import strategies as st

from graphopt.calibration.rounding import Order, compensated
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.testing import parse_model


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_steps(w, h):
    return compensated(w, np.rint(w), np.ones((1, 1)), Order.of(h), -127, 127)


def errors(off, h):
    return np.einsum("oi,ij,oj->o", off, h, off)


def test_inputs_with_nothing_in_common_leave_nearest_rounding():
    w = 10 * normal(5, 7).astype(np.float64)
    h = np.diag(np.arange(1.0, 8.0))
    np.testing.assert_array_equal(in_steps(w, h), np.rint(w))


@given(st.integers(0, 50))
def test_correlated_inputs_lose_less(seed):
    """Eight inputs that are nearly one: errors of their weights can cancel."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, 1)) + 0.05 * rng.standard_normal((200, 8))
    w, h = 20 * rng.standard_normal((16, 8)), x.T @ x / 200
    nearest, chosen = errors(np.rint(w) - w, h), errors(in_steps(w, h) - w, h)
    # eight errors of 1/12 variance add up to 8/12 if nothing cancels; compensated, one is left
    assert chosen.sum() < 0.5 * nearest.sum()


@given(st.integers(0, 50))
def test_errors_are_those_of_the_second_moment(seed):
    rng = np.random.default_rng(seed)
    x, off = rng.standard_normal((40, 9)), rng.standard_normal((5, 9))
    h = x.T @ x / 40
    order = Order.of(h)
    np.testing.assert_allclose(order.errors(off[:, order.places].T), errors(off, h), rtol=1e-9)


def test_no_row_is_worse_than_given():
    x = normal(200, 1) + 0.05 * normal(200, 8, seed=1)
    w, h = 20 * normal(64, 8, seed=2).astype(np.float64), (x.T @ x).astype(np.float64)
    assert (errors(in_steps(w, h) - w, h) <= errors(np.rint(w) - w, h) * (1 + 1e-9)).all()


def test_moments_of_one_direction_are_factorized_in_single_precision(monkeypatch):
    """Where seven digits do not hold what is added to the diagonal, more are taken."""
    x = 1e3 + 1e-4 * normal(64, 128, seed=1).astype(np.float64)
    monkeypatch.setattr("graphopt.calibration.rounding.DAMP", 1e-9)
    h = x.T @ x / 64
    one, two = Order.of(h, np.float32), Order.of(h)
    assert one.upper.dtype == np.float32
    np.testing.assert_allclose(one.upper, two.upper, rtol=1e-5, atol=1e-6)


def test_nothing_is_left_for_the_collector():
    """It rests while a pass runs: arrays that know each other would pile up, matrix by matrix."""
    w, order = normal(64, 48), Order.of(np.eye(48))
    gc.collect()
    gc.disable()
    try:
        compensated(w, np.rint(w), np.ones((1, 1)), order, -7, 7)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_integers_stay_in_range():
    x = normal(200, 1) + 0.05 * normal(200, 8, seed=1)
    w = np.full((3, 8), 126.6)
    assert np.abs(in_steps(w, (x.T @ x).astype(np.float64))).max() <= 127


@pytest.mark.parametrize("operator", ["Conv (x, w, b)", "Gemm (x, w, b)"])
def test_outputs_move_less(operator):
    conv = operator.startswith("Conv")
    common = normal(64, 1, *((4, 4) if conv else ()))
    x = 1 + common + 0.1 * normal(64, 16, *((4, 4) if conv else ()), seed=1)
    w = normal(8, 16, 1, 1, seed=2) if conv else normal(16, 8, seed=2)
    constants = {"w": w, "b": normal(8, seed=3)}
    feeds = [{"x": x[k : k + 8]} for k in range(0, 64, 8)]
    found = []
    for refine in (False, True):
        model = parse_model(f"y = {operator}", inputs={"x": x[:8]}, constants=constants)
        expected = [run(model, f)["y"] for f in feeds]
        Int8(balance=False, refine=refine).run(model, Context(model, samples=Samples(feeds)))
        off = np.concatenate([run(model, f)["y"] - e for f, e in zip(feeds, expected, strict=True)])
        axes = (0, 2, 3) if conv else (0,)
        found.append((np.square(off).mean(), np.abs(off.mean(axes)).mean()))
    assert found[1][0] < found[0][0]
    # a quarter of it is left by rounding alone; the bias takes most of the rest
    assert found[1][1] < 0.2 * found[0][1], "the mean of each channel is corrected too"
