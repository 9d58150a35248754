"""Trials: one candidate built by the pipeline, evaluated for real, in a process that may die.

What is lost is one number, higher is worse:

    drop           metric of the source less the candidate's        (an evaluation function)
    error          relative L2 error of the worst output            (no labels)
    disagreement   share of decisions that change                   (no labels)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

from graphopt.analyses.held_batch import held_batch
from graphopt.budget import MAX_DISAGREEMENT, Budget
from graphopt.context import Progress
from graphopt.errors import GraphOptError, UsageError
from graphopt.execution.runtime import run_each
from graphopt.measuring.gauge import Gauge
from graphopt.pipeline.prepare import Setting, prepare
from graphopt.pipeline.result import Result
from graphopt.pipeline.run import run
from graphopt.pipeline.state import State
from graphopt.samples import open_samples
from graphopt.verification.comparison import compare_outputs
from graphopt.verification.guard import Guard
from graphopt.verification.outputs import Judge
from graphopt.verification.perplexity import bound

__all__ = ["Bench", "Loss", "Outcome", "Task", "key_of"]

Loss = Literal["drop", "error", "disagreement"]
#: Runs of samples that outputs are compared on where no function evaluates, and on every step.
RUNS, STEP_RUNS = 64, 2


@dataclasses.dataclass(frozen=True)
class Task:
    """What trials of one search share, as strings: it goes to other processes and machines.

    Attributes:
        model, samples, evaluate, preprocess: as `graphopt search` takes them.
        target: where the result will run.
        loss: what counts as lost.
        seed, shapes: as in `graphopt.optimize`.
    """

    model: Any
    samples: Any
    evaluate: Any
    target: str
    loss: Loss
    seed: int = 0
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    preprocess: str | None = None

    @property
    def portable(self) -> bool:
        """Whether another process can open what it names."""
        return all(
            x is None or isinstance(x, str) for x in (self.model, self.samples, self.evaluate)
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Task:
        """The task whose fields `dataclasses.asdict` gave, after JSON."""
        shapes = tuple((name, tuple(dims)) for name, dims in data["shapes"])
        return cls(**{**data, "shapes": shapes})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial found; `reason` says why there is nothing.

    Attributes:
        loss: what is lost, in the task's unit.
        metric: what the evaluation function returned.
        size, macs, memory: bytes of the file, MACs of a run, bytes of file and activations.
    """

    loss: float | None = None
    metric: float | None = None
    size: int | None = None
    macs: int | None = None
    memory: int | None = None
    reason: str = ""


class Bench:
    """The source prepared once; candidates are built and judged on it, as many as wanted."""

    def __init__(self, task: Task, progress: Progress | None = None) -> None:
        self.task = task
        samples: Any = task.samples
        if isinstance(samples, str) and task.preprocess:
            from graphopt.formats import load

            model = load(task.model)
            samples = open_samples(
                samples, model, preprocess=task.preprocess, batch=held_batch(model)
            )
        self._samples, self._progress = samples, progress
        setting = self._prepared("graph")
        given = setting.samples if setting.given else None
        judged = bound(Budget(evaluate=task.evaluate), setting.source.model, given)
        self.evaluation = judged.evaluation
        self._whole: Setting | None = None
        self.probe = list(itertools.islice(setting.samples, RUNS))
        light = Judge(setting.source.skeleton, self.probe[:STEP_RUNS])
        self.setting = dataclasses.replace(setting, judge=None if light.unable else light)
        self._stack = contextlib.ExitStack()
        self._gauge = self._stack.enter_context(Gauge(setting.target, 0.0))
        self._outputs: list[Any] = []
        self.metric: float | None = None
        if task.loss == "drop":
            self.metric = self._evaluated(setting.source)
        else:
            self._outputs = list(run_each(setting.source.skeleton, self.probe))

    def _prepared(self, verify: Literal["outputs", "graph"]) -> Setting:
        """The source prepared; nothing is undone for what it loses: that is what is to be found."""
        return prepare(
            self.task.model,
            target=self.task.target,
            samples=self._samples,
            budget=Budget(max_disagreement=math.inf),
            seed=self.task.seed,
            shapes=dict(self.task.shapes),
            verify=verify,
            measure=False,
            cache="off",
            progress=self._progress,
        )

    def final(self, spec: str) -> Result:
        """The candidate as `graphopt.optimize` makes it, every step compared and certified."""
        if self._whole is None:
            self._whole = self._prepared("outputs")
        return run(self._whole, spec)

    def close(self) -> None:
        """Remove what evaluating left on disk."""
        self._stack.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def build(self, spec: str, progress: Progress | None = None) -> Result:
        """The candidate that a spec makes of the source."""
        return run(self.setting, spec, progress=progress)

    def judge(self, result: Result) -> Outcome:
        """What a candidate loses and weighs."""
        state = State(result.model, self.setting.shapes)
        figures = result.report.after
        loss: float | None
        metric: float | None = None
        if self.task.loss == "drop":
            metric = self._evaluated(state)
            if not math.isfinite(metric):
                return Outcome(reason=f"the evaluation returned {metric}")
            assert self.metric is not None
            loss = self.metric - metric
        else:
            loss = self._moved(state)
        size = figures.bytes or 0
        memory = size + (figures.peak_activation_bytes or 0)
        return Outcome(loss, metric, size, figures.macs, memory)

    def attempt(self, spec: str) -> Outcome:
        """Build and judge; an error makes an outcome with a reason."""
        try:
            return self.judge(self.build(spec))
        except GraphOptError as error:
            return Outcome(reason=str(error))

    def check_evaluation(self) -> None:
        """Raise unless the evaluation is a number, and a function of the model.

        Raises:
            UsageError: it is not, and how that shows.
        """
        if self.task.loss != "drop" or self.metric is None or self.evaluation is None:
            return
        name = getattr(self.evaluation, "__name__", "--eval")
        if not math.isfinite(self.metric):
            raise UsageError(f"{name} returns {self.metric} for the source model, no number")
        again = self._evaluated(self.setting.source)
        if again != self.metric:
            raise UsageError(
                f"{name} is not a function of the model: it returned {self.metric:g}, then "
                f"{again:g} for the same one; seed what is random in it"
            )
        if not self._asked:
            raise UsageError(
                f"{name} is not a function of the model: it never called predict, so that every "
                "model would do"
            )

    def _evaluated(self, state: State) -> float:
        evaluate = self.evaluation
        assert evaluate is not None
        self._asked = False

        def counted(predict: Any) -> float:
            def asked(feeds: Any) -> Any:
                self._asked = True
                return predict(feeds)

            return float(evaluate(asked))

        return self._gauge.evaluate(state, counted)

    def _moved(self, state: State) -> float:
        outputs = list(run_each(state.skeleton, self.probe))
        if self.task.loss == "error":
            return compare_outputs(self._outputs, outputs).worst
        guard = Guard(self.setting.source.model, self._outputs, self.probe)
        over = max((a.over for a in guard.judge(outputs).values()), default=0.0)
        return over * MAX_DISAGREEMENT


def key_of(task_digest: str, spec: str) -> str:
    """The hash that a trial is known by: of what it is judged on and the spec that makes it."""
    return hashlib.sha256(f"{task_digest}\n{spec}".encode()).hexdigest()[:24]
