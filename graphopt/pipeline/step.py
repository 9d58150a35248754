"""One step of the pipeline: run a pass, verify what it made, bisect to the edit at fault."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.blame import described
from graphopt.blas import one_thread
from graphopt.context import Context, Edit, Progress
from graphopt.errors import GraphOptError, InputError, ModelError, PassError
from graphopt.graph import provenance
from graphopt.graph.traverse import all_graphs, all_nodes
from graphopt.measuring.parts import timer_of
from graphopt.pass_ import Pass, format_pass
from graphopt.pipeline.bisect import guilty_edits
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.referee import Judging
from graphopt.pipeline.state import State
from graphopt.pipeline.verify import Verdict, sound, verify
from graphopt.proving.evidence import Examined, examine
from graphopt.verification.comparison import Outputs
from graphopt.verification.graph import changed_signature, fingerprint

__all__ = ["Trial", "refusals", "short_name", "try_pass"]


NOTHING: Mapping[Edit, str] = {}
#: Of an edit that nobody could judge.
UNKNOWN = "neither proved nor checked (--trust assumed keeps them)"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One pass run and verified: its context, the state it made, and what was denied, why.

    `fault` is what was wrong before edits were denied for it.
    """

    ctx: Context
    edits: int
    state: State
    verdict: Verdict
    denied: Mapping[Edit, str] = dataclasses.field(default_factory=dict)
    fault: str = ""
    evidence: Examined | None = None


def try_pass(
    one: Any,
    model: ir.Model,
    setting: Setting,
    before: State,
    outputs: Sequence[Outputs],
    metric: Callable[[State], float | None],
    *,
    denied: Mapping[Edit, str] = NOTHING,
    facts: Mapping[str, Any] | None = None,
    previous: Context | None = None,
    search: bool = True,
    share: float = 1.0,
    progress: Progress,
) -> Trial:
    """Run `one` on `model` in place, verify it, and bisect if it broke its promise.

    Args:
        one: the pass, ours or `onnx_ir`'s.
        model: changed in place; a trial that had to bisect works on copies of `before`.
        setting: what the pass is given and judged by.
        before: the state that `model` is a copy of.
        outputs: its outputs on the probe inputs.
        metric: the user's evaluation of a state.
        denied: edits that are not allowed, and why.
        facts: decisions of an earlier run to repeat.
        previous: the context whose analyses of this very model still hold.
        search: look for the edit at fault.
        share: of the guard's limits that may be used after this step.
        progress: told what goes on.
    """

    def attempt(
        work: ir.Model,
        allow: Callable[[Edit], bool],
        decided: Mapping[str, Any] | None,
        known: Context | None = None,
    ) -> Trial:
        referee = Judging(setting.guard, share) if setting.guard else None
        ctx, edits = run_pass(one, work, setting, allow, decided, known, referee, progress)
        if edits == 0:
            return Trial(ctx, 0, before, Verdict(outputs=outputs))
        state = State(ctx.model, setting.shapes, context=ctx)
        progress(f"{short_name(one)}: checking what it did", 0, 0)
        evidence, fault = _evidence(one, before, ctx, setting)
        if evidence is not None:
            state.numbered = evidence.after
        if fault:
            return Trial(ctx, edits, state, Verdict(fault, broken=True), evidence=evidence)
        proved = evidence is not None and evidence.proved
        if proved and setting.judge is not None and setting.judge.costly:
            ctx.note("outputs were not compared: each edit is proved, and a run reads all weights")
            return Trial(ctx, edits, state, sound(state, setting, outputs), evidence=evidence)
        verdict = verify(one, state, setting, outputs, metric, share, proved)
        if verdict.note:
            ctx.note(verdict.note)
        if evidence is not None and not verdict.reason and setting.judge is not None:
            evidence = evidence.whole(len(setting.judge.all))
        return Trial(ctx, edits, state, verdict, evidence=evidence)

    first = attempt(model, lambda e: e not in denied, facts, previous)
    unknown = _unknown(first, setting) if search else []
    if unknown:
        denied = {**denied, **dict.fromkeys(unknown, UNKNOWN)}
        first = attempt(before.model.clone(), lambda e: e not in denied, first.ctx.facts)
        if _unknown(first, setting):
            verdict = Verdict(f"edits are {UNKNOWN}")
            return dataclasses.replace(first, verdict=verdict)
    if not (search and first.verdict.broken):
        fault = f"edits are {UNKNOWN}" if unknown else ""
        return dataclasses.replace(first, denied=denied, fault=fault)
    progress(f"{short_name(one)}: looking for the edit at fault", 0, 0)
    last = [first]
    why = first.verdict.reason

    def fails(allow: Callable[[Edit], bool]) -> tuple[Sequence[Edit], bool]:
        last[0] = attempt(
            before.model.clone(), lambda e: allow(e) and e not in denied, first.ctx.facts
        )
        return last[0].ctx.edits, not last[0].verdict.reason

    refuted = first.evidence.refuted if first.evidence is not None else None
    suspects = [e for e in first.ctx.edits if refuted and e.node in refuted.nodes()]
    if len(suspects) == 1 and fails(lambda e: e not in suspects)[1]:
        denied = {**denied, suspects[0]: why}
        return dataclasses.replace(last[0], denied=denied, fault=why)
    guilty = guilty_edits(first.ctx.edits, fails)
    if guilty is None:
        return first
    denied = {**denied, **dict.fromkeys(guilty, why)}
    return dataclasses.replace(last[0], denied=denied, fault=why)


def _evidence(
    one: Any, before: State, ctx: Context, setting: Setting
) -> tuple[Examined | None, str]:
    """What is known of an exact pass' edits, and what one of them changed."""
    if getattr(one, "lossy", False) or setting.verify != "outputs":
        return None, ""
    if changed_signature(before.model, ctx.model):
        return None, ""  # it is undone for that
    found = examine(before.model, ctx.model, ctx.edits, before.numbered)
    refuted = found.refuted
    if refuted is None:
        return found, ""
    return found, f"changed {refuted.name}: {refuted.means}"


def _unknown(trial: Trial, setting: Setting) -> list[Edit]:
    """Edits that were neither proved nor checked, where such may not stay."""
    if setting.trust == "assumed" or trial.evidence is None:
        return []
    return [e for e, verdict in trial.evidence.edits if verdict == "assumed"]


def run_pass(
    one: Any,
    model: ir.Model,
    setting: Setting,
    allow: Callable[[Edit], bool],
    facts: Mapping[str, Any] | None,
    previous: Context | None,
    referee: Judging | None,
    progress: Progress,
) -> tuple[Context, int]:
    """Run one pass on `model`; its context, and the number of edits.

    Raises:
        PassError: the pass raised something of its own, which becomes `__cause__`.
        ModelError: it did, on a source that no runtime here runs.
    """
    name = short_name(one)
    ctx = Context(
        model,
        target=setting.target,
        samples=setting.samples,
        budget=setting.budget,
        seed=setting.seed,
        allow=allow,
        pass_name=name,
        shapes=setting.shapes,
        facts=facts,
        progress=progress,
        measure_seconds=setting.measure_seconds,
        timer=timer_of(setting.target),
        cache=setting.cache,
        source=setting.source.model,
        referee=referee,
        scalar=setting.scalar,
    )
    if previous is not None and previous.model is model:
        ctx.adopt(previous)
    preserves = getattr(one, "preserves", ())
    preserved = {a: r for a, r in ctx.cached().items() if a in preserves}
    before, known = fingerprint(model), set(all_nodes(model.graph))
    idle = set(_unused(model))
    told = {v.name: (v.doc_string, dict(v.metadata_props)) for v in model.graph.outputs}
    try:
        edits = _run(one, ctx, name)
    except ModelError as error:
        if setting.misfits:
            which = ", ".join(f"'{n}'" for n in setting.misfits)
            raise InputError(
                f"pass {name} runs the model, and nothing invented for {which} fits: give "
                f"--samples ({error})"
            ) from error
        raise
    except (GraphOptError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        if setting.unable:
            raise ModelError(
                f"{setting.unable}; pass {name} cannot work on it ({error})"
            ) from error
        raise PassError(
            f"pass {name} raised {described(error)}. Nothing was written; leave it "
            "out of -p, or see the traceback with --debug"
        ) from error
    if edits == 0 and fingerprint(ctx.model) != before:
        edits = 1
    for value in ctx.model.graph.outputs:  # a rewrite may have made it anew
        doc, props = told.get(value.name, (None, {}))
        value.doc_string = value.doc_string or doc
        value.metadata_props.update({**props, **value.metadata_props})
    if edits:
        for node in all_nodes(ctx.model.graph):
            if node not in known and provenance.BY not in node.metadata_props:
                provenance.derive([node], [], name)
        for graph, unused in [f for f in _unused(ctx.model) if f not in idle]:
            graph.initializers.pop(unused)
        ctx.invalidate(preserves)
        if setting.debug:
            _check_preserved(preserved, ctx, name)
    return ctx, edits


def short_name(one: Any) -> str:
    """A pass' name without options or folders."""
    return format_pass(one).partition("(")[0].rpartition("/")[2]


def refusals(ctx: Context) -> list[str]:
    """One line per rule and reason, most frequent first, at most eight."""
    counts = Counter((r.rule, r.reason) for r in ctx.refusals if r.node != "model")
    first = {(r.rule, r.reason): r.node for r in reversed(ctx.refusals)}
    lines = []
    for (rule, reason), n in counts.most_common(8):
        places = f"at {first[rule, reason]}" + (f" and {n - 1} more" if n > 1 else "")
        lines.append(f"{rule} left alone {places}: {reason}")
    return lines


def _run(one: Any, ctx: Context, name: str) -> int:
    if isinstance(one, Pass):
        with one_thread():
            return one.run(ctx.model, ctx)
    if not ctx.edit(name, "model"):
        return 0
    outcome = one(ctx.model)
    ctx.model = outcome.model
    return int(outcome.modified)


def _unused(model: ir.Model) -> list[tuple[ir.Graph, str]]:
    """Initializers that nothing reads: a pass may not leave any of its own behind."""
    return [
        (graph, name)
        for graph in all_graphs(model.graph)
        for name, value in graph.initializers.items()
        if not (value.uses() or value.is_graph_output() or value.is_graph_input())
    ]


def _check_preserved(preserved: dict[Any, Any], ctx: Context, name: str) -> None:
    fresh = Context(ctx.model, target=ctx.target, shapes=ctx.shapes)
    for analysis, result in preserved.items():
        if fresh.get(analysis) != result:
            raise PassError(f"pass {name} claims to preserve {analysis.__name__} and does not")
