"""Importance curves: for every dimension, which units go first and what that costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Literal

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.choice import Curve
from graphopt.passes.prune.gradients import gradient_scores
from graphopt.passes.prune.joined import joined_share
from graphopt.passes.prune.readers import readers
from graphopt.passes.prune.reconstruct import Reader, eliminate
from graphopt.passes.prune.scores import MAGNITUDES, magnitude

from graphopt.analyses.dims import Dimension
from graphopt.analyses.shapes.analysis import shapes
from graphopt.calibration.padding import Padding
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.execution.runtime import Arrays

__all__ = ["NO_SAMPLES", "Score", "curves"]

Score = Literal[
    "auto", "reconstruction", "activation", "taylor", "fisher", "l1", "l2", "fpgm", "random"
]


#: Scores that look at weights alone.
NO_SAMPLES = (*MAGNITUDES, "random")


def curves(
    score: Score,
    model: ir.Model,
    dims: Mapping[str, Dimension],
    samples: Iterable[Arrays] | None,
    ctx: Context,
    padding: Padding | None = None,
) -> dict[str, Curve]:
    """A curve for each dimension.

    Scores of weights become costs as shares of the dimension's squared scores, so that losing all
    of any dimension costs 1; reconstruction errors are shares of what the readers' outputs vary by;
    gradient scores are in units of the loss.
    """
    if score == "auto":
        score = "l2" if samples is None else "reconstruction"
    if score not in NO_SAMPLES and samples is None:
        raise UsageError(f"prune: score='{score}' needs samples; give --samples, or score='l2'")
    if score == "reconstruction" or score == "activation":  # `in` would not narrow the type
        return _observed(score == "reconstruction", model, dims, samples or (), ctx, padding)
    if score == "taylor" or score == "fisher":
        scores = gradient_scores(score, model, dims, samples or (), ctx)
        return {name: Curve.of_scores(found) for name, found in scores.items()}
    found = {}
    for name, dim in dims.items():
        squares = magnitude(score, model, dim, ctx) ** 2
        found[name] = Curve.of_scores(squares / squares.sum())
    return found


def _observed(
    refitted: bool,
    model: ir.Model,
    dims: Mapping[str, Dimension],
    samples: Iterable[Arrays],
    ctx: Context,
    padding: Padding | None,
) -> dict[str, Curve]:
    """Costs as relative errors of the readers' outputs, with or without refitting them.

    The units of one dimension are put in order while the next one's readers are observed.
    """
    found: dict[str, Future[Curve]] = {}
    seen = ctx.track(readers(model, dims, samples, ctx, padding), len(dims), "scoring dimensions")
    with ThreadPoolExecutor(1) as beside:
        for name, known in seen:
            wait(found.values())  # moments of many features are large: two dimensions' at most
            found[name] = beside.submit(_curve, known, refitted, model, dims[name], ctx)
    made = {name: curve.result() for name, curve in found.items()}
    nodes, facts = {n.name: n for n in model.graph}, ctx.get(shapes)
    for name, curve in made.items():
        reads = {m.node for m in dims[name].members if m.role == "reads"} & set(nodes)
        share = joined_share((o for n in reads for o in nodes[n].outputs), facts)
        made[name] = Curve(curve.order, curve.cost * share)
    return made


def _curve(
    known: list[Reader], refitted: bool, model: ir.Model, dim: Dimension, ctx: Context
) -> Curve:
    """The curve of a dimension with these readers."""
    if not known:
        squares = magnitude("l2", model, dim, ctx) ** 2
        return Curve.of_scores(squares / squares.sum())
    if refitted:
        return eliminate(known, dim.size, 2)
    costs = np.zeros(dim.size)
    for r in known:
        power = (r.weight**2).sum(axis=0) * np.diag(r.covariance) / r.energy
        here = r.units >= 0
        costs += np.bincount(r.units[here], power[here], minlength=dim.size)
    return Curve.of_scores(costs)
