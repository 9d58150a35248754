"""`--target auto`: the pipeline run for every target that runs here, the fastest result kept."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.auto import fastest, runnable
from graphopt.backend import Session
from graphopt.budget import Budget
from graphopt.errors import UsageError
from graphopt.pipeline import Result, optimize
from graphopt.runtime import run
from graphopt.samples import bind_shapes, synthetic
from graphopt.target import Target
from graphopt.verify import compare_outputs

__all__ = ["optimize_for_fastest"]


def optimize_for_fastest(model: ir.Model, passes: Any, **options: Any) -> Result:
    """Run the pipeline once per target that runs here; the result that is fastest within budget.

    Takes what `graphopt.optimize` takes, but `target`. The report's notes say what was compared, by
    how much the chosen one is faster, and how far each target's own arithmetic moves the outputs.

    Raises:
        UsageError: measuring is off, or no target here runs the result within the budget.
    """
    if not options.get("measure", True):
        raise UsageError("--target auto chooses by measuring: leave --no-measure out, or name one")
    targets, absent = runnable()
    results = [optimize(model, passes, **{**options, "target": t}) for t in targets]
    shapes, _ = bind_shapes(model, options.get("shapes") or {})
    feeds = next(iter(synthetic(model, seed=options.get("seed", 0), shapes=shapes)))
    moved: list[str] = []
    accept = _judge(model, feeds, options.get("budget") or Budget(), moved)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        choice = fastest(
            [(t, r.model) for t, r in zip(targets, results, strict=True)],
            feeds,
            Path(folder),
            seconds=options.get("measure_seconds", 5.0),
            accept=accept,
        )
    result = results[choice.index]
    reasons = [f"{name} is not here: {why}" for name, why in absent.items()]
    notes = (*result.report.notes, str(choice), *moved, *reasons)
    return dataclasses.replace(result, report=dataclasses.replace(result.report, notes=notes))


def _judge(
    source: ir.Model, feeds: Any, budget: Budget, moved: list[str]
) -> Callable[[Target, Session], str]:
    """Compares what a target computes with the source's outputs; the budget may refuse it."""
    expected = [run(source, feeds)]

    def accept(target: Target, session: Session) -> str:
        compared = compare_outputs(expected, [session(feeds)])
        moved.append(
            f"on {target.name} the outputs are {compared.worst:.2g} (relative L2) from the source's"
        )
        return budget.over_error(compared.worst)

    return accept
