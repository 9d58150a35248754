"""Verification of one step: the graph, its interface, its outputs, what it still says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import from_values
from graphopt.errors import InputError
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.state import State
from graphopt.reporting.records import Agreement, OutputError
from graphopt.verification.comparison import Comparison, Outputs, compare_outputs, same_forms
from graphopt.verification.flips import flips
from graphopt.verification.graph import changed_signature, check_graph
from graphopt.verification.guard import Guard
from graphopt.verification.outputs import PART

__all__ = ["Verdict", "sound", "verify"]

#: Of outputs that differ, all edits being proved.
ROUNDED = (
    "outputs differ by no more than where the inputs are rounded once more: of these inputs the "
    "source itself keeps few digits. Every edit is proved"
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What verification found; `broken`: the pass broke its promise, look for the edit at fault."""

    reason: str = ""
    broken: bool = False
    outputs: Sequence[Outputs] = ()
    vs_source: dict[str, OutputError] | None = None
    vs_previous: dict[str, OutputError] | None = None
    metric: float | None = None
    agreement: dict[str, Agreement] | None = None
    note: str = ""

    @property
    def disagrees(self) -> bool:
        """Whether the guard has refused it."""
        return any(one.over > 1 for one in (self.agreement or {}).values())


def verify(
    one: Any,
    state: State,
    setting: Setting,
    before: Sequence[Outputs],
    metric: Callable[[State], float | None],
    share: float = 1.0,
    proved: bool = False,
) -> Verdict:
    """Check graph and outputs of what a pass made; `reason` is "" if it may stay.

    With every edit `proved`, what rounding does to the source is no difference.
    """
    alone = sound(state, setting)
    judge = setting.judge
    if judge is None or alone.reason:
        return alone
    try:
        outputs = judge.outputs(state.skeleton)
    except InputError as error:
        return Verdict(f"the result cannot be run: {error}", broken=True)
    probed = len(judge.probe)
    lossy = getattr(one, "lossy", False)
    try:
        seen = judge.as_deployed(state.skeleton) if lossy else outputs[:probed]
    except InputError as error:
        return Verdict(f"the result cannot be run as it is deployed: {error}", broken=True)
    # of lossy steps the guard matches rows whose number follows from values, one to one.
    matched = set(setting.guard.counted) if lossy and setting.guard else set()
    previous = compare_outputs(_without(before[:probed], matched), _without(seen, matched))
    source = compare_outputs(_without(judge.source, matched), _without(seen, matched))
    verdict = Verdict(
        outputs=outputs, vs_previous=previous.errors or None, vs_source=source.errors or None
    )
    if source.broken:
        told = (
            " (its size follows from values)"
            if lossy and _resized(state, judge.source, seen)
            else ""
        )
        return dataclasses.replace(verdict, reason=_moved(source) + told, broken=not told)
    if not lossy:

        def equal(compared: Comparison, runs: slice) -> bool:
            return judge.equal(compared) or (proved and judge.rounds_alike(compared, runs))

        if not equal(previous, slice(probed)):
            return dataclasses.replace(verdict, reason=_moved(previous), broken=True)
        beyond = compare_outputs(before[probed:], outputs[probed:])
        if not equal(beyond, slice(probed, None)):
            reason = f"{_moved(beyond)}, at other sizes or values than the samples"
            return dataclasses.replace(verdict, reason=reason, broken=True)
        return verdict if judge.equal(previous) else dataclasses.replace(verdict, note=ROUNDED)
    others = _without(outputs[probed:], matched)
    forms = same_forms(_without(judge.beyond, matched), others)
    if forms:
        reason = f"changed the outputs: {forms}, at other sizes than the samples"
        return dataclasses.replace(verdict, reason=reason, broken=True)
    agreement = setting.guard.judge(seen, share) if setting.guard else None
    verdict = dataclasses.replace(verdict, metric=metric(state), agreement=agreement)
    reason = setting.budget.over_error(source.worst)
    if not reason and verdict.disagrees:
        name, worst = max((agreement or {}).items(), key=lambda item: item[1].over)
        reason = f"{name} says something else: {worst}"
    if not reason and setting.guard and (likely := _likely(setting.guard, state, seen)) > share:
        share, limit = likely * setting.guard.limit, share * setting.guard.limit
        reason = f"other inputs are likely to say something else: {share:.1%} (at most {limit:.1%})"
    return dataclasses.replace(verdict, reason=reason)


def _without(runs: Sequence[Outputs], names: Collection[str]) -> Sequence[Outputs]:
    return [{n: a for n, a in run.items() if n not in names} for run in runs] if names else runs


def _resized(state: State, expected: Sequence[Outputs], got: Sequence[Outputs]) -> bool:
    """Whether outputs differ in sizes that follow from values alone: boxes found, words said.

    No single edit is at fault where other numbers are other sizes.
    """
    facts = state.context.get(shapes)
    free = {v.name for v in state.model.graph.outputs if from_values(facts.shape(v))}
    pairs = [(a[n], b[n], n) for a, b in zip(expected, got, strict=True) for n in a if n in b]
    forms = [(np.shape(x), np.shape(y), n) for x, y, n in pairs]
    odd = [(x, y, n) for x, y, n in forms if x != y]
    return bool(odd) and all(n in free and len(x) == len(y) for x, y, n in odd)


def _likely(guard: Guard, state: State, seen: Sequence[Outputs]) -> float:
    """What other inputs are likely to change, over the guard's limit."""
    if not guard.logits:
        return flips(guard, seen)
    with guard.opened(state.model) as predict:
        return flips(guard, list(map(predict, guard.probe)))


def sound(state: State, setting: Setting, outputs: Sequence[Outputs] = ()) -> Verdict:
    """Whether the graph is valid and has the source's interface."""
    try:
        check_graph(state.skeleton, full=setting.full_check)
    except InputError as error:
        return Verdict(f"left an invalid graph: {error}", broken=True)
    signed = changed_signature(setting.source.model, state.model)
    if signed:
        return Verdict(f"changed the model's interface: {signed}", broken=True)
    return Verdict(outputs=outputs)


def _moved(compared: Comparison) -> str:
    if compared.broken:
        return f"changed the outputs: {compared.broken}"
    if any(compared.changed.values()):
        name, share = max(compared.changed.items(), key=lambda item: item[1])
        return f"changed the outputs: {share:.2%} of the integers of {name} differ"
    name, error = max(compared.errors.items(), key=lambda item: item[1].rel_l2)
    part = compared.parts.get(name, 0.0)
    if part > PART > error.rel_l2:
        return f"changed the outputs: one channel of {name} by {part:.3g} (relative L2)"
    return f"changed the outputs: {name} by {error.rel_l2:.3g} (relative L2)"
