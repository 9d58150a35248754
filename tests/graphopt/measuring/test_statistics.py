"""Statistics of interleaved pairs, on simulated times: nothing here depends on the clock's pace."""

import math

import numpy as np
import pytest

from graphopt.backend import Timing
from graphopt.measuring.statistics import compare_times, interleave, interval, verdict


def simulate(ratio, noise, rounds=60, seed=0, bursts=0.0):
    """Times of a, b = ratio * a and a again; a share `bursts` of them are tenfold outliers."""
    rng = np.random.default_rng(seed)
    drift = np.exp(rng.normal(0, 0.3, (rounds, 1)))  # the machine's own pace: cancels in pairs
    times = drift * np.exp(rng.normal(0, noise, (rounds, 3))) * np.array([5.0, 5.0 * ratio, 5.0])
    hit = rng.random((rounds, 3)) < bursts
    return np.where(hit, times * 10, times).T


@pytest.mark.parametrize(
    ("ratio", "noise", "expected"),
    [
        (1.0, 0.01, "same"),
        (1.01, 0.005, "same"),
        (1.10, 0.01, "slower"),
        (0.90, 0.01, "faster"),
        (0.99, 0.005, "same"),
        (2.0, 0.05, "slower"),
        (1.3, 0.8, "noisy"),
    ],
)
def test_verdict_of_simulated_times(ratio, noise, expected):
    timing = compare_times(*simulate(ratio, noise))
    assert verdict(timing) == expected, timing


def test_outliers_do_not_move_the_ratio():
    clean = compare_times(*simulate(0.8, 0.02))
    hit = compare_times(*simulate(0.8, 0.02, bursts=0.05))
    assert math.isclose(clean.ratio, hit.ratio, rel_tol=0.01)
    assert verdict(hit) == "faster"


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """95 % nominal: of 400 simulated runs 90 % to 98 % must cover (sigma is 1.1 %)."""
    covered = 0
    for seed in range(400):
        low, high = compare_times(*simulate(1.07, 0.05, rounds=25, seed=seed)).ci
        covered += low < 1.07 < high
    assert 0.90 <= covered / 400 <= 0.98


def test_equal_models_are_rarely_called_slower_or_faster():
    said = [verdict(compare_times(*simulate(1.0, 0.06, rounds=20, seed=s))) for s in range(300)]
    assert sum(v in ("slower", "faster") for v in said) <= 3


def test_few_rounds_are_noisy_not_decided():
    timing = compare_times(*simulate(1.2, 0.2, rounds=5))
    assert verdict(timing) in ("noisy", "same")


def test_boundaries_are_as_stated():
    def at(low, high, spread):
        return verdict(Timing(1, 1, 1, (low, high), spread, 30))

    assert at(1.021, 1.03, 0.0) == "slower"
    assert at(1.019, 1.03, 0.0) == "same"
    assert at(1.05, 1.06, 0.06) == "same"
    assert at(1.07, 1.08, 0.06) == "slower"
    assert at(5.0, 6.0, 0.101) == "noisy"
    assert at(0.9, 0.97, 0.0) == "faster"
    assert at(0.9, 0.985, 0.0) == "same"


def test_student_quantiles_match_the_tables():
    """Two-sided 95 %: 4.303 at 2 degrees, 2.571 at 5, 2.042 at 30; a t table's own rounding 1 %."""
    for kept, expected in ((3, 4.303), (6, 2.571), (31, 2.042)):
        n = kept if kept < 5 else next(n for n in range(kept, 99) if n - 2 * int(0.2 * n) == kept)
        values = np.arange(n, dtype=float)
        mean, _, high = interval(values)
        cut = int(0.2 * n)
        wins = np.clip(values, values[cut], values[n - cut - 1])
        error = wins.std(ddof=1) * math.sqrt((n - 1) / (kept * (kept - 1)))
        assert math.isclose((high - mean) / error, expected, rel_tol=0.01)


def test_rounds_run_every_call_equally_often_in_changing_order():
    calls = []
    times = interleave([lambda: calls.append(0), lambda: calls.append(1)], seconds=0.0)
    assert times.shape == (5, 2)
    assert (times > 0).all()
    assert calls.count(0) > 0
    assert calls.count(1) > 0


def test_rounds_stop_when_enough_is_known():
    times = interleave([lambda: None, lambda: None], seconds=1e6, enough=lambda t: len(t) == 30)
    assert len(times) == 30
