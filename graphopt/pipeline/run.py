"""The pipeline: run each pass on a clone, check, compare, measure; keep it or undo it; report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from graphopt import __version__
from graphopt.analyses.cost import cost
from graphopt.backend import Timing
from graphopt.budget import Budget
from graphopt.cache import Cache
from graphopt.context import Context, Edit, Progress
from graphopt.errors import InputError, ModelError, UsageError
from graphopt.graph import provenance
from graphopt.io.digest import digest
from graphopt.io.weights import warnings_of
from graphopt.io.writing import size_of
from graphopt.pass_ import format_pass
from graphopt.pipeline import recipe
from graphopt.pipeline.figures import Gauge, objection, remark
from graphopt.pipeline.result import Result
from graphopt.pipeline.step import Setting, Trial, refusals, try_pass
from graphopt.reporting.records import Figures, Report, Step, Undone
from graphopt.samples import Feeds, Samples, bind_shapes, stand_ins
from graphopt.target import Target
from graphopt.verification.graph import check_graph
from graphopt.verification.outputs import Judge, Outputs, compare_outputs

__all__ = ["Run"]

#: Outputs are compared on all samples, up to this many runs and about this many MACs in all.
PROBE_RUNS, PROBE_MACS = 64, 100e9


class Run:
    """One run of the pipeline: the current model, and what it is judged by."""

    def __init__(
        self,
        source: ir.Model,
        path: Path | None,
        *,
        target: Target,
        samples: Samples | None,
        budget: Budget,
        seed: int,
        given_shapes: Mapping[str, tuple[int, ...]],
        replay: recipe.Recipe | None,
        progress: Progress,
        debug: bool,
        compare: bool,
        timed: bool,
        cache: Cache | None,
        gauge: Callable[[Target], Gauge],
    ) -> None:
        self.source, self.path, self.samples, self.replay = source, path, samples, replay
        first = next(iter(samples), None) if samples is not None else None
        self.shapes, notes = bind_shapes(source, given_shapes, like=first)
        self.notes = [*warnings_of(source), *notes]
        if timed and not target.measured:
            self.notes.append(
                f"not measured: '{target.name}' is not this machine, and what is fast there is "
                "taken from its data"
            )
        drawn = stand_ins(source, seed=seed, shapes=self.shapes)
        self.feeds = next(iter(drawn))
        self.gauge = gauge(target)
        judge = None
        if compare:
            progress("running the source model", 0, 0)
            judge = Judge(source, self._probe(samples or drawn))
            if judge.unable:
                self.notes.append(f"outputs were not compared: {judge.unable}")
                judge = None
        self.setting = Setting(
            source=source,
            target=target if timed else dataclasses.replace(target, measured=False),
            samples=samples or drawn,
            budget=budget,
            seed=seed,
            shapes=self.shapes,
            measure_seconds=self.gauge.seconds,
            judge=judge,
            metric=self._metric,
            full_check=_holds(source),
            debug=debug,
            cache=cache,
            progress=progress,
        )
        self.current = _named(source.clone())
        self.context: Context | None = None
        self.outputs: Sequence[Outputs] = judge.source if judge else ()
        self.decisions: list[recipe.Decision] = []

    def _probe(self, samples: Samples) -> list[Feeds]:
        """The runs that outputs are compared on."""
        macs = Context(self.source, shapes=self.shapes).get(cost).macs
        runs: list[Feeds] = []
        spent = 0.0
        for feeds in samples:
            spent += macs * max((len(a) for a in feeds.values() if a.ndim), default=1)
            if len(runs) >= PROBE_RUNS or (len(runs) >= 2 and spent > PROBE_MACS):
                self.notes.append(f"outputs were compared on the first {len(runs)} runs of samples")
                break
            runs.append(feeds)
        return runs

    def __call__(self, passes: Sequence[Any]) -> Result:
        """Run them all."""
        specs = [recipe.portable(format_pass(p)) for p in passes]
        if self.replay is not None:
            recorded = [s.spec for s in self.replay.steps]
            if recorded != specs:
                raise UsageError(
                    f"the recipe is for -p '{', '.join(recorded)}', not '{', '.join(specs)}'"
                )
        with self.gauge:
            before = self._figures(self.source, self.path)
            self.source_metric = before.metric
            steps = []
            for k, (one, spec) in enumerate(zip(passes, specs, strict=True)):
                self.setting.progress(spec, k, len(passes))
                steps.append(self._step(one, spec, k))
            self.setting.progress("measuring the result", 0, 0)
            return self._finish(before, steps)

    # --- one step ---------------------------------------------------------------------------

    def _step(self, one: Any, spec: str, k: int) -> Step:
        began = time.perf_counter()
        backup = self.current.clone()
        decided = self.replay.steps[k] if self.replay else None
        trial = try_pass(
            one,
            self.current,
            self.setting,
            self.outputs,
            denied=[Edit(r, n) for r, n in decided.denied] if decided else (),
            facts=decided.facts if decided else None,
            previous=self.context,
            search=decided is None,
        )
        timing = None
        reason = trial.verdict.reason or self._over_drop(trial.verdict.metric)
        if decided is not None and not decided.kept:
            reason = reason or "undone, as the recipe says"
        elif trial.edits and not reason:
            timing = self.gauge.ratio(backup, trial.ctx.model, self.feeds)
            reason = objection(timing)
        kept = not reason
        self.current, self.context = (trial.ctx.model, trial.ctx) if kept else (backup, None)
        if kept and trial.edits:
            self.outputs = trial.verdict.outputs
        denied = tuple((e.rule, e.node) for e in trial.denied) if kept else ()
        self.decisions.append(recipe.Decision(spec, kept, denied, trial.ctx.facts))
        step = self._describe(spec, trial, reason, timing)
        return dataclasses.replace(step, seconds=time.perf_counter() - began)

    def _describe(self, spec: str, trial: Trial, reason: str, timing: Timing | None) -> Step:
        """The record of a step, with the figures of the model as it is after it."""
        ctx, verdict = trial.ctx, trial.verdict
        notes = [*ctx.notes, *refusals(ctx), *remark(timing)]
        status: Literal["kept", "unchanged", "undone", "refused"] = "undone" if reason else "kept"
        if trial.edits == 0 and not reason:
            declined = next((r.reason for r in ctx.refusals if r.node == "model"), "")
            status = "refused" if declined else "unchanged"
            reason = declined or ("" if notes else "nothing matched")
        figures = self.gauge.figures(self.current, self.shapes)
        searched = self.replay is None
        return Step(
            spec,
            status,
            reason=reason,
            edits=trial.edits,
            bytes=figures.bytes,
            nodes=figures.nodes,
            params=figures.params,
            macs=figures.macs,
            latency_ms=timing.b_ms if timing else None,
            latency_ratio=timing.ratio if timing else None,
            latency_ratio_ci=timing.ci if timing else None,
            error_vs_source=verdict.vs_source,
            error_vs_previous=verdict.vs_previous,
            metric=verdict.metric,
            undone=tuple(
                Undone(e.rule, e.node, "changed the outputs") for e in trial.denied if searched
            ),
            notes=tuple(notes),
        )

    # --- the result -------------------------------------------------------------------------

    def _finish(self, before: Figures, steps: list[Step]) -> Result:
        made = self._recipe()
        self.current.metadata_props[provenance.RECIPE] = made.to_text()
        if provenance.trim(self.current, size_of(self.current)):
            self.notes.append("single nodes' provenance was left out: it is over 5 % of the file")
        after = self._figures(self.current, None)
        total = self.gauge.ratio(self.source, self.current, self.feeds)
        if total is not None:
            before = dataclasses.replace(before, latency_ms=total.a_ms)
            after = dataclasses.replace(after, latency_ms=total.b_ms)
        budget, judge = self.setting.budget, self.setting.judge
        worst = compare_outputs(judge.source, self.outputs).worst if judge else None
        missed = budget.missed(before, after, worst)
        report = Report(
            graphopt=__version__,
            input=str(self.path or self.source.graph.name or "model"),
            output=None,
            target=self.setting.target.name,
            seed=self.setting.seed,
            limits=budget.limits(),
            met=not missed if budget.limited else None,
            before=before,
            after=after,
            steps=tuple(steps),
            latency_ratio=total.ratio if total else None,
            latency_ratio_ci=total.ci if total else None,
            validated=made.validated,
            notes=tuple(dict.fromkeys([*self.notes, *remark(total), *missed])),
        )
        return Result(self.current, report, made, self.setting.target)

    def _recipe(self) -> recipe.Recipe:
        """The recipe of this run. Raises InputError if a replay was fed something else."""
        made = recipe.Recipe(
            graphopt=__version__,
            target=self.setting.target.name,
            seed=self.setting.seed,
            source=digest(self.source),
            samples=self.samples.digest() if self.samples else None,
            validated=self.samples is not None or self.setting.budget.limited,
            versions=recipe.versions(),
            steps=tuple(self.decisions),
        )
        for what in ("source", "samples", "target", "seed"):
            if self.replay is not None and getattr(self.replay, what) != getattr(made, what):
                raise InputError(f"the recipe was made with another {what}; give it the same one")
        return made

    # --- figures ----------------------------------------------------------------------------

    def _figures(self, model: ir.Model, path: Path | None) -> Figures:
        figures = self.gauge.figures(model, self.shapes, path)
        return dataclasses.replace(figures, metric=self._metric(model))

    def _metric(self, model: ir.Model) -> float | None:
        evaluate = self.setting.budget.evaluate
        if evaluate is None:
            return None
        self.setting.progress("evaluating", 0, 0)
        return self.gauge.evaluate(model, evaluate)

    def _over_drop(self, metric: float | None) -> str:
        return self.setting.budget.over_drop(self.source_metric, metric)


def _named(model: ir.Model) -> ir.Model:
    """Name every node that has no name after its first output: reports and recipes need names."""
    taken = {n.name for n in model.graph.all_nodes()}
    for node in model.graph.all_nodes():
        if not node.name and node.outputs:
            name = node.outputs[0].name or node.op_type
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name
    return model


def _holds(model: ir.Model) -> bool:
    """Whether the types and shapes that a model declares are those that follow from its inputs.

    Raises:
        ModelError: not even names, order and operators are right.
    """
    try:
        check_graph(model)
    except ModelError:
        check_graph(model, full=False)
        return False
    return True
