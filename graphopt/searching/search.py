"""`graphopt.search`: the cheapest model that keeps its promise, found by itself.

    min C(choice)    such that    L(choice) <= limit

C comes from a table of what every operator costs in every form (`table`, `cost`), L from a table of
what every option loses (`loss`); a knapsack over both (`choosing`) proposes few candidates, which
the pipeline builds and the user's evaluation judges (`trial`, `workers`). What they lose fits L's
coefficients, and the next round proposes better ones (`study`). The cheapest that keep the limit
are timed side by side, and the best is made again as `graphopt.optimize` would make it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.backend import named_target
from graphopt.budget import MAX_DISAGREEMENT, Budget, Limit
from graphopt.context import Progress, silent
from graphopt.errors import PassError, UsageError
from graphopt.pass_ import check_needs
from graphopt.pipeline.prepare import Setting, prepare
from graphopt.pipeline.result import Result
from graphopt.pipeline.run import run
from graphopt.samples import SampleSource
from graphopt.searching.choosing import cheapest
from graphopt.searching.cluster import Cluster
from graphopt.searching.correction import correct
from graphopt.searching.cost import OBJECTIVES, CostModel
from graphopt.searching.finals import Finals
from graphopt.searching.front import pareto
from graphopt.searching.loss import Losses, measure_losses
from graphopt.searching.report import Bought, SearchReport, bought
from graphopt.searching.space import Choice, Space, passes_for, space_of
from graphopt.searching.study import Study, Trial
from graphopt.searching.table import Table
from graphopt.searching.trial import Bench, Loss, Outcome, Task, key_of
from graphopt.searching.workers import Here, Processes, Workers
from graphopt.spec import passes_of

__all__ = ["Found", "Standing", "search"]

#: Proposals in a round: the front does not depend on how many workers there are.
ROUND = 4
#: Rounds without a new candidate after which there is nothing more to try.
IDLE = 2
#: Attempts at a new candidate: the budget and the loss of single groups stray more and more.
ATTEMPTS, STRAY = 8, 0.15
#: Candidates that are tried again with training.
RECOVERED = 4
#: Candidates that are timed side by side at the end.
FINALISTS = 3
#: Logs of the squared output error at which a search begins, before anything is known.
BEGIN = (-6.5, -5.0, -3.5, -2.0)


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
        front: results of every trial that no other beats, cheapest first (`search(front=True)`).
    """

    result: Result
    report: SearchReport
    front: tuple[Result, ...] = ()

    @property
    def met(self) -> bool:
        """Whether every limit is met."""
        return self.result.met


def search(
    model: str | Path | ir.Model,
    *,
    samples: SampleSource | None = None,
    budget: Budget | None = None,
    minimize: str = "latency",
    passes: str | Sequence[Any] | None = None,
    target: str = "cpu",
    trials: int = 24,
    seconds: float | None = None,
    workers: int = 1,
    trial_timeout: float | None = None,
    ray: str | None = None,
    recover: str | None = None,
    study: str | Path | None = None,
    front: bool = False,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    preprocess: str | None = None,
    cache: str | Path | None = None,
    measure_seconds: float = 5.0,
    progress: Progress | None = None,
    watch: Callable[[Standing], None] | None = None,
) -> Found:
    """Find the cheapest model within a budget, layer by layer and jointly.

    Args:
        model: path of an .onnx file or what else `graphopt.load` reads, or a model.
        samples: real input data, as in `graphopt.optimize`; without it little can be judged.
        budget: what may be lost: `max_drop` with `evaluate`, `max_error`, or `max_disagreement`
            (0.01 if nothing is said); `max_size` and `max_latency` limit the rest.
        minimize: "latency", "size", "macs" or "memory" (of the file and activations).
        passes: what may be used, as a pipeline or names (`"prune, int8"`); None: all there is.
        target: where the result will run, a name or `FILE.py:NAME` of a backend.
        trials: candidates to evaluate.
        seconds: time after which no trial is begun.
        workers: processes that evaluate; the front is the same for any number.
        trial_timeout: seconds a trial may take.
        ray: address of a Ray cluster that evaluates instead, or "local" (needs the extra `ray`).
        recover: the pass that trains what is left, such as "distill(epochs=10)": candidates that
            lose a little too much are tried again with it.
        study: a file or URL that keeps the trials; a search with the same one goes on.
        front: build every model of the front, not the best alone.
        seed, shapes, cache: as in `graphopt.optimize`.
        preprocess: for a folder of images, as on the command line.
        measure_seconds: about how long finalists are timed, each.
        progress: called with (text, done, total).
        watch: called whenever something is known.

    Raises:
        UsageError: no limit on what may be lost can be judged, an evaluation that is not a function
            of the model, nothing to choose, a study of another search.
        MissingExtra: Optuna is not installed.
    """
    budget = budget or Budget()
    if minimize not in OBJECTIVES:
        raise UsageError(f"--minimize {minimize}: it is one of {', '.join(OBJECTIVES)}")
    if trials < 1 or workers < 1:
        raise UsageError("--trials and --workers are numbers from 1 on")
    loss, limit = _limit(budget)
    where = named_target(target)
    if minimize == "latency" and not where.measured:
        raise UsageError(
            f"latency on {target} cannot be measured here: search on such a machine, or "
            "--minimize macs"
        )
    task = Task(
        str(model) if isinstance(model, Path) else model,
        str(samples) if isinstance(samples, Path) else samples,
        budget.evaluate,
        target,
        loss,
        seed,
        tuple((n, tuple(d)) for n, d in (shapes or {}).items()),
        preprocess,
    )
    if recover is not None:
        for each in passes_of(recover):
            check_needs(each, samples=samples is not None)
    if (workers > 1 or ray is not None) and not task.portable:
        raise UsageError(
            "several workers open what they work on themselves: give paths, and evaluate= as "
            "'FILE.py:FUNCTION'"
        )
    if trial_timeout is not None and not task.portable:
        raise UsageError("a trial can be timed out in a process of its own alone: give paths")
    with Bench(task, progress) as bench:
        bench.check_evaluation()
        one = _Search(
            bench, budget, limit, minimize, passes, trials, seconds, study, cache,
            measure_seconds, progress or silent, watch or (lambda _: None),
        )  # fmt: skip
        staff: Workers
        if ray is not None:
            staff = Cluster(ray, task, trial_timeout)
        else:
            staff = Processes(task, workers, trial_timeout) if task.portable else Here(bench)
        try:
            try:
                interrupted = one.run(staff)
                if recover is not None and not interrupted:
                    interrupted = one.recover(recover, staff)
            finally:
                staff.close()
            return one.finish(front, interrupted)
        finally:
            one.study.close()


def _limit(budget: Budget) -> tuple[Loss, float]:
    """What is lost and how much of it may be."""
    if budget.max_drop is not None:
        return "drop", budget.max_drop
    if budget.evaluate is not None:
        raise UsageError("say how far the metric may fall: --max-drop beside --eval")
    if budget.max_error is not None:
        return "error", budget.max_error
    share = budget.max_disagreement
    if share is not None and not math.isfinite(share):
        raise UsageError("a search needs a limit of what may be lost, not none")
    return "disagreement", MAX_DISAGREEMENT if share is None else share


class _Search:
    """One search: tables, study, rounds, finalists."""

    def __init__(
        self,
        bench: Bench,
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
        self.target = named_target(task.target)
        base, steps = passes_for(passes)
        progress("preparing", 0, 0)
        self.setting = self._after(base, cache)
        self.space: Space = space_of(base, steps, self.setting)
        plain = run(_quiet(self.setting), self.space.passes(self.space.nothing)).model
        progress("measuring what operators cost", 0, 0)
        self.table = Table(self.target, self.setting.cache)
        self.cost = CostModel(self.setting, self.space, self.table, self.target, plain)
        correct(self.cost, self.setting, self.target, progress)
        about = {
            "model": bench.setting.digest,
            "samples": bench.setting.samples.digest(),
            "evaluation": str(task.evaluate),
            "target": task.target,
            "loss": task.loss,
            "minimize": minimize,
            "passes": [str(p) for p in (*base, *steps)],
        }
        self.study = Study(str(study) if study is not None else None, about, task.seed)
        self.losses: Losses = measure_losses(self.setting, self.space, progress)
        self.failures: list[str] = []

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
        """Try cheaper candidates, which lose too much, again with training; as `run`.

        Those that lose least come first, and the first that cannot be won back is the last.
        """
        trials = self.study.trials()
        best = next((self.cost_of(t) for t in self.ranked(trials) if self.met(t)), math.inf)
        over = [t for t in trials if self.limit < t.loss < math.inf and self.cost_of(t) < best]
        known = {t.key for t in trials}
        try:
            for trial in sorted(over, key=lambda t: t.loss)[:RECOVERED]:
                longer = f"{trial.spec}, {spec}"
                key = key_of(self.study.digest, longer)
                if key in known:
                    continue
                self._tell(f"training a candidate that loses {trial.loss:.4g}")
                (outcome,) = (o for _, o in staff.outcomes([longer]))
                made = dataclasses.replace(trial, key=key, spec=longer, outcome=outcome)
                self.study.add(made, self.cost_of(made))
                if outcome.reason:
                    self.failures.append(outcome.reason)
                if not self.met(made) or self._late():
                    return False
        except KeyboardInterrupt as interrupt:
            if type(interrupt) is not KeyboardInterrupt:
                raise
            return True
        return False

    def _round(self, trials: Sequence[Trial], most: int, staff: Workers) -> int:
        """Propose, evaluate and keep a round of candidates; how many were new."""
        losses, anchor, firsts = self._fitted(trials)
        kinds = sorted({k for row in losses.kinds for k in row if k})
        known = {t.key for t in trials}
        self._tell("choosing candidates")
        chosen: list[tuple[Any, Choice, str, str]] = []
        number = self.study.finished()
        proposed = self.study.propose(kinds, firsts, ROUND, number)
        for k, (one, factors, budget) in enumerate(proposed):
            rng = np.random.default_rng([self.bench.task.seed, number, k])
            made = self._fresh(losses, factors, math.exp(anchor + budget), known, rng)
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
                    predicted = self.cost.predict(choice)
                    trial = Trial(0, key, spec, choice, outcomes[k], predicted)
                    self.study.tell(one, trial, self.cost_of(trial))
        return len(chosen)

    def _fitted(self, trials: Sequence[Trial]) -> tuple[Losses, float, list[float]]:
        """Losses in real units, the log of the budget to try, and offsets from it to begin with."""
        done = [t for t in trials if math.isfinite(t.loss)]
        if not done:
            if self.bench.task.loss == "error" and self.limit > 0:  # the very same unit
                return self.losses, 2 * math.log(self.limit), [0.0, 0.7, -0.7, 1.4]
            middle = sum(BEGIN) / len(BEGIN)
            return self.losses, middle, [b - middle for b in BEGIN]
        losses = self.losses.fitted([(t.choice, t.loss) for t in done], max(self.limit, 1e-6))
        kept = [losses.of(t.choice) for t in done if t.loss <= self.limit]
        over = [losses.of(t.choice) for t in done if t.loss > self.limit]
        low = max((k for k in kept if k > 0), default=None)
        high = min((o for o in over if low is None or o > low), default=None)
        if low is None and high is None:
            return losses, math.log(max(self.limit, 1e-9)), [0.0, 0.7]
        if low is None:
            assert high is not None
            return losses, math.log(high) - 1.2, [0.0, -1.2]
        if high is None:
            return losses, math.log(low) + 0.6, [0.0, 0.6]
        middle = (math.log(low) + math.log(high)) / 2
        return losses, middle, [0.0, (math.log(high) - math.log(low)) / 4]

    def _fresh(
        self,
        losses: Losses,
        factors: Mapping[str, float],
        budget: float,
        known: set[str],
        rng: np.random.Generator,
    ) -> tuple[Choice, str, str] | None:
        """A candidate that was not evaluated yet, near what was proposed; None if there is none."""
        strayed = dataclasses.replace(
            losses,
            coefficients={
                k: losses.coefficients.get(k, 1.0) * math.exp(f) for k, f in factors.items()
            },
        )
        for k in range(ATTEMPTS):
            near = budget * math.exp(STRAY * k * rng.standard_normal())
            about = strayed.shaken(STRAY * k, rng) if k else strayed
            choice = cheapest(self.cost, about, near, self.minimize, self._limits())
            spec = self.space.spec(choice)
            key = key_of(self.study.digest, spec)
            if key not in known:
                return choice, spec, key
        return None

    def _limits(self) -> dict[str, float]:
        """Limits on figures besides what is minimized, as the cost model counts."""
        found = {}
        nothing = self.cost.predict(self.space.nothing)
        if self.budget.max_size is not None:
            source = float(self.bench.setting.source.bytes)
            found["size"] = Limit.parse(self.budget.max_size, "size").resolve(source)
        if self.budget.max_latency is not None:
            limit = Limit.parse(self.budget.max_latency, "latency")
            found["latency"] = limit.resolve(nothing.latency)
        return found

    # --- what was found ---------------------------------------------------------------------

    def cost_of(self, trial: Trial) -> float:
        """What is minimized: milliseconds as predicted, other figures as they are."""
        if self.minimize == "latency":
            return self.cost.predict(trial.choice).latency
        return float(getattr(trial.outcome, self.minimize) or 0)

    def met(self, trial: Trial) -> bool:
        """Whether a trial keeps the limits, as far as that is known before it is timed."""
        return self._over(trial) <= 1

    def _over(self, trial: Trial) -> float:
        """How far over its limits a trial is: at most 1 if it keeps them."""
        size = (trial.outcome.size or 0) / self._limits().get("size", math.inf)
        if trial.loss <= self.limit + 1e-12:
            return size if size > 1 else min(trial.loss / max(self.limit, 1e-12), 1.0)
        return max(size, trial.loss / max(self.limit, 1e-12))

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that came to something: those within the limits first, cheapest first."""
        done = [t for t in trials if t.outcome.loss is not None]
        return sorted(
            done,
            key=lambda t: (
                (0, self.cost_of(t), t.loss) if self.met(t) else (1, self._over(t), t.loss)
            ),
        )

    def front(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that no other beats."""
        done = [t for t in trials if t.outcome.loss is not None]
        return pareto(done, self.cost_of, lambda t: t.loss)

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
            trials.append(Trial(0, key, spec, choice, outcome, self.cost.predict(choice)))
        best = next((t for t in self.ranked(trials) if self.met(t)), None)
        left = None if self.end is None else max(0.0, self.end - time.monotonic())
        self._watch(Standing(tuple(trials), tuple(self.front(trials)), best, doing, left))
        self.progress(doing, len(trials), self.wanted)

    # --- the end ----------------------------------------------------------------------------

    def finish(self, whole_front: bool, interrupted: bool) -> Found:
        """Build the finalists, time them, and make the best one's result and report."""
        trials = self.study.trials()
        ranked = self.ranked(trials)
        if not ranked:
            raise PassError(
                "no candidate could be evaluated"
                + (f": {self.failures[0]}" if self.failures else "")
            )
        able = [t for t in ranked if self.met(t)] or ranked[:1]
        last = able[:FINALISTS] if self.minimize == "latency" else able[:1]
        finals = Finals(self.bench, self.target, self.budget, self.limit, self.measure_seconds)
        best, result = finals.best(last, by_latency=self.minimize == "latency", tell=self.progress)
        front = self.front(trials)
        others = tuple(self.bench.final(t.spec) for t in front) if whole_front else ()
        report = SearchReport(
            minimize=self.minimize,
            loss=self.bench.task.loss,
            limit=self.limit,
            met=result.met,
            interrupted=interrupted,
            spec=best.spec,
            best=self._row(best),
            trials=tuple(self._row(t) for t in trials),
            front=tuple(self._row(t) for t in front),
            layers=self._bought(best, trials),
            next=self._next(best, trials),
            measured=self.table.measured,
            entries=len(self.table.entries),
            notes=self._notes(ranked),
        )
        return Found(result, report, others)

    def _row(self, trial: Trial) -> dict[str, Any]:
        predicted = self.cost.predict(trial.choice)
        return {
            "spec": trial.spec,
            "loss": trial.outcome.loss,
            "metric": trial.outcome.metric,
            "latency_ms": predicted.latency if self.target.measured else None,
            "size": trial.outcome.size,
            "macs": trial.outcome.macs,
            "memory": trial.outcome.memory,
            "reason": trial.outcome.reason,
        }

    def _bought(self, best: Trial, trials: Sequence[Trial]) -> tuple[Bought, ...]:
        losses, _, _ = self._fitted(trials)
        return bought(self.cost, losses, best.choice, self.minimize)

    def _next(self, best: Trial, trials: Sequence[Trial]) -> str:
        """What a little more loss would buy, by the cost model."""
        losses, _, _ = self._fitted(trials)
        now = getattr(self.cost.predict(best.choice), self.minimize)
        spent = losses.of(best.choice)
        more = cheapest(self.cost, losses, 1.25 * spent, self.minimize, self._limits())
        gain = 1 - getattr(self.cost.predict(more), self.minimize) / max(now, 1e-12)
        return f"a quarter more loss would buy {max(gain, 0.0):.1%} less {self.minimize}"

    def _notes(self, ranked: Sequence[Trial]) -> tuple[str, ...]:
        found = []
        if self.failures:
            found.append(f"{len(self.failures)} trials failed; the first: {self.failures[0]}")
        if not self.met(ranked[0]):
            found.append(
                f"no candidate keeps the limits: the nearest loses {ranked[0].loss:.4g} "
                f"({self.limit:.4g} is allowed) at {ranked[0].outcome.size:,} bytes; allow that, "
                "give more samples, or more --trials"
            )
        return tuple(found)


def _quiet(setting: Setting) -> Setting:
    """Without comparing outputs: for exact passes that are checked again with the result."""
    return dataclasses.replace(setting, judge=None, guard=None)
