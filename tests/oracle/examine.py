"""Pruned equals the masked twin: for each dimension, and for all of them at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from masked_twin import Facts, masked_twin, masks_of

from graphopt import Context, cut
from graphopt.analyses.dims import dimensions

#: The equality rule: relative L2 at most this, or 4 times what the runtime's own optimizations
#: make of the same model.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one cut compares with its twin; `error` is the worst output's relative L2.

    `moved` is how far the twin is from the source: a twin without effect would prove nothing.
    """

    what: str
    units: int
    kept: int
    error: float
    moved: float
    allowed: float = TOLERANCE

    @property
    def equal(self) -> bool:
        return self.error <= self.allowed


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], optimize: bool = False):
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, dict(feeds))


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Worst output's relative L2; infinite where shapes, NaN or Inf differ."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return np.inf
        if x.dtype.kind not in "f":
            worst = max(worst, 0.0 if np.array_equal(x, y) else np.inf)
            continue
        finite = np.isfinite(x)
        if not np.array_equal(finite, np.isfinite(y)):
            return np.inf
        p, q = x[finite].astype(np.float64), y[finite].astype(np.float64)
        worst = max(worst, float(np.linalg.norm(p - q) / max(np.linalg.norm(p), 1e-30)))
    return worst


def examine(
    model: ir.Model,
    feeds: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    one_by_one: bool = True,
    together: bool = True,
) -> Iterator[Outcome]:
    """Cut random units of each dimension, and half of the units of all: compare with the twin."""
    rng = np.random.default_rng(seed)
    source = ir.to_proto(model)
    dims = Context(model).get(dimensions)
    facts = Facts(model)
    whole = run(source, feeds)

    def compare(what: str, kept: Mapping[str, np.ndarray]) -> Outcome:
        pruned = model.clone()
        cut(pruned, kept)
        proto = ir.to_proto(pruned)
        twin = masked_twin(source, masks_of(dims, kept), facts)
        want = run(twin, feeds)
        error, allowed = difference(want, run(proto, feeds)), TOLERANCE
        if error > allowed:
            allowed = max(allowed, 4 * difference(want, run(twin, feeds, optimize=True)))
        units = sum(dims.prunable[n].size for n in kept)
        moved = difference(whole, want)
        return Outcome(what, units, sum(len(k) for k in kept.values()), error, moved, allowed)

    def some(size: int, left: int) -> np.ndarray:
        return np.sort(rng.choice(size, max(1, left), replace=False))

    for d in dims.prunable.values():
        if one_by_one:
            yield compare(d.name, {d.name: some(d.size, int(rng.integers(1, d.size)))})
    if together and dims.prunable:
        yield compare(
            "all at 0.5", {d.name: some(d.size, (d.size + 1) // 2) for d in dims.prunable.values()}
        )
