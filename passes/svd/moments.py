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

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from graphopt.passes.svd.layers import Layer, Use
from graphopt.passes.svd.weights import Array

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


@dataclasses.dataclass
class Moments:
    """Sums over rows x [K] of one layer, less the mean of the first rows (against cancellation).

    Attributes:
        outputs: `second` is of the outputs x M [N, N], else of the inputs [K, K].
        count: rows seen.
        total: sum of the rows [K].
        power: sum of squares over all rows and columns.
        second: sum of outer products.
        origin: what is subtracted from every row [K].
        place: shape of the first array seen.
    """

    outputs: bool
    count: int
    total: Array
    power: float
    second: Array
    place: tuple[int, ...] = ()
    origin: Array | None = None

    def add(self, rows: Array, matrix: Array | None) -> None:
        """Take rows [n, K] in; `matrix` is M where the outputs' moments are kept."""
        if self.origin is None:
            self.origin = rows.mean(0)
        rows = rows - self.origin
        self.count += len(rows)
        self.total += rows.sum(0, dtype=np.float64)
        self.power += float(np.square(rows, dtype=np.float64).sum())
        seen = rows if matrix is None else rows @ matrix.astype(rows.dtype, copy=False)
        self.second += seen.T @ seen

    @property
    def mean(self) -> Array:
        """Mean of the inputs [K]."""
        return self._drift + (0.0 if self.origin is None else self.origin)

    @property
    def _drift(self) -> Array:
        return self.total / max(self.count, 1)

    def covariance(self, matrix: Array, gram: Array | None = None) -> Array:
        """Shrunk covariance, of the inputs or of the outputs.

        Args:
            matrix: M [K, N].
            gram: MᵀM, what a white input would give; needed where the outputs are kept.
        """
        drift = self._drift
        mean = drift if not self.outputs else drift @ matrix.astype(np.float64)
        raw = self.second / max(self.count, 1) - np.outer(mean, mean)
        raw = (raw + raw.T) / 2
        rho = _shrinkage(raw, self.count)
        variance = max(self.power / max(self.count, 1) - float(drift @ drift), 0.0)
        variance /= len(self.total)
        if self.outputs:
            assert gram is not None
            raw *= 1 - rho
            raw += rho * variance * gram
        else:
            raw *= 1 - rho
            raw[np.diag_indices_from(raw)] += rho * max(variance, 1e-30)
        return raw


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
        size, outputs = _size(layer), _keeps_outputs(layer)
        sums[layer] = {}
        for use in layer.uses:
            if use.lookup:
                continue
            key = _what(layer, use, outputs)
            if key not in same:
                zero = np.zeros((size, size))
                same[key] = Moments(outputs, 0, np.zeros(layer.rows), 0.0, zero)
                feeds.append((layer, use, same[key]))
            sums[layer][use] = same[key]
    names = {u.x.name or "" for _, u, _ in feeds}
    for seen in observe(model, sorted(names), samples):
        for layer, use, moments in feeds:
            x = seen[use.x.name or ""]
            moments.place = moments.place or x.shape
            rows = _rows(layer, use, x, rng)
            if rows.size and np.isfinite(rows).all():
                moments.add(rows, layer.matrix() if moments.outputs else None)
    while sums:
        layer, uses = sums.popitem()
        if all(m.count > 0 for m in uses.values()):
            yield layer, uses


def _what(layer: Layer, use: Use, outputs: bool) -> tuple[str, ...]:
    """What moments are of: uses that multiply the same rows share them."""
    own = use.node.name or "" if outputs else ""
    form = [str(use.left)] + [
        f"{name}={a.value}"
        for name, a in sorted(use.node.attributes.items())
        if layer.kind == "conv" or name == "transA"
    ]
    return (own, use.x.name or "", layer.kind, str(layer.kernel), *form)


def _rows(layer: Layer, use: Use, x: Array, rng: np.random.Generator) -> Array:
    """Rows [n, K] of what a use multiplies, at most `ROWS`, drawn evenly."""
    if layer.kind == "conv":
        return patches(use.node, x, layer.kernel, rng)
    if use.left:
        x = np.moveaxis(x, -2, -1)
    if use.node.op_type == "Gemm" and _flag(use.node, "transA"):
        x = x.T
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) > ROWS:
        flat = flat[np.sort(rng.choice(len(flat), ROWS, replace=False))]
    return flat if flat.dtype == np.float64 else flat.astype(np.float32, copy=False)


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.as_int())


def patches(node: ir.Node, x: Array, kernel: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Patches [n, I kh kw] that a convolution multiplies, at most `ROWS` positions."""
    rank = len(kernel)
    strides, dilations, pads = window(node, x.shape[2:], kernel)
    width = [(0, 0), (0, 0)] + [(pads[a], pads[a + rank]) for a in range(rank)]
    padded = np.pad(x, width) if any(pads) else x
    counts = [
        (padded.shape[2 + a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(rank)
    ]
    places = len(x) * int(np.prod(counts))
    chosen = np.arange(places)
    if places > ROWS:
        chosen = np.sort(rng.choice(places, ROWS, replace=False))
    where = np.unravel_index(chosen, (len(x), *counts))
    index: list[Array] = [where[0].reshape(-1, *[1] * (rank + 1))]
    index.append(np.arange(x.shape[1]).reshape(1, -1, *[1] * rank))
    for a in range(rank):
        offset = (np.arange(kernel[a]) * dilations[a]).reshape(-1, *[1] * (rank - 1 - a))
        start = (where[1 + a] * strides[a]).reshape(-1, *[1] * (rank + 1))
        index.append(start + offset)
    taken: Array = padded[tuple(index)].reshape(len(chosen), -1)
    return taken if taken.dtype == np.float64 else taken.astype(np.float32, copy=False)


def window(
    node: ir.Node, sizes: Sequence[int], kernel: tuple[int, ...]
) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads (starts, then ends) of a convolution on this input size."""
    rank = len(kernel)

    def ints(name: str, default: int, count: int = rank) -> list[int]:
        attribute = node.attributes.get(name)
        return [default] * count if attribute is None else list(attribute.as_ints())

    strides, dilations = ints("strides", 1), ints("dilations", 1)
    auto = node.attributes.get("auto_pad")
    mode = "NOTSET" if auto is None else auto.as_string()
    if not mode.startswith("SAME"):
        return strides, dilations, ints("pads", 0, 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
    starts, ends = [], []
    for a in range(rank):
        span = dilations[a] * (kernel[a] - 1) + 1
        out = -(-sizes[a] // strides[a])
        need = max((out - 1) * strides[a] + span - sizes[a], 0)
        less, more = need // 2, need - need // 2
        starts.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    return strides, dilations, starts + ends
