"""The pipeline: run each pass on a copy, check, compare, measure; keep it or undo it; report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import onnx_ir as ir

from graphopt import __version__
from graphopt.analyses.shapes.analysis import hand_on
from graphopt.cache import Cache
from graphopt.context import Context, Edit, Progress, silent
from graphopt.deploy.processors import extensions, processor, processors
from graphopt.errors import PassError, UsageError
from graphopt.graph.collector import resting_collector
from graphopt.io.digest import digest
from graphopt.measuring.gauge import Gauge, objection, remark
from graphopt.measuring.statistics import verdict
from graphopt.pass_ import Pass, check_needs, format_pass
from graphopt.pipeline import recipe
from graphopt.pipeline.account import (
    described,
    evidence_of,
    in_vain,
    judged_edits,
    raised,
    worse,
)
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.recorded import recipe_of, recorded
from graphopt.pipeline.result import Result
from graphopt.pipeline.stage import Stage, Watch
from graphopt.pipeline.state import State
from graphopt.pipeline.step import Trial, short_name, try_pass
from graphopt.reporting.records import Figures, Report, Step
from graphopt.spec import parse, passes_of
from graphopt.verification.comparison import Outputs, compare_outputs

__all__ = ["run"]


def run(
    setting: Setting,
    passes: str | Sequence[Any],
    *,
    replay: recipe.Recipe | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Result:
    """Run `passes` over a prepared model; the setting is not changed and serves the next run.

    Args:
        setting: what `prepare` made.
        passes: a spec such as `"prune(ratio=0.3), fuse"`, or a list of specs and pass objects, ours
            or `onnx_ir`'s.
        replay: take every decision from this recipe and measure nothing.
        progress: called with (text, steps done, steps in all).
        watch: called with the source, and with the model after every step.

    Raises:
        UsageError: a pass or option that does not exist; a recipe of another pipeline.
        InputError: the recipe was made with another source, samples, target or seed.
        PassError: a pass raised (`__cause__` is what), or changed the source in place.
    """
    passes = passes_of(passes)
    for each in passes:
        check_needs(each, samples=setting.given)
    if replay is not None:
        setting = setting.for_target(dataclasses.replace(setting.target, measured=False))
        if setting.budget.max_disagreement is None:  # what was kept was judged when it was decided
            setting = dataclasses.replace(setting, guard=None)
    with Gauge(setting.target, setting.measure_seconds) as gauge:
        one = _Run(setting, gauge, replay, progress or silent, watch or (lambda stage: None))
        return one(passes)


class _Run:
    """One run of the pipeline: the model as it is, and what was decided so far."""

    def __init__(
        self,
        setting: Setting,
        gauge: Gauge,
        replay: recipe.Recipe | None,
        progress: Progress,
        watch: Watch,
    ) -> None:
        self.setting, self.gauge, self.replay, self.progress = setting, gauge, replay, progress
        self.watch = watch
        #: Edits of the last step that were kept, each with what is known of it.
        self.edits: tuple[tuple[str, str, str], ...] = ()
        self.state = setting.source
        self.outputs: Sequence[Outputs] = setting.judge.all if setting.judge else ()
        #: The state's model as a copy that a pass may change, and the context that analysed it.
        self.work: ir.Model | None = None
        self.context: Context | None = None
        self.decisions: list[recipe.Decision] = []
        #: Lossy steps begun, and in all: each may use as much of the guard's limits as the others.
        self.lossy, self.losses = 0, 1
        self.disagrees = False  # the last step was undone by the guard
        #: Milliseconds of the source, from the last step that was timed beside it.
        self.source_ms: float | None = None
        #: Before the first step that a later pass is to make good: its number, and what was then.
        self.safe: tuple[int, State, Sequence[Outputs]] | None = None

    def __call__(self, passes: Sequence[Any]) -> Result:
        specs = [recipe.portable(format_pass(p)) for p in passes]
        if self.replay is not None:
            listed = [s.spec for s in self.replay.steps]
            if listed != specs:
                raise UsageError(
                    f"the recipe is for -p '{', '.join(listed)}', not '{', '.join(specs)}'"
                )
        self.evaluated(self.setting.source)
        before = self.setting.source.figures()
        steps: list[Step] = []
        self.losses = max(1, sum(bool(getattr(p, "lossy", False)) for p in passes))
        self.watch(Stage(self.setting, None, self.setting.source.model))
        for k, (one, spec) in enumerate(zip(passes, specs, strict=True)):
            later = any(getattr(p, "recovers", False) for p in passes[k + 1 :])
            if later and self.safe is None:
                self.safe = (k, self.state, self.outputs)
            place = f"step {k + 1} of {len(passes)}"
            self.progress(f"{place}, {spec}", k, len(passes))
            lossy = getattr(one, "lossy", False)  # which makes arrays, some of them in cycles
            with nullcontext() if lossy else resting_collector():
                steps.append(self._step(one, spec, k, place, judged=not later))
            self.watch(Stage(self.setting, steps[-1], self.state.model, self.edits))
            if not later:
                self._settle(steps)
        self.progress("measuring the result", 0, 0)
        return self._finish(before, steps)

    def evaluated(self, state: State) -> float | None:
        """The user's metric of a state, None without one."""
        evaluate = self.setting.budget.evaluation
        if evaluate is None:
            return None
        self.progress("evaluating", 0, 0)
        return state.metric(lambda one: self.gauge.evaluate(one, evaluate))

    # --- one step ---------------------------------------------------------------------------

    def _settle(self, steps: list[Step]) -> None:
        """What was to be won back is judged with the step that did it: all stay, or none does."""
        safe, self.safe = self.safe, None
        if safe is None or not self.disagrees:
            return
        first, self.state, self.outputs = safe
        self.work = self.context = None
        for k in range(first, len(steps)):
            if steps[k].status == "kept":
                reason = f"{steps[-1].spec} did not win back what was lost: {steps[-1].reason}"
                steps[k] = dataclasses.replace(steps[k], status="undone", reason=reason)
                self.decisions[k] = dataclasses.replace(self.decisions[k], kept=False, denied=())

    def _step(
        self, one: Any, spec: str, k: int, place: str, judged: bool = True, afresh: bool = False
    ) -> Step:
        """Try a pass; `afresh`: a second time, with no timing of an earlier run."""
        began = time.perf_counter()
        given = one
        setting = self.setting if judged else dataclasses.replace(self.setting, guard=None)
        if afresh and setting.cache is not None:
            setting = dataclasses.replace(setting, cache=Cache(setting.cache.folder, afresh=True))
        work = self._working()
        before = self.state
        decided = self.replay.steps[k] if self.replay else None
        if decided is not None and decided.ran:
            (one,) = parse(decided.ran)
        self.lossy += bool(getattr(one, "lossy", False)) and not afresh

        def told(text: str, done: int, total: int) -> None:
            self.progress(f"{place}, {text}", done, total)

        def attempt(form: Any, model: ir.Model, known: Context | None) -> Trial:
            return try_pass(
                form,
                model,
                setting,
                before,
                self.outputs,
                self.evaluated,
                denied={Edit(r, n): "" for r, n in decided.denied} if decided else {},
                facts=decided.facts if decided else {},
                previous=known,
                search=decided is None,
                share=max(self.lossy, 1) / self.losses,
                progress=told,
            )

        trial = attempt(one, work, self.context)
        ran = decided.ran if decided is not None else ""
        while decided is None and trial.verdict.disagrees and isinstance(one, Pass):
            weaker = one.weaker()
            if weaker is None:
                break
            one, stronger = weaker, trial
            trial = attempt(one, before.model.clone(), None)
            if not trial.edits:  # too weak to do anything: what it would have cost is the answer
                trial = stronger
                break
            ran = recipe.portable(format_pass(one))
            trial.ctx.note(f"run as {ran}: with more, {stronger.verdict.reason}")
        self.disagrees = trial.verdict.disagrees
        if afresh:
            trial.ctx.note("timed anew: with timings of an earlier run it was slower")
        timing = None
        reason = trial.verdict.reason or self.setting.budget.over_drop(
            self.setting.source.figures().metric, trial.verdict.metric
        )
        if not trial.edits:  # every edit was at fault: the step as a whole is undone
            reason = reason or trial.fault
        if decided is not None and not decided.kept:
            reason = reason or "undone, as the recipe says"
        elif trial.edits and not reason and getattr(one, "speeds_up", True):
            if self.setting.target.measured:
                seconds = self.setting.measure_seconds
                told(f"{short_name(one)}: timing, at most about {seconds:.3g} s", 0, 0)
            timing = self.gauge.ratio(before, trial.state, self.setting.feeds)
            if timing and before is self.setting.source:
                self.source_ms = timing.a_ms
            reason = objection(timing)
            if reason and trial.ctx.recalled and decided is None and not afresh:
                self.context = self.work = None
                again = self._step(given, spec, k, place, judged, afresh=True)
                return dataclasses.replace(again, seconds=time.perf_counter() - began)
            if decided is None and not reason and getattr(one, "compresses", False):
                reason = in_vain(before, trial.state, timing)
        if not reason:
            self.context = trial.ctx
            if trial.edits:
                self.state, self.outputs, self.work = trial.state, trial.verdict.outputs, None
                trial.ctx.notes += raised(before.model, self.state.model)
            else:
                self.work = trial.ctx.model
        else:
            self.context = self.work = None
        denied = tuple((e.rule, e.node) for e in trial.denied) if not reason else ()
        self.decisions.append(
            recipe.Decision(spec, not reason, denied, "" if reason else ran, trial.ctx.facts)
        )
        self.edits = () if reason else judged_edits(trial)
        step = described(
            spec, trial, self.state.figures(), reason, timing, searched=self.replay is None
        )
        return dataclasses.replace(step, seconds=time.perf_counter() - began)

    def _working(self) -> ir.Model:
        """A copy of the state's model for a pass to change, the analysed one if there is one."""
        if self.work is None:
            copy = self.state.model.clone()
            if self.context is not None:  # its analyses know the objects of the state's own model
                copy, self.state.model = self.state.model, copy
            elif self.state.context.model is self.state.model:
                self.context = hand_on(self.state.context, copy)
            self.work = copy
        return self.work

    # --- the result -------------------------------------------------------------------------

    @resting_collector()
    def _finish(self, before: Figures, steps: list[Step]) -> Result:
        setting, notes = self.setting, list(self.setting.notes)
        if digest(setting.source.model) != setting.digest:
            raise PassError(
                "a pass changed the source model itself, or its weights where they lie in memory: "
                "nothing was written. A pass may change the model that it is given, and weights "
                "only by new tensors"
            )
        self.evaluated(self.state)
        changed = self.state is not setting.source
        judged = changed or setting.budget.max_latency is not None
        total = self.gauge.ratio(setting.source, self.state, setting.feeds) if judged else None
        found = verdict(total) if total else None
        made = recipe_of(setting, self.decisions, self.replay)
        model = self.state.model if changed else self._working()
        final = recorded(setting, self.state, model, made, steps, notes)
        after = dataclasses.replace(
            final.figures(),
            metric=self.state.figures().metric,
            latency_ms=total.b_ms if total else self.source_ms,
        )
        before = dataclasses.replace(before, latency_ms=total.a_ms if total else self.source_ms)
        judge = setting.judge
        worst = (
            compare_outputs(judge.source, self.outputs[: len(judge.probe)]).worst if judge else None
        )
        missed = setting.budget.missed(before, after, worst, found)
        source = setting.source
        report = Report(
            graphopt=__version__,
            input=str(source.path or source.model.graph.name or "model"),
            output=None,
            target=setting.target.name,
            seed=setting.seed,
            limits=setting.budget.limits(),
            met=not missed if setting.budget.limited else None,
            before=before,
            after=after,
            steps=tuple(steps),
            latency_ratio=total.ratio if total else None,
            latency_ratio_ci=total.ci if total else None,
            verdict=found,
            validated=made.validated,
            evidence=evidence_of(steps),
            machine={
                "processor": processor(),
                "extensions": list(extensions()),
                "processors": processors(),
                "threads": setting.target.threads,
            },
            versions=made.versions,
            notes=tuple(dict.fromkeys([*notes, *remark(total), *worse(total), *missed])),
        )
        timed = setting.target.measured and changed
        return Result(
            final.model,
            report,
            made,
            setting.target,
            tuned=(setting.measure_seconds, setting.shapes) if timed else None,
            missed=tuple(missed),
        )
