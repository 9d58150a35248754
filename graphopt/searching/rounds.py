"""Rounds of a search: tables, proposals, trials, finalists."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.backend import named_target
from graphopt.budget import Budget
from graphopt.context import Progress
from graphopt.errors import PassError
from graphopt.pipeline.prepare import Setting, prepare
from graphopt.pipeline.result import Result
from graphopt.pipeline.run import run
from graphopt.searching.correction import correct
from graphopt.searching.cost import CostModel
from graphopt.searching.finals import Finals
from graphopt.searching.loss import measure_losses
from graphopt.searching.proposing import Proposals
from graphopt.searching.ranking import Ranking, limits_of
from graphopt.searching.recovery import recover
from graphopt.searching.report import SearchReport, described
from graphopt.searching.space import Choice, Space, passes_for, shared, space_of
from graphopt.searching.study import Study, Trial
from graphopt.searching.table import Table
from graphopt.searching.trial import Bench, Outcome
from graphopt.searching.workers import Workers
from graphopt.target import Target

__all__ = ["Found", "Search", "Standing"]

#: Proposals in a round: the front does not depend on how many workers there are.
ROUND = 4
#: Rounds without a new candidate after which there is nothing more to try.
IDLE = 2
#: Candidates that are timed side by side at the end.
FINALISTS = 3


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a search stands, for whoever watches.

    Attributes:
        trials: what was evaluated so far.
        front: of those within the limits.
        best: the cheapest of them.
        doing: what goes on.
        left: seconds left, None without a limit of time.
    """

    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    best: Trial | None
    doing: str
    left: float | None


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        result: the model, as `graphopt.optimize` gives one; it is the closest if `met` is False.
        report: the choice layer by layer, the trials, the front.
        setting: the source as it was prepared, with the samples.
        front: results of every trial that no other beats, cheapest first (`search(front=True)`).
        others: the same for each further target of the search, by name.
    """

    result: Result
    report: SearchReport
    setting: Setting
    front: tuple[Result, ...] = ()
    others: Mapping[str, Found] = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether every limit is met, on every target."""
        return self.result.met and all(one.met for one in self.others.values())


class Search:
    """One search: tables, study, rounds, finalists.

    Candidates are built and judged for the first target; what they cost is predicted on each, and
    proposals take turns. For every target the finalists are built, judged and timed there.
    """

    def __init__(
        self,
        bench: Bench,
        targets: Sequence[str],
        budget: Budget,
        limit: float,
        minimize: str,
        passes: str | Sequence[Any] | None,
        trials: int,
        seconds: float | None,
        study: str | Path | None,
        cache: str | Path | None,
        measure_seconds: float,
        progress: Progress,
        watch: Callable[[Standing], None],
    ) -> None:
        self.bench, self.budget, self.limit, self.minimize = bench, budget, limit, minimize
        self.wanted, self.measure_seconds = trials, measure_seconds
        self.progress, self._watch = progress, watch
        self.end = None if seconds is None else time.monotonic() + seconds
        task = bench.task
        self.targets = {name: named_target(name) for name in targets}
        base, steps = passes_for(passes)
        progress("preparing", 0, 0)
        self.setting = self._after(base, cache)
        here = [self._on(target) for target in self.targets.values()]
        self.space: Space = shared([space_of(base, steps, one) for one in here])
        about = {
            "model": bench.setting.digest,
            "samples": bench.setting.samples.digest(),
            "evaluation": str(task.evaluate),
            "target": ",".join(targets),
            "loss": task.loss,
            "minimize": minimize,
            "passes": [str(p) for p in (*base, *steps)],
        }
        self.study = Study(str(study) if study is not None else None, about, task.seed)
        losses = measure_losses(self.setting, self.space, progress)
        self.rankings = [self._ranking(target) for target in self.targets.values()]
        self.ranking = self.rankings[0]
        same_unit = task.loss == "error"
        self.proposals = [
            Proposals(ranking, losses, same_unit, self.study.digest) for ranking in self.rankings
        ]
        self.failures: list[str] = []

    def _on(self, target: Target) -> Setting:
        """The setting of another target."""
        return dataclasses.replace(self.setting, target=dataclasses.replace(target, measured=False))

    def _ranking(self, target: Target) -> Ranking:
        """Costs on a target, measured and corrected, and the order that they make."""
        setting = self._on(target)
        self.progress(f"measuring what operators cost on {target.name}", 0, 0)
        plain = run(_quiet(setting), self.space.passes(self.space.nothing)).model
        timed = self.minimize == "latency" or self.budget.max_latency is not None
        priced = target if timed else setting.target
        cost = CostModel(setting, self.space, Table(priced, setting.cache), priced, plain)
        correct(cost, setting, priced, self.progress)
        limits = limits_of(self.budget, cost, self.bench.setting.source.bytes)
        return Ranking(cost, self.minimize, self.limit, limits)

    def _after(self, base: Sequence[Any], cache: str | Path | None) -> Setting:
        """A setting whose source is the model after the exact passes, with the same samples."""
        whole = self.bench.setting
        made = run(_quiet(whole), list(base)).model
        setting = prepare(
            made,
            target=dataclasses.replace(whole.target, measured=False),
            budget=whole.budget,
            seed=whole.seed,
            shapes=whole.shapes,
            verify="graph",
            measure=False,
            cache=cache,
        )
        return dataclasses.replace(setting, samples=whole.samples, given=whole.given)

    # --- rounds -----------------------------------------------------------------------------

    def run(self, staff: Workers) -> bool:
        """Evaluate candidates in rounds until there are enough; whether it was interrupted."""
        idle = 0
        try:
            while True:
                trials = self.study.trials()
                if len(trials) >= self.wanted or self._late() or idle == IDLE:
                    return False
                new = self._round(trials, min(ROUND, self.wanted - len(trials)), staff)
                idle = 0 if new else idle + 1
        except KeyboardInterrupt as interrupt:
            if type(interrupt) is not KeyboardInterrupt:
                raise  # a signal that ends the process, not Ctrl-C
            return True

    def recover(self, spec: str, staff: Workers) -> bool:
        """Train candidates that lose too much as they are; as `run`."""
        try:
            for proposals in self.proposals:
                self.failures += recover(spec, self.study, proposals, staff, self._tell, self._late)
        except KeyboardInterrupt as interrupt:
            if type(interrupt) is not KeyboardInterrupt:
                raise
            return True
        return False

    def _round(self, trials: Sequence[Trial], most: int, staff: Workers) -> int:
        """Propose, evaluate and keep a round of candidates; how many were new."""
        losses, anchor, firsts = self.proposals[0].fitted(trials)
        kinds = sorted({k for row in losses.kinds for k in row if k})
        known = {t.key for t in trials}
        self._tell("choosing candidates")
        chosen: list[tuple[Any, Choice, str, str]] = []
        number = self.study.finished()
        proposed = self.study.propose(kinds, firsts, ROUND, number)
        for k, (one, factors, budget) in enumerate(proposed):
            rng = np.random.default_rng([self.bench.task.seed, number, k])
            turn = self.proposals[k % len(self.proposals)]
            made = turn.fresh(losses, factors, math.exp(anchor + budget), known, rng)
            if made is None or len(chosen) >= most:
                self.study.drop(one)
                continue
            known.add(made[2])
            chosen.append((one, *made))
        kept = {k: self.study.kept(key) for k, (*_, key) in enumerate(chosen)}
        outcomes = {k: outcome for k, outcome in kept.items() if outcome is not None}
        new = [k for k in kept if k not in outcomes]
        specs = [chosen[k][2] for k in new]
        if specs:
            self._tell(f"evaluating {len(specs)} candidates")
        try:
            for place, outcome in staff.outcomes(specs):
                k = new[place]
                outcomes[k] = outcome
                self.study.keep(chosen[k][3], outcome)  # this process may be killed
                if outcome.reason:
                    self.failures.append(outcome.reason)
                left = len(chosen) - len(outcomes)
                self._tell(f"evaluating {left} more candidates", outcomes, chosen)
                if self._late():
                    break
        finally:  # in order, whoever came first
            for k, (one, choice, spec, key) in enumerate(chosen):
                if k in outcomes:
                    predicted = self.ranking.cost.predict(choice)
                    trial = Trial(0, key, spec, choice, outcomes[k], predicted)
                    self.study.tell(one, trial, self.ranking.cost_of(trial))
        return len(chosen)

    def _late(self) -> bool:
        return self.end is not None and time.monotonic() > self.end

    def _tell(
        self,
        doing: str,
        outcomes: Mapping[int, Outcome] | None = None,
        chosen: Sequence[tuple[Any, Choice, str, str]] = (),
    ) -> None:
        trials = self.study.trials()
        for k, outcome in (outcomes or {}).items():  # told to the study when the round is done
            _, choice, spec, key = chosen[k]
            predicted = self.ranking.cost.predict(choice)
            trials.append(Trial(0, key, spec, choice, outcome, predicted))
        best = next((t for t in self.ranking.ranked(trials) if self.ranking.met(t)), None)
        left = None if self.end is None else max(0.0, self.end - time.monotonic())
        self._watch(Standing(tuple(trials), tuple(self.ranking.front(trials)), best, doing, left))
        self.progress(doing, len(trials), self.wanted)

    # --- the end ----------------------------------------------------------------------------

    def finish(self, whole_front: bool, interrupted: bool) -> Found:
        """Build the finalists, time them, and make the best one's result and report."""
        found: list[Found] = []
        for name, proposals in zip(self.targets, self.proposals, strict=True):
            if not found:
                found.append(self._finished(self.bench, name, proposals, whole_front, interrupted))
                continue
            task = dataclasses.replace(self.bench.task, target=name)
            with Bench(task, self.progress) as bench:
                found.append(self._finished(bench, name, proposals, whole_front, interrupted))
        names = [target.name for target in self.targets.values()]
        return dataclasses.replace(found[0], others=dict(zip(names[1:], found[1:], strict=True)))

    def _finished(
        self, bench: Bench, name: str, proposals: Proposals, whole_front: bool, interrupted: bool
    ) -> Found:
        """What a search found for one target; `bench` builds and judges for it."""
        trials, ranking = self.study.trials(), proposals.ranking
        ranked = ranking.ranked(trials)
        if not ranked:
            raise PassError(
                "no candidate could be evaluated"
                + (f": {self.failures[0]}" if self.failures else "")
            )
        able = [t for t in ranked if ranking.met(t)] or ranked[:1]
        target = self.targets[name]
        finals = Finals(bench, target, self.budget, self.limit, self.measure_seconds)
        best, result = finals.best(
            able[:FINALISTS], by_latency=self.minimize == "latency", tell=self.progress
        )
        front = tuple(bench.final(t.spec) for t in ranking.front(trials)) if whole_front else ()
        report = described(
            proposals,
            trials,
            best,
            loss=bench.task.loss,
            met=result.met,
            interrupted=interrupted,
            failures=self.failures,
        )
        return Found(result, report, bench.setting, front)


def _quiet(setting: Setting) -> Setting:
    """Without comparing outputs: for exact passes that are checked again with the result."""
    return dataclasses.replace(setting, judge=None, guard=None)
