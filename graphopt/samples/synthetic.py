"""Seeded inputs drawn for what each input means, for want of real samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import SamplesError
from graphopt.samples.inputs import Input, inputs_of
from graphopt.samples.leaves import dead_leaves
from graphopt.samples.meaning import Meaning, meaning_of
from graphopt.samples.stream import Feeds, Samples
from graphopt.samples.thresholds import about

__all__ = ["synthetic"]

Array = np.ndarray[Any, Any]
RUNS = 2
#: Runs of what trees read: one row takes one way down each.
SPLIT_RUNS = 64
#: Bytes of one input that are drawn at most.
LARGEST = 1 << 27
#: Sizes of an image's axis of channels.
CHANNELS = (1, 3, 4)


class _Drawn:
    """Feeds drawn anew at each iteration, always the same."""

    def __init__(
        self, plan: list[tuple[Input, Meaning, tuple[int, ...]]], seed: int, runs: int
    ) -> None:
        self._plan, self._seed, self._runs = plan, seed, runs

    def __iter__(self) -> Iterator[Feeds]:
        for run in range(self._runs):
            rng = np.random.default_rng([self._seed, run])
            longest = max((_steps(shape) for _, _, shape in self._plan), default=1)
            valid = _Valid(rng)
            yield {
                one.name: _draw(meaning, one.dtype, shape, rng, valid, longest)
                for one, meaning, shape in self._plan
            }


class _Valid:
    """How many leading positions of each row are valid; masks of one length share them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._known: dict[tuple[int, int], Array] = {}

    def __call__(self, rows: int, length: int) -> Array:
        """At least one, all in the first of several rows, padding in the others."""
        if (rows, length) not in self._known:
            counts = self._rng.integers(max(length // 2, 1), max(length, 2), rows)
            if rows > 1:
                counts[0] = length
            self._known[rows, length] = counts
        return self._known[rows, length]


def synthetic(
    model: ir.Model, *, seed: int = 0, shapes: Mapping[str, Sequence[int]], runs: int = RUNS
) -> Samples:
    """Inputs drawn at random within what each input means; the same for the same seed.

    Token ids lie within the tables they index, masks have padding and at least one valid token a
    row, positions count up, images show shapes, what trees read lies at, just below and just above
    their thresholds; other floats are N(0, 1).

    Args:
        model: whose inputs to draw.
        seed: seeds every run.
        shapes: a shape per input, as `bind_shapes` gives it.
        runs: how many runs at least.

    Raises:
        SamplesError: an input is larger than any memory.
    """
    values = {v.name: v for v in model.graph.inputs}
    sizes = {
        name: size
        for one in inputs_of(model)
        for name, size in zip(one.dims or (), shapes[one.name], strict=False)
    }
    plan = [
        (one, _within(meaning_of(values[one.name], model), sizes), tuple(shapes[one.name]))
        for one in inputs_of(model)
    ]
    for one, _, shape in plan:
        size = math.prod(shape) * one.dtype.itemsize
        if size > LARGEST:
            raise SamplesError(
                f"input '{one.name}' takes {one}, {size / 1e9:,.1f} GB: too large to draw; give "
                "--samples, or smaller sizes with --shape where axes are dynamic"
            )
    if any(meaning.kind == "split" for _, meaning, _ in plan):
        runs = max(runs, SPLIT_RUNS)
    return Samples(_Drawn(plan, seed, runs), f"synthetic, seed {seed}", synthetic=True)


def _within(meaning: Meaning, sizes: Mapping[int | str | None, int]) -> Meaning:
    """With ids below the sizes of the axes that they count along."""
    known = [sizes[name] for name in meaning.rows if sizes.get(name)]
    if not known:
        return meaning
    high = min(known) if meaning.high is None else min(meaning.high, *known)
    return dataclasses.replace(meaning, high=high)


def _steps(shape: tuple[int, ...]) -> int:
    """The length of the sequence a shape may hold: its second axis."""
    return shape[1] if len(shape) in (2, 3) else 1


def _draw(
    meaning: Meaning,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    rng: np.random.Generator,
    valid: _Valid,
    longest: int,
) -> Array:
    kind, high = meaning.kind, meaning.high
    if kind in ("mask", "additive_mask"):
        keep = _mask(shape, valid)
        return (keep if kind == "mask" else np.where(keep, 0.0, -1e4)).astype(dtype)
    if kind == "positions":
        steps = np.arange(shape[-1] if shape else 1) % (high or 2**31)
        return np.broadcast_to(steps, shape).astype(dtype) if shape else steps[0].astype(dtype)
    if kind == "lengths":
        return np.full(shape, longest).astype(dtype)
    if kind == "flag":
        return np.ones(shape, dtype)
    if kind == "fixed":
        return np.full(shape, meaning.value).astype(dtype)
    if kind == "text":
        return rng.choice(np.array(meaning.words or ("text",), object), shape)
    if kind == "bytes":
        span = np.iinfo(dtype)
        return rng.integers(span.min, span.max + 1, shape).astype(dtype)
    if kind == "split":
        return about(meaning.thresholds, dtype, shape, rng)
    if kind == "image":
        return _image(shape, high, rng).astype(dtype)
    if kind == "grid":
        return rng.uniform(-1, 1, shape).astype(dtype)
    if kind in ("ids", "timestep"):
        return rng.integers(0, high or 10, shape).astype(dtype)
    values = rng.standard_normal(shape)
    return np.asarray(np.abs(values) + 0.1 if kind == "positive" else values).astype(dtype)


def _mask(shape: tuple[int, ...], valid: _Valid) -> Array:
    """True for the leading positions of the last axis, as many as are valid in each row."""
    if not shape:
        return np.array(True)
    rows, length = (shape[0], shape[-1]) if len(shape) > 1 else (1, shape[0])
    keep = np.arange(length) < valid(rows, length)[:, np.newaxis]
    keep = keep.reshape(rows, *(1,) * (len(shape) - 2), length) if len(shape) > 1 else keep[0]
    return np.broadcast_to(keep, shape)


def _image(shape: tuple[int, ...], high: int | None, rng: np.random.Generator) -> Array:
    """Shapes that cover each other, per image about of mean 0 and deviation 1, or in 0..`high`."""
    if shape[1] in CHANNELS:
        values = dead_leaves((shape[0], shape[1], shape[2], shape[3]), rng)
    else:
        values = dead_leaves((shape[0], shape[3], shape[1], shape[2]), rng).transpose(0, 2, 3, 1)
    return values if high is None else np.clip((values / 2.7 + 1) / 2, 0, 1) * high
