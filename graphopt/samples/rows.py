"""Rows of a run: how many there are, the first of them, and a run in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.samples.inputs import inputs_of
from graphopt.samples.stream import Feeds, Samples

__all__ = ["HELD", "cut", "first_rows", "first_runs", "free_rows", "row_by_row"]

Array = np.ndarray[Any, Any]
#: Where the number of rows that a model takes together lies in `model.graph.meta`, if not one.
HELD = "graphopt.held"


def free_rows(model: ir.Model, feed: Mapping[str, Array]) -> int:
    """Rows of a feed that may be run in parts, or 0."""
    if HELD in model.graph.meta:
        return 0
    lengths = {a.shape[0] if a.ndim else 0 for a in feed.values()}
    free = all(i.batch is None for i in inputs_of(model) if i.name in feed)
    return lengths.pop() if free and len(lengths) == 1 else 0


def cut(samples: Iterable[Mapping[str, Array]], rows: int) -> Iterator[Feeds]:
    """The feeds, in parts of `rows` rows where they are longer; 0 leaves them whole."""
    for feed in samples:
        lengths = {a.shape[0] if a.ndim else 0 for a in feed.values()}
        length = lengths.pop() if len(lengths) == 1 else 0
        if rows < 1 or length <= rows:
            yield dict(feed)
            continue
        for start in range(0, length, rows):
            yield {k: a[start : start + rows] for k, a in feed.items()}


def first_rows(model: ir.Model, feed: Mapping[str, Array], rows: int) -> Feeds:
    """The first rows of a run, where the model takes any number of them; else the whole run.

    Where it takes some together, so many of these as fit, one at least.
    """
    together = int(model.graph.meta.get(HELD, 1))
    rows = max(together, rows - rows % together)
    held = [i for i in inputs_of(model) if i.dims and i.axis is not None]
    axes = {i.name: i.axis or 0 for i in held}
    if any(isinstance(i.dims[axes[i.name]], int) for i in held if i.dims):
        return dict(feed)
    return {
        n: a[(slice(None),) * axes[n] + (slice(rows),)] if n in axes else a for n, a in feed.items()
    }


def row_by_row(model: ir.Model, samples: Samples) -> Samples | None:
    """The same rows in runs of one, for models that take no more, whatever they declare.

    None where runs are of one row already, or where their rows belong together.
    """
    first = next(iter(samples), {})
    if free_rows(model, first) < 2:
        return None
    return Samples(_RowByRow(samples), samples.source, samples.synthetic)


@dataclasses.dataclass(frozen=True)
class _RowByRow:
    """Samples cut into single rows, read anew each time."""

    samples: Samples

    def __iter__(self) -> Iterator[Feeds]:
        return cut(self.samples, 1)


def first_runs(model: ir.Model, samples: Samples, rows: int) -> Samples:
    """The first runs of samples, about so many rows; one that is longer is cut if it can be."""
    return Samples(_First(model, samples, rows), samples.source, samples.synthetic)


@dataclasses.dataclass(frozen=True)
class _First:
    """Samples up to so many rows, read anew each time."""

    model: ir.Model
    samples: Samples
    rows: int

    def __iter__(self) -> Iterator[Feeds]:
        inputs, left = inputs_of(self.model), self.rows
        free = all(i.dims is not None and i.axis == 0 and i.batch is None for i in inputs)
        for feeds in self.samples:
            there = max((len(a) for a in feeds.values() if a.ndim), default=1) if free else 1
            yield first_rows(self.model, feeds, left) if there > left else feeds
            left -= there
            if left <= 0:
                break
