"""Samples: input data for calibration and checking, streamed and re-iterable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import SamplesError

__all__ = ["Feeds", "Samples", "bind_shapes", "open_samples", "synthetic"]

#: One run's inputs: arrays by input name.
Feeds = dict[str, np.ndarray[Any, Any]]
BATCH = 32


class Samples:
    """Feeds for a model's inputs, one dict of arrays per run; iterate as often as needed.

    Attributes:
        source: where they come from, as shown to the user.
        synthetic: True if they were drawn at random for want of real ones.
    """

    def __init__(self, feeds: Sequence[Feeds], source: str = "", synthetic: bool = False) -> None:
        self.feeds, self.source, self.synthetic = feeds, source, synthetic

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self.feeds)

    def digest(self) -> str:
        """SHA-256 of every array."""
        seen = hashlib.sha256()
        for feed in self.feeds:
            for name in sorted(feed):
                seen.update(name.encode())
                seen.update(np.ascontiguousarray(feed[name]).tobytes())
        return seen.hexdigest()


def open_samples(
    given: Samples | str | Path | Mapping[str, np.ndarray[Any, Any]],
    model: ir.Model,
    *,
    preprocess: str | None = None,
) -> Samples:
    """Samples from what the user named. Raises SamplesError if they cannot be read."""
    if isinstance(given, Samples):
        return given
    if isinstance(given, (str, Path)):
        try:
            with np.load(given) as data:
                arrays = dict(data)
        except (OSError, ValueError) as error:
            raise SamplesError(f"{given}: {error}") from error
    else:
        arrays = dict(given)
    count = len(next(iter(arrays.values())))
    feeds = [{k: v[i : i + BATCH] for k, v in arrays.items()} for i in range(0, count, BATCH)]
    return Samples(feeds, str(given) if isinstance(given, (str, Path)) else "arrays")


def bind_shapes(
    model: ir.Model, given: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """A concrete shape for every input, and what was chosen."""
    shapes = {}
    for value in model.graph.inputs:
        if value.name is None or value.name in model.graph.initializers:
            continue
        dims = value.shape or ()
        open_ = [d if isinstance(d, int) else (1 if k == 0 else 16) for k, d in enumerate(dims)]
        shapes[value.name] = tuple(given.get(value.name, open_))
    return shapes, []


def synthetic(model: ir.Model, *, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Samples:
    """Seeded inputs drawn at random, two runs."""
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(2):
        feed: Feeds = {}
        for value in model.graph.inputs:
            if value.name not in shapes or value.name is None or value.dtype is None:
                continue
            dtype, shape = value.dtype.numpy(), shapes[value.name]
            if dtype.kind == "f":
                feed[value.name] = rng.standard_normal(shape).astype(dtype)
            else:
                feed[value.name] = rng.integers(0, 2, shape).astype(dtype)
        feeds.append(feed)
    return Samples(feeds, "synthetic", synthetic=True)
