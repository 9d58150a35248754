"""Candidate ranks of a layer, their cost and error, and its finished factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from graphopt.passes.svd.layers import Array, Layer, Use
from graphopt.passes.svd.moments import Moments
from graphopt.passes.svd.schemes import candidates, channel_shapes, factors
from graphopt.passes.svd.spectrum import Spectrum, decompose, gram, root
from graphopt.passes.svd.stages import Candidate, Cost, Problem, Stage, cost_of, original

__all__ = ["Curve", "Finished", "curve_of", "finish", "problem_of", "saves", "useful_ranks"]

#: A shift of the mean below this share of the error, in energy, is not worth a bias.
SHIFT = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """What is kept of a layer between choosing and factoring.

    Attributes:
        layer: the layer.
        candidates: the cheaper ways to write it.
        spectrum: of its (whitened) matrix.
        means: per use, the mean of its inputs [K].
        energies: per use, the mean square of its centred output.
        place: the shape its input had in the first sample, or ().
    """

    layer: Layer
    candidates: tuple[Candidate, ...]
    spectrum: Spectrum
    means: Mapping[Use, Array]
    energies: Mapping[Use, float]
    place: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """A layer's factors, ready to be put in its place.

    Attributes:
        layer: the layer.
        candidate: the scheme and ranks chosen.
        stages: the factors in order.
        shifts: per use, what the output lacks on average [N].
        error: relative squared output error.
    """

    layer: Layer
    candidate: Candidate
    stages: tuple[Stage, ...]
    shifts: Mapping[Use, Array]
    error: float


def saves(layer: Layer, of: str) -> Callable[[Cost], bool]:
    """Whether a cost is below the layer's own: in `of`, and not above it in the other."""
    own = original(layer)
    lookup = any(u.lookup for u in layer.uses)

    def weigh(cost: Cost) -> bool:
        if of == "params" and lookup:
            return cost.params < own.params
        less = cost.macs < own.macs if of == "macs" else cost.params < own.params
        return less and cost.params <= own.params and cost.macs <= own.macs

    return weigh


def useful_ranks(layer: Layer, weigh: Callable[[Cost], bool]) -> int:
    """The least rank of two factors that no longer saves anything."""
    low, high = 1, min(layer.rows, layer.columns) + 1
    while low < high:
        middle = (low + high) // 2
        if weigh(cost_of(layer, channel_shapes(layer, middle))):
            low = middle + 1
        else:
            high = middle
    return low


def problem_of(
    layer: Layer,
    moments: Mapping[Use, Moments] | None,
    *,
    wanted: float | None,
    useful: int,
    seed: int,
    spectrum: Spectrum | None = None,
) -> tuple[Problem, dict[Use, float]]:
    """The layer with its numbers, and each use's mean squared centred output."""
    matrix = layer.matrix()
    if not moments:
        found = spectrum or decompose(matrix, wanted=wanted, useful=useful, seed=seed)
        return Problem(layer, matrix, None, found), {}
    outputs = next(iter(moments.values())).outputs
    lookup = any(u.lookup for u in layer.uses)
    white = gram(matrix) if outputs else None
    energies: dict[Use, float] = {}
    total: Array | None = None
    for use, one in moments.items():
        part = one.covariance(matrix, white)
        energies[use] = float(np.trace(part)) if outputs else _energy(matrix, part)
        part /= max(energies[use], 1e-300)
        total = part if total is None else total + part
    assert total is not None
    if lookup:  # a lookup sees every row alike: white inputs on its side
        power = float(sum(np.square(matrix, dtype=np.float64).sum(0)))
        total = total + white / power if white is not None else total + np.eye(len(total)) / power
    if spectrum is None:
        spectrum = decompose(
            matrix,
            chol=None if outputs else root(total),
            outputs=total if outputs else None,
            wanted=wanted,
            useful=useful,
            seed=seed,
        )
    return Problem(layer, matrix, None if outputs else total, spectrum), energies


def _energy(matrix: Array, covariance: Array) -> float:
    """tr(MᵀC M)."""
    step = max(1, (1 << 22) // matrix.shape[0])
    return float(
        sum(
            np.sum((covariance @ block) * block)
            for i in range(0, matrix.shape[1], step)
            for block in [matrix[:, i : i + step].astype(np.float64)]
        )
    )


def curve_of(
    problem: Problem,
    energies: Mapping[Use, float],
    moments: Mapping[Use, Moments] | None,
    multiple: int,
    weigh: Callable[[Cost], bool],
) -> Curve:
    """Every candidate that saves."""
    layer = problem.layer
    each = moments or {}
    return Curve(
        layer,
        tuple(candidates(problem, multiple, weigh=weigh)),
        problem.spectrum,
        {use: one.mean for use, one in each.items()},
        dict(energies),
        next((one.place for one in each.values()), ()),
    )


def finish(problem: Problem, curve: Curve, candidate: Candidate) -> Finished:
    """The factors of `candidate`, in the weight's own element type, and what bias has to absorb."""
    made = factors(problem, candidate)
    shifts: dict[Use, Array] = {}
    for use, mean in curve.means.items():
        row = mean[None]
        lacks: Array = (row @ problem.matrix.astype(np.float64) - made.applied(row))[0]
        energy = curve.energies[use]
        floor = SHIFT * made.error * energy + 1e-12 * energy
        if float(lacks @ lacks) > floor:
            shifts[use] = lacks
    dtype = problem.matrix.dtype
    stages = tuple(Stage(s.weight.astype(dtype), s.axes) for s in made.stages)
    return Finished(curve.layer, candidate, stages, shifts, made.error)
