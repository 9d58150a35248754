"""Schemes: the ways to write a layer as a chain of cheaper stages, and what each costs and loses.

A matrix has one, M ~ A B. A convolution W [O, I, kh, kw] has these (r: ranks):

    channel   k x k, I -> r;   1 x 1, r -> O           (Zhang et al. 2015)
    spatial   kh x 1, I -> r;  1 x kw, r -> O, or the other way round (Jaderberg et al. 2014)
    tucker    1 x 1, I -> r1;  k x k, r1 -> r2;  1 x 1, r2 -> O (Kim et al. 2016); r2 = O leaves out
              the last

All are one problem: choose features F of the patch x (F = I, A along one axis, or P along the
input channels), then the best linear map from x F to the outputs, of rank r2 at most. Given F it
has a closed form (reduced-rank regression, Izenman 1975): Q = (FᵀC F)⁻¹ FᵀC M, followed by the
principal basis V of the fitted outputs: M̂ = F Q V Vᵀ. Without samples C = I.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from graphopt.passes.svd.layers import Geometry, Layer
from graphopt.passes.svd.spectrum import Spectrum, one_thread, orthonormal, product, root, symmetric
from graphopt.passes.svd.weights import Array

__all__ = ["Candidate", "Cost", "Factors", "Stage", "candidates", "cost_of", "factors", "original"]

#: Ranks tried along each side of Tucker's grid, and alternations spent on the chosen pair.
GRID, SWEEPS = 24, 2


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


def original(layer: Layer) -> Cost:
    """What the layer costs as it is. A lookup multiplies nothing."""
    macs = 0.0
    for use, place in zip(layer.uses, layer.places, strict=True):
        if not use.lookup:
            macs += place.times * np.prod(place.after, dtype=float) * layer.params
    return Cost(macs, layer.params)


def cost_of(layer: Layer, shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Cost:
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


def _conv_macs(place: Geometry, shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> float:
    macs, done = 0.0, set[int]()
    for shape, axes in shapes:
        done |= set(axes)
        sizes = [place.after[a] if a in done else place.before[a] for a in range(len(place.after))]
        macs += float(np.prod(shape, dtype=float) * np.prod(sizes, dtype=float))
    return place.times * macs


def channel_shapes(layer: Layer, rank: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Stage shapes of the channel scheme, or of two matrix factors."""
    if layer.kind != "conv":
        return [((layer.rows, rank), ()), ((rank, layer.columns), ())]
    axes = tuple(range(len(layer.kernel)))
    return [
        ((rank, layer.channels, *layer.kernel), axes),
        ((layer.columns, rank, *[1] * len(axes)), ()),
    ]


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


def candidates(
    problem: Problem, multiple: int, *, weigh: Callable[[Cost], bool]
) -> Iterator[Candidate]:
    """Candidates that `weigh` finds cheap enough, ranks in steps of `multiple`."""
    layer = problem.layer
    errors = problem.spectrum.errors()
    for rank in _ranks(len(errors) - 1, multiple):
        cost = cost_of(layer, channel_shapes(layer, rank))
        if not weigh(cost):
            break
        yield Candidate("channel", (rank,), cost, float(errors[rank]))
    if problem.spectrum.total <= 0 or not _factors_space(problem):
        return
    for scheme in _SPATIAL:
        yield from _spatial_candidates(problem, scheme, multiple, weigh)
    yield from _tucker_candidates(problem, multiple, weigh)


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


def _ranks(most: int, multiple: int) -> Iterator[int]:
    yield from range(multiple, most + 1, multiple)


# --- spatial ----------------------------------------------------------------------------------

#: Which axis the first stage convolves along.
_SPATIAL = {"spatial-v": 0, "spatial-h": 1}


def _spatial_shapes(
    layer: Layer, scheme: str, rank: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    first = _SPATIAL[scheme]
    kernel = [layer.kernel[a] if a == first else 1 for a in (0, 1)]
    other = [layer.kernel[a] if a != first else 1 for a in (0, 1)]
    return [
        ((rank, layer.channels, *kernel), (first,)),
        ((layer.columns, rank, *other), (1 - first,)),
    ]


def _spatial_candidates(
    problem: Problem, scheme: str, multiple: int, weigh: Callable[[Cost], bool]
) -> Iterator[Candidate]:
    layer = problem.layer
    first = _SPATIAL[scheme]
    if min(layer.kernel) == 1:
        return
    across = layer.kernel[1 - first]
    cheap: list[tuple[int, Cost]] = []
    for rank in _ranks(min(layer.channels * layer.kernel[first], across * layer.columns), multiple):
        cost = cost_of(layer, _spatial_shapes(layer, scheme, rank))
        if not weigh(cost):
            break
        cheap.append((rank, cost))
    if not cheap:
        return
    columns = _spatial_basis(problem, first, cheap[-1][0])
    seen = _Seen(problem, _spread(columns, first, layer.kernel))
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
    return _spanned(unfolded, covariance, rank).reshape(layer.channels, layer.kernel[first], -1)


def _spanned(unfolded: Array, covariance: Array | None, rank: int) -> Array:
    """The rank-r column space of the best approximation to `unfolded` under this covariance.

    With Lᵀ M = U S Vᵀ it is that of M V_r = C⁻¹L U_r S: found from the eigenvectors of M Mᵀ C
    without inverting anything.
    """
    inner = unfolded @ unfolded.T
    if covariance is None:
        return symmetric(inner)[1][:, :rank]
    chol = root(_regular(covariance))
    _, left = symmetric(chol.T @ inner @ chol)
    return orthonormal(inner @ (chol @ left[:, :rank]))


def _regular(covariance: Array) -> Array:
    """The matrix plus 1e-12 of its mean diagonal: positive definite to float64."""
    size = len(covariance)
    return covariance + np.eye(size) * (1e-12 * float(np.trace(covariance)) / size + 1e-30)


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


def _spatial_factors(problem: Problem, scheme: str, rank: int) -> Factors:
    layer = problem.layer
    first = _SPATIAL[scheme]
    columns = _spatial_basis(problem, first, rank)
    seen = _Seen(problem, _spread(columns, first, layer.kernel))
    fitted = seen.fit()
    shapes = _spatial_shapes(layer, scheme, rank)
    a = np.moveaxis(columns, 2, 0).reshape(shapes[0][0])
    b = fitted.reshape(rank, -1, layer.columns).transpose(2, 0, 1).reshape(shapes[1][0])
    a, b = _balanced(a, b)
    stages = (Stage(a, (first,)), Stage(b, (1 - first,)))
    error = seen.error(fitted.shape[0])
    return Factors(stages, lambda x: (x @ seen.features) @ fitted, error)


# --- tucker -----------------------------------------------------------------------------------


def _tucker_shapes(
    layer: Layer, ranks: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    into, out = ranks
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((into, layer.channels, 1, 1), ()),
        ((out, into, *layer.kernel), (0, 1)),
    ]
    return shapes if out == layer.columns else [*shapes, ((layer.columns, out, 1, 1), ())]


def _tucker_candidates(
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
        for rank in _ranks(layer.channels - 1, steps[0])
        if weigh(cost_of(layer, _tucker_shapes(layer, (rank, steps[1]))))
    ]
    if not able:
        return
    most = able[-1]
    points = _spanned(_by_channel(problem, None), _channel_covariance(problem), most)
    seen = _Seen(problem, _at_every_place(points, places))
    found = []
    for into in able:
        errors = seen.truncation(into * places)
        for out in (*_ranks(layer.columns - 1, steps[1]), layer.columns):
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
        points = _spanned(_by_channel(problem, basis), covariance, into)
        seen = _Seen(problem, _at_every_place(points, places))
        fitted = seen.fit()
        if out == layer.columns:
            return points, fitted, None, seen.error(into * places)
        error = float(seen.truncation(into * places)[out])
        basis = seen.basis(out)
        if best is None or error < best[3]:
            best = points, fitted @ basis, basis, error
    assert best is not None
    return best


def _tucker_factors(problem: Problem, ranks: tuple[int, ...]) -> Factors:
    layer = problem.layer
    into, out = ranks
    points, fitted, basis, error = _tucker_fit(problem, into, out)
    shapes = _tucker_shapes(layer, ranks)
    first = points.T.reshape(shapes[0][0])
    core = fitted.reshape(into, -1, fitted.shape[1]).transpose(2, 0, 1).reshape(shapes[1][0])
    first, core = _balanced(first, core)
    stages = [Stage(first), Stage(core, (0, 1))]
    if basis is not None:
        core, last = _balanced(core, basis.reshape(shapes[2][0]))
        stages[1:] = [Stage(core, (0, 1)), Stage(last)]
    places = layer.rows // layer.channels

    def applied(x: Array) -> Array:
        seen = x.reshape(-1, layer.channels, places).transpose(0, 2, 1) @ points
        y: Array = seen.transpose(0, 2, 1).reshape(len(seen), -1) @ fitted
        return y if basis is None else y @ basis.T

    return Factors(tuple(stages), applied, error)


# --- regression -------------------------------------------------------------------------------


class _Seen:
    """What features x F, F [K, n] orthonormal, tell of x M: by leading features, all at once.

    With FᵀC F = R Rᵀ and Z = R⁻¹ FᵀC M [n, N], the first k features explain the outputs' covariance
    Z[:k]ᵀ Z[:k], so the error of k features is 1 - ‖Z[:k]‖² and what rank r of them keeps is the
    sum of the first r eigenvalues of that covariance.
    """

    def __init__(self, problem: Problem, features: Array) -> None:
        self.features = features
        self._root: Array | None = None
        if problem.covariance is None:  # features are orthonormal, so R = I
            self._z = product(problem.matrix.T, features).T
        else:
            across = problem.covariance @ features
            target = product(problem.matrix.T, across).T
            self._root = root(_regular(features.T @ across))
            with one_thread():
                self._z = np.linalg.solve(self._root, target)
        self._total = problem.spectrum.total
        self._kept = np.concatenate([[0.0], np.square(self._z).sum(1).cumsum()])

    def error(self, count: int) -> float:
        """Relative squared error of the first `count` features."""
        return max(1 - float(self._kept[count]) / self._total, 0.0)

    def fit(self) -> Array:
        """The map Q [n, N] from all features to the outputs."""
        if self._root is None:
            return self._z
        with one_thread():
            fitted: Array = np.linalg.solve(self._root.T, self._z)
        return fitted

    def truncation(self, count: int) -> Array:
        """Relative squared error of the first `count` features at output ranks 0 ... N."""
        part = self._z[:count]
        with one_thread():
            energies = np.maximum(np.linalg.eigvalsh(part.T @ part)[::-1], 0.0)
        kept = np.concatenate([[0.0], energies.cumsum()])
        return np.maximum(1 - kept / self._total, 0.0)

    def basis(self, rank: int) -> Array:
        """The first principal directions [N, rank] of the outputs that all features explain."""
        return symmetric(self._z.T @ self._z)[1][:, :rank]


def _channel_factors(problem: Problem, rank: int) -> Factors:
    layer = problem.layer
    basis = problem.spectrum.basis(problem.matrix, rank)
    first = product(problem.matrix, basis)
    error = float(problem.spectrum.errors()[rank])

    def applied(x: Array) -> Array:
        y: Array = (x @ first) @ basis.T
        return y

    if layer.kind != "conv":
        scale = _split(np.linalg.norm(first, axis=0), np.linalg.norm(basis, axis=0))
        stages = (Stage(first * scale), Stage(basis.T / scale[:, None]))
        return Factors(stages, applied, error)
    shapes = channel_shapes(layer, rank)
    a, b = _balanced(first.T.reshape(shapes[0][0]), basis.reshape(shapes[1][0]))
    return Factors((Stage(a, shapes[0][1]), Stage(b)), applied, error)


def _balanced(a: Array, b: Array) -> tuple[Array, Array]:
    """Both convolution weights with the channels between them scaled to equal norms.

    Balanced factors keep what is between them in a range that integers can hold.
    """
    ones = [1] * (a.ndim - 2)
    norms = np.sqrt(np.square(b).sum(axis=(0, *range(2, b.ndim))))
    scale = _split(np.sqrt(np.square(a).sum(axis=tuple(range(1, a.ndim)))), norms)
    return a * scale.reshape(-1, 1, *ones), b / scale.reshape(1, -1, *ones)


def _split(a: Array, b: Array) -> Array:
    scale: Array = np.sqrt(np.maximum(b, 1e-30) / np.maximum(a, 1e-30))
    scale[(a == 0) | (b == 0)] = 1.0
    return scale


def factors(problem: Problem, candidate: Candidate) -> Factors:
    """The stages of one candidate."""
    if candidate.scheme == "channel":
        return _channel_factors(problem, candidate.ranks[0])
    if candidate.scheme == "tucker":
        return _tucker_factors(problem, candidate.ranks)
    return _spatial_factors(problem, candidate.scheme, candidate.ranks[0])
