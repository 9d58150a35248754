import tracemalloc

import numpy as np
import pytest

from graphopt.calibration import ranges
from graphopt.calibration.histogram import Histogram
from graphopt.calibration.ranges import METHODS, calibrate, calibrate_folds, groups
from graphopt.testing import parse_model


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


MODEL = "a = Relu(x)  b = Neg(a)  y = Add(a, b)"


def model(shape=(2, 3)):
    return parse_model(MODEL, inputs={"x": shape})


def test_minmax_is_all_that_was_seen():
    feeds = [{"x": np.float32([[1, -5, 2]])}, {"x": np.float32([[7, 0, 0]])}]
    found = calibrate(model((1, 3)), ["x", "a", "b"], feeds)
    spans = {k: (v.range.lo, v.range.hi) for k, v in found.items()}
    assert spans == {"x": (-5, 7), "a": (0, 7), "b": (-7, 0)}


def test_what_is_not_finite_is_left_out():
    feeds = [{"x": np.float32([[np.inf, -2, np.nan]])}]
    found = calibrate(model((1, 3)), ["x"], feeds)["x"]
    assert (found.lo, found.hi) == (-2, -2)
    assert calibrate(model((1, 1)), ["x"], [{"x": np.float32([[np.nan]])}]) == {"x": None}


def test_no_samples_give_no_range():
    assert calibrate(model(), ["x"], []) == {"x": None}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_bulk_and_stays_inside_what_was_seen(method):
    feeds = [{"x": normal(100, 100, seed=s)} for s in range(4)]
    seen = calibrate(model((100, 100)), ["x"], feeds)["x"]
    found = calibrate(model((100, 100)), ["x"], feeds, method)["x"].range
    assert seen.lo <= found.lo <= -2.5
    assert 2.5 <= found.hi <= seen.hi


@pytest.mark.parametrize("method", METHODS)
def test_many_zeros_do_not_narrow_the_range(method):
    feeds = [{"x": normal(100, 100, seed=s)} for s in range(4)]
    found = calibrate(model((100, 100)), ["a"], feeds, method)["a"].range
    assert found.lo == 0
    assert found.hi > 2.5


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_an_outlier_is_clipped(method):
    x = normal(1, 200_000)
    x[0, 0] = 100
    found = calibrate(model(x.shape), ["x"], [{"x": x}], method)["x"]
    # one value in 200,000: only "percentile" gives it up whole, the others weigh its error
    assert found.range.hi < (5 if method == "percentile" else 90)
    assert found.reach > 90


def test_mse_is_the_clipping_with_the_least_error():
    x = np.random.default_rng(0).standard_t(3, 200_000).astype(np.float32)

    def loss(lo, hi):
        step = (hi - lo) / 255
        q = np.clip(np.rint(x / step), np.rint(lo / step), np.rint(hi / step)) * step
        return float(np.mean((q - x) ** 2))

    found = calibrate(model((1, x.size)), ["x"], [{"x": x[None]}], "mse")["x"]
    least = min(loss(-t, t) for t in np.linspace(1, max(-x.min(), x.max()), 200))
    assert loss(found.range.lo, found.range.hi) < 1.1 * least
    assert loss(found.range.lo, found.range.hi) < 0.75 * loss(found.lo, found.hi)


def test_bins_hold_every_magnitude():
    x = np.float32([0, -0.0, 1e-38, -1e-20, 1, 1.5, -3e38, 1e-45])
    histogram = Histogram()
    histogram.add(x)
    centres, counts = histogram.sorted()
    assert counts.sum() == x.size
    assert np.all(np.diff(centres) >= 0)
    assert abs(centres[-1] / 1.5 - 1) < 0.016
    assert abs(centres[0] / -3e38 - 1) < 0.016


def test_a_constant_needs_no_clipping():
    for method in METHODS:
        feeds = [{"x": np.full((2, 3), 2.5, np.float32)}]
        found = calibrate(model(), ["x", "b"], feeds, method)
        assert found["x"].range.hi == 2.5
        assert found["b"].range.lo == -2.5


def test_groups_stay_below_the_limit():
    feed = {"x": normal(10, 100)}
    parts, rows = groups(model((10, 100)), ["x", "a", "b", "y"], feed, limit=9_000)
    assert parts == [["x", "a"], ["b", "y"]]
    assert rows == 0, "a fixed batch is run whole"


def test_a_free_batch_is_run_in_parts(monkeypatch):
    free = parse_model(MODEL, inputs={"x": ("N", 100)})
    feed = {"x": normal(10, 100)}
    parts, rows = groups(free, ["x", "a"], feed, limit=4_000)
    assert (parts, rows) == ([["x", "a"]], 5)
    monkeypatch.setattr(ranges, "GROUP_BYTES", 4_000)
    found = calibrate(free, ["x"], [feed])["x"]
    assert (found.lo, found.hi) == (feed["x"].min(), feed["x"].max())


@pytest.mark.parametrize("method", METHODS)
def test_folds_are_what_is_seen_without_them(method, monkeypatch):
    monkeypatch.setattr(ranges, "GROUP_BYTES", 4_000)  # a run is read in parts, all of one fold
    free = parse_model(MODEL, inputs={"x": ("N", 100)})
    runs = [{"x": k * normal(10, 100, seed=k)} for k in (3, 1, 5, 2, 4)]
    read = []

    class Stream:
        def __iter__(self):
            read.append(len(runs))
            return iter(runs)

    found = calibrate_folds(free, ["x", "b"], Stream(), 2, method)
    parts = [runs, runs[1::2], runs[0::2]]
    assert found == [calibrate(free, ["x", "b"], part, method) for part in parts]
    assert len(read) == 2, "the first is looked at, then all are read once"


def test_shapes_may_vary_between_samples():
    free = parse_model(MODEL, inputs={"x": ("N", "M")})
    feeds = [{"x": normal(2, k)} for k in (3, 50, 7)]
    found = calibrate(free, ["a"], feeds, "mse")["a"]
    assert found.hi == max(f["x"].max() for f in feeds)


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_number_of_samples(method):
    def peak(count):
        def feeds():
            for k in range(count):
                yield {"x": normal(64, 64, seed=k)}

        class Stream:
            def __iter__(self):
                return feeds()

        tracemalloc.start()
        calibrate(model((64, 64)), ["x", "a"], Stream(), method)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)  # imports and caches
    assert peak(80) < 1.2 * peak(8) + 200_000


RNG = np.random.default_rng(0)
SPIKES = np.where(RNG.random(50_000) < 0.004, 100, RNG.random(50_000))


@pytest.mark.parametrize(
    ("values", "most"),
    [
        (RNG.integers(0, 256, 50_000), 0.005),  # pixels
        (np.full(5_000, 3.3), 0.005),
        (RNG.choice([0, 1, 2, 10], 50_000, p=[0.5, 0.4, 0.09, 0.01]), 0.01),
        (RNG.random(5_000) < 0.3, 0.005),
        (np.where(RNG.random(50_000) < 0.01, 5 * RNG.normal(size=50_000), 0), 0.03),
        (-np.abs(RNG.normal(size=5_000)) - 5, 0.02),
        (SPIKES, 0.04),
        (RNG.normal(size=50_000), 0.02),
        (RNG.laplace(size=50_000), 0.04),
    ],
    ids=["pixels", "constant", "levels", "bits", "sparse", "negative", "spikes", "normal", "tails"],
)
@pytest.mark.parametrize("method", ["entropy", "mse", "percentile"])
def test_clipping_spoils_no_distribution(values, most, method):
    """Relative error of the calibration data itself, rounded on the chosen range."""
    x = values.astype(np.float32)
    histogram = Histogram()
    histogram.add(x)
    lo, hi = histogram.clip(method)
    step = (hi - lo) / 255
    rounded = np.clip(np.rint(x / step) * step, lo, hi)
    assert np.linalg.norm(x - rounded) < most * np.linalg.norm(x)


@pytest.mark.parametrize(("last", "held"), [(1.0, 1.0), (3.0, 3.0)])
def test_every_fifth_run_is_held_against_the_others(last, held):
    model = parse_model("y = Relu (x)", inputs={"x": ("n", 2)})
    runs = [{"x": np.array([[-1, 0.5]], np.float32) * f} for f in (1, 0.5, 1, 0.2, last)]
    seen = calibrate(model, ["x"], runs)["x"]
    assert seen.held == pytest.approx(held)
    assert calibrate(model, ["x"], runs[:4])["x"].held == 0
