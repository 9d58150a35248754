"""Finalists: candidates built as any result, evaluated, timed beside the source and each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from graphopt.budget import Budget
from graphopt.context import Progress
from graphopt.measuring.gauge import Gauge
from graphopt.measuring.statistics import verdict
from graphopt.pipeline.result import Result
from graphopt.pipeline.state import State
from graphopt.searching.study import Trial
from graphopt.searching.trial import Bench
from graphopt.target import Target

__all__ = ["Finals"]


@dataclasses.dataclass(frozen=True)
class _Finalist:
    trial: Trial
    result: Result
    state: State


@dataclasses.dataclass(frozen=True)
class Finals:
    """The last round of a search.

    Attributes:
        bench: what builds and judges.
        target: where they are timed.
        budget, limit: what the result must keep.
        seconds: about how long each is timed.
    """

    bench: Bench
    target: Target
    budget: Budget
    limit: float
    seconds: float

    def best(
        self, trials: Sequence[Trial], *, by_latency: bool, tell: Progress
    ) -> tuple[Trial, Result]:
        """The first of `trials` that keeps the budget, or the fastest of those, as a result.

        A trial at a limit may be over it in the end: what was checked is told in the file.
        """
        with Gauge(self.target, self.seconds) as gauge:
            made: list[_Finalist] = []
            for k, trial in enumerate(trials):
                tell("building and timing finalists", k, len(trials))
                made.append(self._made(trial, gauge))
                if not by_latency and made[-1].result.met:
                    return trial, made[-1].result
            first = self._fastest(made, gauge) if by_latency else made[0]
        return first.trial, first.result

    def _fastest(self, made: list[_Finalist], gauge: Gauge) -> _Finalist:
        """Each was timed beside the source, at its own time: the first must hold beside others."""
        made.sort(key=lambda m: (not m.result.met, m.result.report.latency_ratio or 1.0))
        first = made[0]
        for other in made[1:]:
            if other.result.met != first.result.met:
                break
            timing = gauge.ratio(first.state, other.state, self.bench.setting.feeds)
            if timing is not None and timing.ci[1] < 1:
                first = other
        return first

    def _made(self, trial: Trial, gauge: Gauge) -> _Finalist:
        """A trial as a result like any other: built again, evaluated, timed beside the source."""
        bench = self.bench
        built = bench.final(trial.spec)
        outcome = bench.judge(built)
        state = State(built.model, bench.setting.shapes)
        timing = gauge.ratio(bench.setting.source, state, bench.setting.feeds)
        before = dataclasses.replace(
            built.report.before, metric=bench.metric, latency_ms=timing.a_ms if timing else None
        )
        after = dataclasses.replace(
            built.report.after, metric=outcome.metric, latency_ms=timing.b_ms if timing else None
        )
        said = verdict(timing) if timing else None
        worst = outcome.loss if bench.task.loss == "error" else 0.0
        missed = self.budget.missed(before, after, worst, said)
        if bench.task.loss == "disagreement" and (outcome.loss or 0.0) > self.limit:
            missed.append(f"{outcome.loss:.3%} of the decisions change, over {self.limit:.3%}")
        report = dataclasses.replace(
            built.report,
            before=before,
            after=after,
            limits=self.budget.limits(),
            met=not missed,
            latency_ratio=timing.ratio if timing else None,
            latency_ratio_ci=timing.ci if timing else None,
            verdict=said,
            notes=(*built.report.notes, *missed),
        )
        tuned = (self.seconds, bench.setting.shapes) if timing else None
        result = dataclasses.replace(
            built, report=report, target=self.target, tuned=tuned, missed=tuple(missed)
        )
        return _Finalist(trial, result, state)
