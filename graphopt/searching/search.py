"""`graphopt.search`: the cheapest model that keeps its promise, found by itself.

    min C(choice)    such that    L(choice) <= limit

C comes from a table of what every operator costs in every form (`table`, `cost`), L from a table of
what every option loses (`loss`); a knapsack over both (`choosing`) proposes few candidates, which
the pipeline builds and the user's evaluation judges (`trial`, `workers`). What they lose fits L's
coefficients, and the next round proposes better ones (`study`). The cheapest that keep the limit
are timed side by side, and the best is made again as `graphopt.optimize` would make it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.backend import named_target
from graphopt.budget import MAX_DISAGREEMENT, Budget
from graphopt.context import Progress, silent
from graphopt.errors import UsageError
from graphopt.pass_ import check_needs
from graphopt.reporting.tracking import Scalar, tracked
from graphopt.samples import SampleSource
from graphopt.searching.cluster import Cluster
from graphopt.searching.cost import OBJECTIVES
from graphopt.searching.rounds import Found, Search, Standing
from graphopt.searching.trial import Bench, Loss, Task
from graphopt.searching.workers import Here, Processes, Workers
from graphopt.spec import passes_of

__all__ = ["search"]


def search(
    model: str | Path | ir.Model,
    *,
    samples: SampleSource | None = None,
    budget: Budget | None = None,
    minimize: str = "latency",
    passes: str | Sequence[Any] | None = None,
    target: str | Sequence[str] = "cpu",
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
    track: str | None = None,
) -> Found:
    """Find the cheapest model within a budget, layer by layer and jointly.

    Args:
        model: path of an .onnx file or what else `graphopt.load` reads, or a model.
        samples: real input data, as in `graphopt.optimize`; without it little can be judged.
        budget: what may be lost: `max_drop` with `evaluate`, `max_error`, or `max_disagreement`
            (0.01 if nothing is said); `max_size` and `max_latency` limit the rest.
        minimize: "latency", "size", "macs" or "memory" (of the file and activations).
        passes: what may be used, as a pipeline or names (`"prune, int8"`); None: all there is.
        target: where the result will run, a name or `FILE.py:NAME` of a backend; of several, each
            has a result and a front (`Found.others`), from candidates judged on the first.
        trials: candidates to evaluate.
        seconds: time after which no trial is begun.
        workers: processes that evaluate; the front is the same for any number.
        trial_timeout: seconds a trial may take.
        ray: address of a Ray cluster that evaluates instead, or "local" (needs the extra `ray`).
        recover: the pass that trains what is left, such as "distill(epochs=10)": candidates that
            lose too much as they are end in it.
        study: a file or URL that keeps the trials; a search with the same one goes on.
        front: build every model of the front, not the best alone.
        seed: seeds all that is random.
        shapes: as in `graphopt.optimize`.
        preprocess: for a folder of images, as on the command line.
        cache: as in `graphopt.optimize`.
        measure_seconds: about how long finalists are timed, each.
        progress: called with (text, done, total).
        watch: called whenever something is known.
        track: where the figures of every trial go: `tensorboard:DIR` or `mlflow:URI`.

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
    targets = [target] if isinstance(target, str) else list(dict.fromkeys(target))
    for name in targets:
        if minimize == "latency" and not named_target(name).measured:
            raise UsageError(
                f"latency on {name} cannot be measured here: search on such a machine, or "
                "--minimize macs"
            )
    task = Task(
        str(model) if isinstance(model, Path) else model,
        str(samples) if isinstance(samples, Path) else samples,
        budget.evaluate,
        targets[0],
        loss,
        seed,
        tuple((n, tuple(d)) for n, d in (shapes or {}).items()),
        preprocess,
    )
    if recover is not None:
        for each in passes_of(recover):
            check_needs(each, samples=samples is not None)
            if not getattr(each, "recovers", False):
                raise UsageError(
                    f"--recover {each}: it trains nothing; name a pass such as distill(epochs=10)"
                )
    if (workers > 1 or ray is not None) and not task.portable:
        raise UsageError(
            "several workers open what they work on themselves: give paths, and evaluate= as "
            "'FILE.py:FUNCTION'"
        )
    if trial_timeout is not None and not task.portable:
        raise UsageError("a trial can be timed out in a process of its own alone: give paths")
    with tracked(track) as scalar, Bench(task, progress) as bench:
        bench.check_evaluation()
        one = Search(
            bench, targets, budget, limit, minimize, passes, trials, seconds, study, cache,
            measure_seconds, progress or silent, _watched(watch, scalar, minimize),
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


def _watched(
    watch: Callable[[Standing], None] | None, scalar: Scalar, minimize: str
) -> Callable[[Standing], None]:
    """Tell a watcher how the search stands, and keep the figures of trials that are new."""
    known: set[str] = set()

    def told(standing: Standing) -> None:
        new = [trial for trial in standing.trials if trial.key not in known]
        for trial in new:
            known.add(trial.key)
            cost = getattr(trial.predicted, minimize)
            figures = {"loss": trial.outcome.loss, "metric": trial.outcome.metric, minimize: cost}
            for name, value in figures.items():
                if value is not None:
                    scalar(f"search/{name}", value, len(known))
        if new and standing.best is not None:
            scalar(
                f"search/best_{minimize}", getattr(standing.best.predicted, minimize), len(known)
            )
        if watch is not None:
            watch(standing)

    return told


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
