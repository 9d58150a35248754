"""Sampling for fits: which samples, and which of their spatial positions, are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from graphopt.passes.prune.linear import Refittable

from graphopt.samples import Feeds, Samples

__all__ = ["FEATURES_MOST", "ROWS_LEAST", "Draw", "enough_of", "fit_share"]

Array = np.ndarray[Any, Any]

#: Rows that are enough, per feature and at least; neighbouring positions say much the same.
ROWS_PER_FEATURE, ROWS_LEAST = 8, 16384
#: Operators with more features (kernel size times channels) are too large to solve for.
FEATURES_MOST = 8192
#: Samples that scores and fits gain nothing beyond; a training set may have many more.
SAMPLES_MOST = 2048


def enough_of(samples: Samples) -> Samples:
    """All samples, or about 2,048 of more, taken evenly: data is often sorted by class."""
    rows = [max((len(a) for a in feeds.values() if a.ndim), default=1) for feeds in samples]
    if sum(rows) <= SAMPLES_MOST:
        return samples
    runs = max(1, round(len(rows) * SAMPLES_MOST / sum(rows)))
    chosen = np.linspace(0, len(rows) - 1, runs).round().astype(int)
    return Samples(_Some(samples, set(chosen.tolist())), samples.source)


class _Some:
    """Some of the runs of samples, by number; read again at every iteration."""

    def __init__(self, samples: Samples, numbers: set[int]) -> None:
        self._samples, self._numbers = samples, numbers

    def __iter__(self) -> Iterator[Feeds]:
        upto = islice(self._samples, max(self._numbers) + 1)
        return (feeds for k, feeds in enumerate(upto) if k in self._numbers)


class Draw:
    """Draws, for each run's output, the spatial positions to look at (None: all of them)."""

    def __init__(self, op: Refittable, features: int, runs: int, seed: int) -> None:
        self._op, self._runs = op, max(runs, 1)
        self._wanted = max(ROWS_LEAST, ROWS_PER_FEATURE * features)
        self._rng = np.random.default_rng(seed)

    def __call__(self, shape: tuple[int, ...]) -> Array | None:
        """Positions for an output of this shape, sorted."""
        there = self._op.positions(shape)
        some = -(-self._wanted // (self._runs * shape[0]))
        return None if some >= there else np.sort(self._rng.choice(there, some, replace=False))


def fit_share(run: int, runs: int) -> float:
    """Share of a run's rows to fit on: four fifths of all, whole runs where there are enough.

    Rows of one run may come from one text or one recording, and say little of others.
    """
    if runs < 5:
        return 0.8
    return 0.0 if run % 5 == 4 else 1.0
