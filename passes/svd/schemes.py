"""Factorization schemes: channel, spatial and Tucker chains, and what each costs and loses.

A matrix has one, M ~ A B. A convolution W [O, I, kh, kw] has these (r: ranks):

    channel   k x k, I -> r;   1 x 1, r -> O           (Zhang et al. 2015)
    spatial   kh x 1, I -> r;  1 x kw, r -> O, or the other way round (Jaderberg et al. 2014)
    tucker    1 x 1, I -> r1;  k x k, r1 -> r2;  1 x 1, r2 -> O (Kim et al. 2016); r2 = O leaves out
              the last

All are one problem: choose features F of the patch x (F = I, A along one axis, or P along the
input channels), then the best linear map from x F to the outputs, of rank r2 at most (see
`regression`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from graphopt.passes.svd.layers import Array, Layer
from graphopt.passes.svd.spatial import AXES, spatial_candidates, spatial_factors
from graphopt.passes.svd.spectrum import product
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
    split,
)
from graphopt.passes.svd.tucker import tucker_candidates, tucker_factors

__all__ = ["candidates", "channel_shapes", "factors"]


def candidates(
    problem: Problem, multiple: int, *, weigh: Callable[[Cost], bool]
) -> Iterator[Candidate]:
    """Candidates that `weigh` finds cheap enough, ranks in steps of `multiple`."""
    layer = problem.layer
    errors = problem.spectrum.errors()
    for rank in ranks_up_to(len(errors) - 1, multiple):
        cost = cost_of(layer, channel_shapes(layer, rank))
        if not weigh(cost):
            break
        yield Candidate("channel", (rank,), cost, float(errors[rank]))
    if problem.spectrum.total <= 0 or not _factors_space(problem):
        return
    for scheme in AXES:
        yield from spatial_candidates(problem, scheme, multiple, weigh)
    yield from tucker_candidates(problem, multiple, weigh)


def _factors_space(problem: Problem) -> bool:
    """Whether schemes inside the kernel apply, and their covariance is known if one is used."""
    layer = problem.layer
    return (
        layer.kind == "conv"
        and len(layer.kernel) == 2
        and max(layer.kernel) > 1
        and layer.channels > 1
        and (problem.covariance is None or len(problem.covariance) == layer.rows)
    )


def channel_shapes(layer: Layer, rank: int) -> Shapes:
    """Stage shapes of the channel scheme, or of two matrix factors."""
    if layer.kind != "conv":
        return [((layer.rows, rank), ()), ((rank, layer.columns), ())]
    axes = tuple(range(len(layer.kernel)))
    return [
        ((rank, layer.channels, *layer.kernel), axes),
        ((layer.columns, rank, *[1] * len(axes)), ()),
    ]


def _channel_factors(problem: Problem, rank: int) -> Factors:
    layer = problem.layer
    basis = problem.spectrum.basis(problem.matrix, rank)
    first = product(problem.matrix, basis)
    error = float(problem.spectrum.errors()[rank])

    def applied(x: Array) -> Array:
        y: Array = (x @ first) @ basis.T
        return y

    if layer.kind != "conv":
        scale = split(np.linalg.norm(first, axis=0), np.linalg.norm(basis, axis=0))
        stages = (Stage(first * scale), Stage(basis.T / scale[:, None]))
        return Factors(stages, applied, error)
    shapes = channel_shapes(layer, rank)
    a, b = balanced(first.T.reshape(shapes[0][0]), basis.reshape(shapes[1][0]))
    return Factors((Stage(a, shapes[0][1]), Stage(b)), applied, error)


def factors(problem: Problem, candidate: Candidate) -> Factors:
    """The stages of one candidate."""
    if candidate.scheme == "channel":
        return _channel_factors(problem, candidate.ranks[0])
    if candidate.scheme == "tucker":
        return tucker_factors(problem, candidate.ranks)
    return spatial_factors(problem, candidate.scheme, candidate.ranks[0])
