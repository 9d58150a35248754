"""Rate-distortion rounding: less error in as many bits than rounding each weight by itself."""

import numpy as np
import pytest

from graphopt.entropy.integers import bits_taken, counts_of, tables_of
from graphopt.packing.rounding import Costs, Layer, as_rounded, rounded_for

pytest.importorskip("constriction")

ROWS, COLUMNS = 48, 216


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((COLUMNS, COLUMNS)) / np.sqrt(COLUMNS) + 0.3 * np.eye(COLUMNS)
    x = rng.standard_normal((3000, COLUMNS)) @ mix * np.exp(0.5 * rng.standard_normal(COLUMNS))
    w = rng.standard_normal((ROWS, COLUMNS)) * np.exp(0.5 * rng.standard_normal((ROWS, 1)))
    return w, x.T @ x / len(x), np.exp(rng.standard_normal(ROWS))


def judged(setting, layer, q, step):
    """Bits a weight, and the error that matters."""
    w, h, u = setting
    made = as_rounded(layer, q, step)
    counts = counts_of(made)
    bits = bits_taken(counts, tables_of([counts])) / w.size
    off = made.values() - w
    return bits, float(u @ np.einsum("oi,oi->o", off @ h, off))


def nearest(layer, step):
    return np.rint(layer.scaled / step).astype(np.int32)


def curve(setting, layer, round_, steps):
    points = [judged(setting, layer, round_(layer, s), s) for s in steps]
    return np.array(sorted(points)).T


def by_rate(layer, step):
    q = nearest(layer, step)
    for _ in range(2):
        costs = Costs()
        costs.add(q, layer.taps)
        q = rounded_for(layer, step, q, costs.table())
    return q


def test_a_fifth_fewer_bits_than_plain_rounding_at_equal_error(setting):
    w, h, u = setting
    flat = Layer("w", w, 9, False, w.shape, None, np.ones(ROWS))
    whole = Layer("w", w, 9, False, w.shape, h, u)
    sizes = [np.sqrt(np.square(one.scaled).mean()) for one in (flat, whole)]
    steps = np.geomspace(0.4, 2.5, 8)
    plain = curve(setting, flat, nearest, steps * sizes[0])
    made = curve(setting, whole, by_rate, steps * sizes[1])
    for error in np.quantile(plain[1], [0.3, 0.5, 0.7]):
        bits = [np.interp(-np.log(error), -np.log(c[1]), c[0]) for c in (plain, made)]
        assert bits[1] < 0.8 * bits[0]


def test_errors_are_made_up_for_by_later_columns(setting):
    w, h, u = setting
    layer = Layer("w", w, 9, False, w.shape, h, u)
    step = 1.2 * float(np.sqrt(np.square(layer.scaled).mean()))
    plain = judged(setting, layer, nearest(layer, step), step)
    made = judged(setting, layer, rounded_for(layer, step, nearest(layer, step), None), step)
    assert made[1] < 0.6 * plain[1]


def test_independent_columns_of_equal_weight_are_rounded_to_the_nearest():
    w = np.random.default_rng(1).standard_normal((5, 1))
    layer = Layer("b", w, 1, False, (5,), None, np.ones(5))
    q = rounded_for(layer, 0.01, nearest(layer, 0.01), None)
    assert np.abs(as_rounded(layer, q, 0.01).values() - w).max() <= 0.0051


def test_a_vector_is_coded_by_its_neighbours():
    """Not as groups of one number each, of which those before say nothing."""
    w = np.random.default_rng(1).standard_normal((256, 1))
    layer = Layer("b", w, 1, False, (256,), None, np.ones(256))
    made = as_rounded(layer, nearest(layer, 0.1), 0.1)
    assert np.abs(made.values().ravel() - w.ravel()).max() <= 0.051
    counts = counts_of(made)
    bits = bits_taken(counts, tables_of([counts])) / w.size
    assert bits < 6.2  # 5.4 are what the nearest integers of a normal carry


def test_weights_of_a_million_steps_are_as_near_as_others():
    """A normalization's scales that decide all: they came out clipped to 16 bits."""
    w = np.random.default_rng(2).standard_normal((61, 1))
    layer = Layer("scale", w, 1, False, (61,), None, np.ones(61))
    q = nearest(layer, 1e-6)
    assert np.abs(q).max() > 1e6
    made = as_rounded(layer, q, 1e-6)
    assert np.abs(made.values().ravel() - w.ravel()).max() < 1.1e-6
