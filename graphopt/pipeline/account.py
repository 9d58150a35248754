"""Account of a run: what its steps did, as records, and what must be said about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from graphopt.backend import Timing
from graphopt.measuring.gauge import objection, remark
from graphopt.measuring.statistics import verdict
from graphopt.pipeline.state import State
from graphopt.pipeline.step import Trial, refusals
from graphopt.reporting.records import Evidence, Figures, Step, Undone

__all__ = ["described", "evidence_of", "in_vain", "judged_edits", "raised", "worse"]


def described(
    spec: str,
    trial: Trial,
    figures: Figures,
    reason: str,
    timing: Timing | None,
    *,
    searched: bool,
) -> Step:
    """The record of a step.

    Args:
        spec: what was asked for.
        trial: what was done.
        figures: of the model as it is after it.
        reason: why it was undone, or "".
        timing: against the model before it.
        searched: it was not told by a recipe.
    """
    ctx, checked = trial.ctx, trial.verdict
    notes = [*ctx.notes, *refusals(ctx), *remark(timing)]
    status: Literal["kept", "unchanged", "undone", "refused"] = "undone" if reason else "kept"
    if trial.edits == 0 and not reason:
        declined = next((r.reason for r in ctx.refusals if r.node == "model"), "")
        status = "refused" if declined else "unchanged"
        reason = declined or ctx.idle or ("" if notes else "nothing matched")
    known = trial.evidence if status == "kept" else None
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
        verdict=verdict(timing) if timing else None,
        error_vs_source=checked.vs_source,
        error_vs_previous=checked.vs_previous,
        metric=checked.metric,
        agreement=checked.agreement,
        evidence=Evidence(**known.counts) if known is not None else None,
        undone=tuple(Undone(e.rule, e.node, why) for e, why in trial.denied.items() if searched),
        notes=tuple(notes),
    )


def raised(before: ir.Model, after: ir.Model) -> list[str]:
    """What a step raised: the opset and the IR version."""
    pairs = {
        "opset": (before.graph.opset_imports.get("", 0), after.graph.opset_imports.get("", 0)),
        "IR version": (before.ir_version, after.ir_version),
    }
    higher = [f"{what} {a} became {b}" for what, (a, b) in pairs.items() if a and b > a]
    if not higher:
        return []
    return [f"{', '.join(higher)}: its operators need that (--max-opset keeps it lower)"]


def worse(total: Timing | None) -> list[str]:
    """That the result is slower than the source, where it is."""
    slower = objection(total)
    return [f"the result is {slower}"] if slower else []


def in_vain(before: State, after: State, timing: Timing | None) -> str:
    """That a step for the sake of bytes or time has saved neither, or less time than bytes it adds.

    "" if it was worth it.
    """
    grown = after.bytes / before.bytes
    faster = timing is not None and verdict(timing) == "faster"
    if grown < 1 or (faster and timing is not None and timing.ratio * grown < 1):
        return ""
    if faster and timing is not None:
        return f"not worth it: {grown:.3g}x the bytes for {timing.ratio:.3g}x the latency"
    return f"no smaller ({grown:.3g}x the bytes) and {'no faster' if timing else 'not timed'}"


def judged_edits(trial: Trial) -> tuple[tuple[str, str, str], ...]:
    """Rule, node and evidence of the edits that a trial made."""
    known = dict(trial.evidence.edits) if trial.evidence is not None else {}
    return tuple((e.rule, e.node, known.get(e, "")) for e in trial.ctx.edits)


def evidence_of(steps: Sequence[Step]) -> Evidence | None:
    """What is known of every edit that was kept."""
    found = [s.evidence for s in steps if s.evidence is not None and s.status == "kept"]
    return sum(found, Evidence()) if found else None
