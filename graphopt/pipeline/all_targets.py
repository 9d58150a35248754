"""`target="auto"`: the pipeline run for every target that runs here, the fastest result kept."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphopt.backend import Arrays, Session
from graphopt.budget import Budget
from graphopt.context import Progress, silent
from graphopt.deploy.manifest import read_manifest
from graphopt.execution.runtime import run_each
from graphopt.measuring.fastest_target import fastest, runnable
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.result import Result
from graphopt.pipeline.run import run
from graphopt.pipeline.stage import Watch
from graphopt.pipeline.state import State
from graphopt.target import Target
from graphopt.verification.comparison import compare_outputs

__all__ = ["run_everywhere"]

#: Runs on which a target's own arithmetic is compared with the source's outputs.
PROBES = 4


def run_everywhere(
    setting: Setting,
    passes: Sequence[Any],
    *,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Result:
    """Run the pipeline once per target that runs here; the result that is fastest within budget.

    The report's notes say what was compared, by how much the chosen one is faster, and how far each
    target's own arithmetic moves the outputs.

    Raises:
        UsageError: no target here runs the result within the budget.
    """
    told = progress or silent
    targets, absent = runnable()
    results = [
        run(setting.for_target(target), passes, progress=_for_target(target, told), watch=watch)
        for target in targets
    ]
    told("timing the targets beside each other", 0, 0)
    probes = list(itertools.islice(setting.samples, PROBES))
    source = setting.source
    judged = _Judged(source, probes, setting.budget)
    # where none is within the budget the fastest is the closest
    able = [k for k, r in enumerate(results) if r.met] or list(range(len(results)))
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        choice = fastest(
            [(targets[k], results[k].model) for k in able],
            setting.feeds,
            Path(folder),
            seconds=setting.measure_seconds,
            accept=judged,
            source=(targets[0], source.model),
            seed=setting.seed,
        )
        opened = choice.best.path and read_manifest(choice.best.path)
    result = results[able[choice.index]]
    over = [t.name for k, t in enumerate(targets) if k not in able]
    reasons = [f"{name} is out: it misses the budget" for name in over]
    reasons += [f"{name} is not here: {why}" for name, why in absent.items()]
    notes = (*result.report.notes, str(choice), *judged.said, *reasons)
    report = dataclasses.replace(result.report, notes=notes)
    return dataclasses.replace(result, report=report, manifest=opened or None)


class _Judged:
    """Compares what a target computes with the source's outputs; the budget may refuse it."""

    def __init__(self, source: State, probes: Sequence[Arrays], budget: Budget) -> None:
        self.probes, self.budget = probes, budget
        self.expected = list(run_each(source.skeleton, probes))
        self.said: list[str] = []

    def __call__(self, target: Target, session: Session) -> str:
        """Why the outputs are not acceptable, or ""."""
        worst = compare_outputs(self.expected, [session(p) for p in self.probes]).worst
        self.said.append(
            f"on {target.name} the outputs are {worst:.2g} (relative L2) from the source's"
        )
        return self.budget.over_error(worst)


def _for_target(target: Target, progress: Progress) -> Callable[[str, int, int], None]:
    return lambda text, done, total: progress(f"{target.name}: {text}", done, total)
