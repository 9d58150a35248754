"""Timing statistics: two models in interleaved pairs, ratio and interval on a noisy machine.

Milliseconds taken minutes apart say little on a shared machine. Here every round runs each model
once, in random order, and only the ratios inside a round are used:

    ratio  = exp(trimmed mean of log(b / a)), with its 95 % interval
    spread = how far the same statistic of `a` against `a` itself lets one stray from 1

The mean and its interval are the 20 % trimmed mean and the t interval of Tukey and McLaughlin
(Sankhya 25, 1963; Yuen, Biometrika 61, 1974), which a few interrupted runs don't move.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from graphopt.backend import Timing
from graphopt.reporting.records import Verdict

__all__ = ["Verdict", "compare_times", "interleave", "interval", "known", "time_pair", "verdict"]

Array = np.ndarray[Any, np.dtype[np.float64]]

TOLERANCE = 0.02  # a ratio closer to 1 than this is nobody's concern
TOO_NOISY = 0.10  # a spread above this leaves nothing to claim
TRIM = 0.2  # share of rounds cut at each end
SAMPLE = 2e-3  # seconds: shorter runs are repeated inside a sample until it takes this long
MIN_ROUNDS = 5
ENOUGH_ROUNDS = 30
PRECISE = 0.004  # half width of an interval that more rounds need not narrow


def verdict(timing: Timing) -> Verdict:
    """What may be said of `b` against `a`.

    "noisy" if the spread is above 10 %; else "slower" ("faster") if the whole 95 % interval lies
    above 1 + max(0.02, spread) (below its inverse), and "same" if neither.
    """
    if timing.spread > TOO_NOISY:
        return "noisy"
    margin = 1 + max(TOLERANCE, timing.spread)
    if timing.ci[0] > margin:
        return "slower"
    return "faster" if timing.ci[1] < 1 / margin else "same"


def time_pair(
    a: Callable[[], object],
    b: Callable[[], object],
    seconds: float,
    *,
    again: Callable[[], object] | None = None,
) -> Timing:
    """Time two calls beside each other for about `seconds`, or until the ratio is known well.

    Args:
        a: one run of the first.
        b: one run of the second.
        seconds: bound on the timed part; at least five rounds are timed whatever they take.
        again: a second session of `a`, whose memory lies elsewhere; None runs `a` itself twice.
    """
    times = interleave([a, b, again or a], seconds, enough=known)
    return compare_times(times[:, 0], times[:, 1], times[:, 2])


def compare_times(a: Array, b: Array, again: Array) -> Timing:
    """The statistics of three columns of milliseconds, one row a round (`again` is `a` again)."""
    mean, low, high = interval(np.log(b / a))
    _, below, above = interval(np.log(again / a))
    return Timing(
        a_ms=float(np.median(np.concatenate([a, again]))),
        b_ms=float(np.median(b)),
        ratio=math.exp(mean),
        ci=(math.exp(low), math.exp(high)),
        spread=math.exp(max(abs(below), abs(above))) - 1,
        pairs=len(a),
    )


def interleave(
    runs: Sequence[Callable[[], object]],
    seconds: float,
    *,
    enough: Callable[[Array], bool] | None = None,
) -> Array:
    """Milliseconds per run, one row a round and one column per call; order random in each round.

    Every call is warmed up first. A call quicker than `SAMPLE` is repeated inside its sample, all
    calls equally often, so that the clock and the switch between models weigh little. Rounds end
    after `seconds`, or when `enough(times)` says so.
    """
    rng = np.random.default_rng(0)
    repeats = max(1, math.ceil(SAMPLE / max(1e-7, min(_warm(run) for run in runs))))
    rows: list[list[float]] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = perf_counter() + seconds
        while len(rows) < MIN_ROUNDS or perf_counter() < end:
            row = [0.0] * len(runs)
            for k in rng.permutation(len(runs)):
                row[k] = _sample(runs[k], repeats) * 1e3
            rows.append(row)
            if enough is not None and enough(np.array(rows)):
                break
    finally:
        if collecting:
            gc.enable()
    return np.array(rows)


def interval(values: Array) -> tuple[float, float, float]:
    """The 20 % trimmed mean of `values` and the ends of its 95 % interval."""
    n = len(values)
    cut = int(TRIM * n)
    ordered = np.sort(values)
    mean = float(ordered[cut : n - cut].mean())
    kept = n - 2 * cut
    if kept < 2:
        return mean, -math.inf, math.inf
    winsorized = np.clip(ordered, ordered[cut], ordered[n - cut - 1])
    error = float(winsorized.std(ddof=1)) * math.sqrt((n - 1) / (kept * (kept - 1)))
    half = _t975(kept - 1) * error
    return mean, mean - half, mean + half


def known(times: Array) -> bool:
    """Whether both ratios, of columns to the first (the last is it again), are known to 0.4 %."""
    if len(times) < ENOUGH_ROUNDS or len(times) % 10:
        return False
    logs = np.log(times[:, 1:] / times[:, :1])
    return all(
        high - low < 2 * PRECISE for _, low, high in (interval(logs[:, 0]), interval(logs[:, 1]))
    )


def _warm(run: Callable[[], object]) -> float:
    """Run at least three times and for 20 ms; seconds of the quickest run."""
    best, began = math.inf, perf_counter()
    count = 0
    while count < 3 or (perf_counter() - began < 0.02 and count < 1000):
        best = min(best, _sample(run, 1))
        count += 1
    return best


def _sample(run: Callable[[], object], repeats: int) -> float:
    began = perf_counter()
    for _ in range(repeats):
        run()
    return (perf_counter() - began) / repeats


def _t975(degrees: int) -> float:
    """97.5 % quantile of Student's t (Cornish-Fisher; within 1 % from two degrees on)."""
    z = 1.959963985
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * degrees**4)
    )
