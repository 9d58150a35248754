"""Means and covariances of what layers multiply, streamed over samples.

A layer keeps K x K numbers (its inputs) or N x N (its outputs, where those are fewer): memory
grows with neither the samples nor their length. Layers are observed in groups whose accumulators
stay under `MEMORY`.

Few samples give a singular or noisy covariance. It is shrunk towards the identity by the weight of
Chen et al. 2010 (oracle approximating shrinkage), (1 - ρ) C + ρ tr(C)/K I, which is the plain SVD
at ρ = 1. It fades as rows accumulate: from `ENOUGH` rows per column on the covariance is taken as
it was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from graphopt.passes.svd.layers import Array, Layer, Use

from graphopt.calibration import moments
from graphopt.execution.observe import observe
from graphopt.samples import Feeds

__all__ = ["PATCH_LIMIT", "Moments", "moments_of"]

#: Bytes of accumulators held at once.
MEMORY = 64 << 20
#: Rows taken from one run for one layer, drawn without replacement.
ROWS = 2048
#: Convolution patches up to this long get their full covariance; longer ones only their outputs'.
PATCH_LIMIT = 2304
#: The least weight of the identity: keeps Cholesky factors real in float64.
FLOOR = 1e-6
ENOUGH = 4


class Moments:
    """Sums over rows x [K] of one layer, less the mean of the first rows (against cancellation).

    Attributes:
        outputs: the second moments kept are those of the outputs x M [N, N], not of x [K, K].
        power: sum of squares over all rows and columns.
        place: shape of the first array seen.
    """

    def __init__(self, layer: Layer) -> None:
        self.outputs = _keeps_outputs(layer)
        self.power = 0.0
        self.place: tuple[int, ...] = ()
        self._sums = moments.Moments.zero(1, _size(layer))
        self._total = np.zeros(layer.rows)
        self._origin: Array | None = None

    @property
    def count(self) -> int:
        """Rows seen."""
        return self._sums.rows

    def add(self, rows: Array, layer: Layer) -> None:
        """Take rows [n, K] in."""
        if self._origin is None:
            self._origin = rows.mean(0)
        rows = rows - self._origin
        self._total += rows.sum(0, dtype=np.float64)
        self.power += float(np.square(rows, dtype=np.float64).sum())
        if self.outputs:
            rows = rows @ layer.matrix().astype(rows.dtype, copy=False)
        self._sums.add(rows[None])

    @property
    def mean(self) -> Array:
        """Mean of the inputs [K]."""
        return self._drift + (0.0 if self._origin is None else self._origin)

    @property
    def _drift(self) -> Array:
        return self._total / max(self.count, 1)

    def covariance(self, matrix: Array, gram: Array | None = None) -> Array:
        """Shrunk covariance, of the inputs or of the outputs.

        Args:
            matrix: M [K, N].
            gram: MᵀM, what a white input would give; needed where the outputs are kept.
        """
        drift = self._drift
        mean = drift if not self.outputs else drift @ matrix.astype(np.float64)
        raw = self._sums.second[0] - np.outer(mean, mean)
        raw = (raw + raw.T) / 2
        rho = _shrinkage(raw, self.count)
        variance = max(self.power / max(self.count, 1) - float(drift @ drift), 0.0)
        variance /= len(self._total)
        if self.outputs:
            assert gram is not None
            raw *= 1 - rho
            raw += rho * variance * gram
        else:
            raw *= 1 - rho
            raw[np.diag_indices_from(raw)] += rho * max(variance, 1e-30)
        return np.asarray(raw)


def _shrinkage(covariance: Array, count: int) -> float:
    size = len(covariance)
    trace = float(np.trace(covariance))
    squares = float(np.square(covariance).sum())
    if count < 2 or trace <= 0:
        return 1.0
    above = (1 - 2 / size) * squares + trace**2
    below = (count + 1 - 2 / size) * (squares - trace**2 / size)
    oracle = above / below if below > 0 else 1.0
    needed = max(1 - count / (ENOUGH * size), 0.0)
    return float(np.clip(needed * min(oracle, 1.0), FLOOR, 1.0))


def moments_of(
    model: ir.Model, layers: Sequence[Layer], samples: Iterable[Feeds], seed: int
) -> Iterator[tuple[Layer, dict[Use, Moments]]]:
    """Every layer whose inputs can be observed, with each use's moments, group by group."""
    known = {v.name for v in model.graph.inputs}
    known.update(o.name for node in model.graph for o in node.outputs)
    group: list[Layer] = []
    size = 0
    for layer in layers:
        if not _observable(layer, known):
            continue
        need = 8 * _size(layer) ** 2 * len(layer.uses)
        if group and size + need > MEMORY:
            yield from _observed(model, group, samples, seed)
            group, size = [], 0
        group.append(layer)
        size += need
    if group:
        yield from _observed(model, group, samples, seed)


def _observable(layer: Layer, known: set[str | None]) -> bool:
    seen = [u for u in layer.uses if not u.lookup]
    return bool(seen) and all(u.x.name in known and not u.reverse for u in seen)


def _size(layer: Layer) -> int:
    return layer.columns if _keeps_outputs(layer) else layer.rows


def _keeps_outputs(layer: Layer) -> bool:
    if len(layer.kernel) == 2 and max(layer.kernel) > 1:
        return layer.rows > PATCH_LIMIT
    return layer.columns < layer.rows


def _observed(
    model: ir.Model, group: list[Layer], samples: Iterable[Feeds], seed: int
) -> Iterator[tuple[Layer, dict[Use, Moments]]]:
    rng = np.random.default_rng(seed)
    sums: dict[Layer, dict[Use, Moments]] = {}
    same: dict[tuple[str, ...], Moments] = {}
    feeds: list[tuple[Layer, Use, Moments]] = []
    for layer in group:
        sums[layer] = {}
        for use in layer.uses:
            if use.lookup:
                continue
            key = _what(layer, use)
            if key not in same:
                same[key] = Moments(layer)
                feeds.append((layer, use, same[key]))
            sums[layer][use] = same[key]
    names = {u.x.name or "" for _, u, _ in feeds}
    for seen in observe(model, sorted(names), samples):
        for layer, use, found in feeds:
            x = seen[use.x.name or ""]
            found.place = found.place or x.shape
            rows = moments.rows_of(use.op, x, ROWS, rng)
            if rows.size and np.isfinite(rows).all():
                found.add(rows, layer)
    while sums:
        layer, uses = sums.popitem()
        if all(m.count > 0 for m in uses.values()):
            yield layer, uses


def _what(layer: Layer, use: Use) -> tuple[str, ...]:
    """What moments are of: uses that multiply the same rows share them."""
    own = use.node.name or "" if _keeps_outputs(layer) else ""
    form = [str(use.left)] + [
        f"{name}={a.value}"
        for name, a in sorted(use.node.attributes.items())
        if layer.kind == "conv" or name == "transA"
    ]
    return (own, use.x.name or "", layer.kind, str(layer.kernel), *form)
