"""Spatial schemes: a kernel as two, each along one axis (Jaderberg et al. 2014).

A kh x kw kernel I -> O becomes kh x 1, I -> r, then 1 x kw, r -> O, or the other way round.
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

__all__ = ["AXES", "spatial_candidates", "spatial_factors"]

#: Which axis the first stage convolves along.
AXES = {"spatial-v": 0, "spatial-h": 1}


def _spatial_shapes(layer: Layer, scheme: str, rank: int) -> Shapes:
    first = AXES[scheme]
    kernel = [layer.kernel[a] if a == first else 1 for a in (0, 1)]
    other = [layer.kernel[a] if a != first else 1 for a in (0, 1)]
    return [
        ((rank, layer.channels, *kernel), (first,)),
        ((layer.columns, rank, *other), (1 - first,)),
    ]


def spatial_candidates(
    problem: Problem, scheme: str, multiple: int, weigh: Callable[[Cost], bool]
) -> Iterator[Candidate]:
    """Candidates of one scheme, a key of `AXES`, that `weigh` finds cheap enough."""
    layer = problem.layer
    first = AXES[scheme]
    if min(layer.kernel) == 1:
        return
    across = layer.kernel[1 - first]
    cheap: list[tuple[int, Cost]] = []
    for rank in ranks_up_to(
        min(layer.channels * layer.kernel[first], across * layer.columns), multiple
    ):
        cost = cost_of(layer, _spatial_shapes(layer, scheme, rank))
        if not weigh(cost):
            break
        cheap.append((rank, cost))
    if not cheap:
        return
    columns = _spatial_basis(problem, first, cheap[-1][0])
    seen = Seen(problem, _spread(columns, first, layer.kernel))
    for rank, cost in cheap:
        yield Candidate(scheme, (rank,), cost, seen.error(rank * across))


def _spatial_basis(problem: Problem, first: int, rank: int) -> Array:
    """Filters [I, k, rank] along one axis: what the tensor spans there, whitened."""
    layer = problem.layer
    size = layer.channels * layer.kernel[first]
    unfolded = np.moveaxis(problem.tensor, 2 - first, 2).reshape(size, -1).astype(np.float64)
    covariance = None
    if problem.covariance is not None:
        patch = (layer.channels, *layer.kernel)
        full = problem.covariance.reshape(*patch, *patch)
        path = "iadjbd->iajb" if first == 0 else "idajdb->iajb"
        covariance = np.einsum(path, full).reshape(size, size)
    return spanned(unfolded, covariance, rank).reshape(layer.channels, layer.kernel[first], -1)


def _spread(columns: Array, first: int, kernel: tuple[int, ...]) -> Array:
    """Filters [I, k, r] along one axis as features [K, r k'] at every offset of the other."""
    channels, along, rank = columns.shape
    across = kernel[1 - first]
    out = np.zeros((channels, *kernel, rank, across))
    for offset in range(across):
        if first == 0:
            out[:, :, offset, :, offset] = columns
        else:
            out[:, offset, :, :, offset] = columns
    return out.reshape(channels * along * across, rank * across)


def spatial_factors(problem: Problem, scheme: str, rank: int) -> Factors:
    """The two stages of a scheme at this rank."""
    layer = problem.layer
    first = AXES[scheme]
    columns = _spatial_basis(problem, first, rank)
    seen = Seen(problem, _spread(columns, first, layer.kernel))
    fitted = seen.fit()
    shapes = _spatial_shapes(layer, scheme, rank)
    a = np.moveaxis(columns, 2, 0).reshape(shapes[0][0])
    b = fitted.reshape(rank, -1, layer.columns).transpose(2, 0, 1).reshape(shapes[1][0])
    a, b = balanced(a, b)
    stages = (Stage(a, (first,)), Stage(b, (1 - first,)))
    error = seen.error(fitted.shape[0])
    return Factors(stages, lambda x: (x @ seen.features) @ fitted, error)
