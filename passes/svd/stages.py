"""Stages: the factors of a layer, what they cost, and what they lose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from graphopt.passes.svd.layers import Array, Geometry, Layer
from graphopt.passes.svd.spectrum import Spectrum

__all__ = [
    "Candidate",
    "Cost",
    "Factors",
    "Problem",
    "Shapes",
    "Stage",
    "balanced",
    "cost_of",
    "original",
    "ranks_up_to",
    "split",
]

#: The shape of each stage's weight, and the axes it carries.
Shapes = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one run, and elements stored."""

    macs: float
    params: float

    def of(self, what: str) -> float:
        """The one called `what`, "macs" or "params"."""
        return self.macs if what == "macs" else self.params


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A scheme at certain ranks: what it costs and its relative squared output error."""

    scheme: str
    ranks: tuple[int, ...]
    cost: Cost
    error: float


@dataclasses.dataclass(frozen=True)
class Stage:
    """One factor: its weight, and the spatial axes whose kernel, stride and padding it carries.

    The weight is [rows, columns] for matrices, [out, in, *kernel] for convolutions.
    """

    weight: Array
    axes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Factors:
    """Stages in order, the map x -> x M̂ they amount to, and its relative squared output error."""

    stages: tuple[Stage, ...]
    applied: Callable[[Array], Array]
    error: float


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A layer with its numbers: M [K, N], the inputs' covariance (or None) and the spectrum."""

    layer: Layer
    matrix: Array
    covariance: Array | None
    spectrum: Spectrum

    @property
    def tensor(self) -> Array:
        """M as [I, kh, kw, N]."""
        return self.matrix.reshape(self.layer.channels, *self.layer.kernel, -1)


def original(layer: Layer) -> Cost:
    """What the layer costs as it is. A lookup multiplies nothing."""
    macs = 0.0
    for use, place in zip(layer.uses, layer.places, strict=True):
        if not use.lookup:
            macs += place.times * np.prod(place.after, dtype=float) * layer.params
    return Cost(macs, layer.params)


def cost_of(layer: Layer, shapes: Shapes) -> Cost:
    """What stages cost: each given by the shape of its weight and the axes it carries."""
    params = float(sum(np.prod(shape, dtype=float) for shape, _ in shapes))
    macs = 0.0
    for use, place in zip(layer.uses, layer.places, strict=True):
        if layer.kind == "conv":
            macs += _conv_macs(place, shapes)
            continue
        # of a lookup only the stage that is not looked up multiplies
        used = shapes if not use.lookup else shapes[:1] if use.reverse else shapes[1:]
        macs += place.times * float(sum(np.prod(shape, dtype=float) for shape, _ in used))
    return Cost(macs, params + (layer.params if layer.shared else 0))


def _conv_macs(place: Geometry, shapes: Shapes) -> float:
    macs, done = 0.0, set[int]()
    for shape, axes in shapes:
        done |= set(axes)
        sizes = [place.after[a] if a in done else place.before[a] for a in range(len(place.after))]
        macs += float(np.prod(shape, dtype=float) * np.prod(sizes, dtype=float))
    return place.times * macs


def ranks_up_to(most: int, multiple: int) -> range:
    """Multiples of `multiple` up to `most`."""
    return range(multiple, most + 1, multiple)


def balanced(a: Array, b: Array) -> tuple[Array, Array]:
    """Both convolution weights with the channels between them scaled to equal norms.

    Balanced factors keep what is between them in a range that integers can hold.
    """
    ones = [1] * (a.ndim - 2)
    norms = np.sqrt(np.square(b).sum(axis=(0, *range(2, b.ndim))))
    scale = split(np.sqrt(np.square(a).sum(axis=tuple(range(1, a.ndim)))), norms)
    return a * scale.reshape(-1, 1, *ones), b / scale.reshape(1, -1, *ones)


def split(a: Array, b: Array) -> Array:
    """Factors s that make norms a s and b / s equal; 1 where one is zero."""
    scale: Array = np.sqrt(np.maximum(b, 1e-30) / np.maximum(a, 1e-30))
    scale[(a == 0) | (b == 0)] = 1.0
    return scale
