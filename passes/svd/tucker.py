"""Tucker's scheme: the kernel between two mixtures of channels (Kim et al. 2016).

A k x k kernel I -> O becomes 1 x 1, I -> r1, then k x k, r1 -> r2, then 1 x 1, r2 -> O; r2 = O
leaves out the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from graphopt.passes.svd.layers import Array, Layer
from graphopt.passes.svd.regression import Seen, spanned
from graphopt.passes.svd.stages import (
    Candidate,
    Cost,
    Factors,
    Problem,
    Shapes,
    Stage,
    balanced,
    cost_of,
    ranks_up_to,
)

__all__ = ["tucker_candidates", "tucker_factors"]

#: Ranks tried along each side of the grid, and alternations spent on the chosen pair.
GRID, SWEEPS = 24, 2


def _tucker_shapes(layer: Layer, ranks: tuple[int, ...]) -> Shapes:
    into, out = ranks
    shapes: Shapes = [
        ((into, layer.channels, 1, 1), ()),
        ((out, into, *layer.kernel), (0, 1)),
    ]
    return shapes if out == layer.columns else [*shapes, ((layer.columns, out, 1, 1), ())]


def tucker_candidates(
    problem: Problem, multiple: int, weigh: Callable[[Cost], bool]
) -> Iterator[Candidate]:
    """Pairs of ranks on a grid that no other pair beats in both cost and error."""
    layer = problem.layer
    places = layer.rows // layer.channels
    steps = [
        max(-(-n // GRID // multiple) * multiple, multiple) for n in (layer.channels, layer.columns)
    ]
    able = [
        rank
        for rank in ranks_up_to(layer.channels - 1, steps[0])
        if weigh(cost_of(layer, _tucker_shapes(layer, (rank, steps[1]))))
    ]
    if not able:
        return
    most = able[-1]
    points = spanned(_by_channel(problem, None), _channel_covariance(problem), most)
    seen = Seen(problem, _at_every_place(points, places))
    found = []
    for into in able:
        errors = seen.truncation(into * places)
        for out in (*ranks_up_to(layer.columns - 1, steps[1]), layer.columns):
            cost = cost_of(layer, _tucker_shapes(layer, (into, out)))
            if weigh(cost):
                found.append(Candidate("tucker", (into, out), cost, float(errors[out])))
    found.sort(key=lambda c: (c.cost.macs, c.error))
    best = 1.0
    for candidate in found:
        if candidate.error < best:
            best = candidate.error
            yield candidate


def _by_channel(problem: Problem, basis: Array | None) -> Array:
    """M as [I, kh kw N], its outputs seen in `basis` [N, r] if given."""
    tensor = problem.tensor.reshape(problem.layer.channels, -1, problem.layer.columns)
    seen = tensor.astype(np.float64)
    seen = seen if basis is None else seen @ basis
    return seen.reshape(problem.layer.channels, -1)


def _at_every_place(points: Array, places: int) -> Array:
    """Channel mixtures [I, r] as features [I p, r p] of a patch of p places."""
    features: Array = np.einsum("ir,pq->iprq", points, np.eye(places))
    return features.reshape(points.shape[0] * places, -1)


def _channel_covariance(problem: Problem) -> Array | None:
    """The input channels' covariance, averaged over the places of the patch."""
    if problem.covariance is None:
        return None
    channels = problem.layer.channels
    places = problem.layer.rows // channels
    full = problem.covariance.reshape(channels, places, channels, places)
    mean: Array = np.einsum("ipjp->ij", full) / places
    return mean


def _tucker_fit(problem: Problem, into: int, out: int) -> tuple[Array, Array, Array | None, float]:
    """(P [I, r1], Q [r1 k k, r2 or N], V [N, r2] or None, error), alternating between the ends."""
    layer = problem.layer
    places = layer.rows // layer.channels
    covariance = _channel_covariance(problem)
    best: tuple[Array, Array, Array | None, float] | None = None
    basis: Array | None = None
    for _ in range(SWEEPS):
        points = spanned(_by_channel(problem, basis), covariance, into)
        seen = Seen(problem, _at_every_place(points, places))
        fitted = seen.fit()
        if out == layer.columns:
            return points, fitted, None, seen.error(into * places)
        error = float(seen.truncation(into * places)[out])
        basis = seen.basis(out)
        if best is None or error < best[3]:
            best = points, fitted @ basis, basis, error
    assert best is not None
    return best


def tucker_factors(problem: Problem, ranks: tuple[int, ...]) -> Factors:
    """The two or three stages at these ranks."""
    layer = problem.layer
    into, out = ranks
    points, fitted, basis, error = _tucker_fit(problem, into, out)
    shapes = _tucker_shapes(layer, ranks)
    first = points.T.reshape(shapes[0][0])
    core = fitted.reshape(into, -1, fitted.shape[1]).transpose(2, 0, 1).reshape(shapes[1][0])
    first, core = balanced(first, core)
    stages = [Stage(first), Stage(core, (0, 1))]
    if basis is not None:
        core, last = balanced(core, basis.reshape(shapes[2][0]))
        stages[1:] = [Stage(core, (0, 1)), Stage(last)]
    places = layer.rows // layer.channels

    def applied(x: Array) -> Array:
        seen = x.reshape(-1, layer.channels, places).transpose(0, 2, 1) @ points
        y: Array = seen.transpose(0, 2, 1).reshape(len(seen), -1) @ fitted
        return y if basis is None else y @ basis.T

    return Factors(tuple(stages), applied, error)
