"""Sensitivity scan: how far outputs really move when one dimension alone loses units.

For each dimension a few shares of its units are cut, in the order its curve has, what reads them is
refitted, and the outputs are compared with the original's on some samples,

    cost = sum |y - y'|^2 / sum |y - mean(y)|^2        (the worst output)

Squares, since errors of different layers that know nothing of each other add up so. Between the
shares measured, costs are interpolated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.choice import Curve
from graphopt.passes.prune.compensation import refit
from graphopt.passes.prune.selection import selection

from graphopt.analyses.dims import Dimension
from graphopt.context import Context
from graphopt.execution.runtime import Arrays, run_each
from graphopt.rewriting.cutting import cut

__all__ = ["scan"]

Array = np.ndarray[Any, Any]
#: Shares of its units that a dimension keeps in the scan.
SHARES = (0.75, 0.5, 0.25)
#: Runs of the samples that are looked at.
RUNS = 4


def scan(
    model: ir.Model,
    dims: Mapping[str, Dimension],
    found: Mapping[str, Curve],
    counts: Mapping[str, Sequence[int]],
    samples: Iterable[Arrays],
    ctx: Context,
    *,
    compensate: bool,
) -> dict[str, Curve]:
    """The curves with measured costs.

    Args:
        model: the model; it is not changed.
        dims: what may be pruned.
        found: the order in which the units of each would go.
        counts: counts each may keep, largest first.
        samples: the first few runs are used.
        ctx: says how long it takes.
        compensate: refit what reads the units, as the pruned model will be.
    """
    inputs = {v.name for v in model.graph.inputs}
    feeds = [
        {k: a for k, a in run.items() if k in inputs} for run in itertools.islice(samples, RUNS)
    ]
    original = list(run_each(model, feeds))
    measured: dict[str, Curve] = {}
    for name in ctx.track(dims, len(dims), "measuring how far outputs move"):
        size = dims[name].size
        wanted = {min(counts[name], key=lambda c, s=share: abs(c - s * size)) for share in SHARES}  # type: ignore[misc]
        points = [(0, 0.0)]
        for count in sorted(wanted - {size}, reverse=True):
            units = found[name].kept(count)
            changed = _cut(model, dims, name, units, feeds, compensate=compensate)
            points.append((size - count, _error(original, list(run_each(changed, feeds)))))
        measured[name] = _curve(found[name], points)
    return measured


def _cut(
    model: ir.Model,
    dims: Mapping[str, Dimension],
    name: str,
    units: Array,
    feeds: Sequence[Arrays],
    *,
    compensate: bool,
) -> ir.Model:
    """The model with these units of one dimension left, and its readers refitted."""
    copy = model.clone()
    kept = {name: units}
    cut(copy, kept)
    if compensate:
        readers = {m.node for m in dims[name].members if m.role == "reads"}
        made = {o.name or "" for n in model.graph if n.name in readers for o in n.outputs}
        refit(model, copy, selection(dims, kept), made, feeds, Context(copy))
    return copy


def _error(before: Sequence[Arrays], after: Sequence[Arrays]) -> float:
    """The worst output's squared error over its variance."""
    worst = 0.0
    for name in before[0]:
        ys, zs = ([run[name] for run in runs] for runs in (before, after))
        if ys[0].dtype.kind != "f":
            continue
        y = np.concatenate([a.ravel() for a in ys]).astype(np.float64)
        z = np.concatenate([a.ravel() for a in zs]).astype(np.float64)
        known = np.isfinite(y) & np.isfinite(z)
        y, z = y[known], z[known]
        spread = float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0
        worst = max(worst, float(((y - z) ** 2).sum()) / max(spread, 1e-30))
    return worst


def _curve(curve: Curve, points: Sequence[tuple[int, float]]) -> Curve:
    """The same order of removal at interpolated costs, beyond the last at its slope."""
    removed, cost = (np.array(part, float) for part in zip(*points, strict=True))
    cost = np.maximum.accumulate(cost)
    at = np.arange(len(curve.cost))
    made = np.interp(at, removed, cost)
    if len(points) > 1:
        slope = (cost[-1] - cost[-2]) / (removed[-1] - removed[-2])
        made += np.maximum(at - removed[-1], 0) * slope
    return Curve(curve.order, made)
