"""Sensitivity scan: how far outputs really move when one dimension alone loses units.

For each dimension a few shares of its units are cut, in the order its curve has, what reads them is
refitted, and the movement of the outputs is measured (`graphopt.calibration.sensitivity`). Between
the shares measured, costs keep the shape of that curve.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.choice import Curve
from graphopt.passes.prune.compensation import refit
from graphopt.passes.prune.selection import selection

from graphopt.analyses.dims import Dimension
from graphopt.calibration.padding import Padding
from graphopt.calibration.sensitivity import sensitivities
from graphopt.context import Context
from graphopt.execution.runtime import Arrays
from graphopt.rewriting.cutting import cut

__all__ = ["scan"]

Array = np.ndarray[Any, Any]
#: Shares of its units that a dimension keeps in the scan.
SHARES = (0.75, 0.5, 0.25)
#: Share of a curve's last cost that counts as none.
LEAST = 1e-9
#: Runs of the samples that are looked at.
RUNS = 4


def scan(
    model: ir.Model,
    dims: Mapping[str, Dimension],
    found: Mapping[str, Curve],
    counts: Mapping[str, Sequence[int]],
    samples: Iterable[Arrays],
    ctx: Context,
    padding: Padding | None = None,
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
        padding: tokens of the samples that do not count.
        compensate: refit what reads the units, as the pruned model will be.
    """
    inputs = {v.name for v in model.graph.inputs}
    feeds = [
        {k: a for k, a in run.items() if k in inputs} for run in itertools.islice(samples, RUNS)
    ]
    wanted = {name: _counts(dims[name].size, counts[name]) for name in dims}

    def changes() -> Iterator[tuple[tuple[str, int], ir.Model]]:
        for name in ctx.track(dims, len(dims), "measuring how far outputs move"):
            for count in wanted[name]:
                units = found[name].kept(count)
                yield (
                    (name, count),
                    _cut(model, dims, name, units, feeds, padding, compensate=compensate),
                )

    moved = sensitivities(model, feeds, changes())
    measured = {}
    for name, dim in dims.items():
        points = [(dim.size - c, moved[name, c]) for c in wanted[name]]
        measured[name] = _curve(found[name], points) if points else found[name]
    return measured


def _cut(
    model: ir.Model,
    dims: Mapping[str, Dimension],
    name: str,
    units: Array,
    feeds: Sequence[Arrays],
    padding: Padding | None,
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
        refit(model, copy, selection(dims, kept), made, feeds, Context(copy), padding)
    return copy


def _counts(size: int, able: Sequence[int]) -> list[int]:
    """The counts that are tried of a dimension, largest first."""
    wanted = {min(able, key=lambda c, s=share: abs(c - s * size)) for share in SHARES}  # type: ignore[misc]
    return sorted(wanted - {size}, reverse=True)


def _curve(curve: Curve, points: Sequence[tuple[int, float]]) -> Curve:
    """The same order of removal and shape, scaled so as to go through the measured costs.

    Costs rise slowly at first: straight lines between the few points measured would make the first
    units as dear as the last.
    """
    removed, cost = (np.array(part) for part in zip(*points, strict=True))
    local = np.maximum(curve.cost, LEAST * max(curve.cost[-1], 1e-30))
    scale = np.log(np.maximum(cost, LEAST * max(cost.max(), 1e-30)) / local[removed])
    scales = np.exp(np.interp(np.arange(len(local)), removed, scale))
    return Curve(curve.order, np.maximum.accumulate(curve.cost * scales))
