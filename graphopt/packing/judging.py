"""Judging a coded model as it would be decoded: its outputs, its metric, the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.blame import described
from graphopt.errors import PassError
from graphopt.execution.runtime import opened, run_each
from graphopt.packing.coding import Coded
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.referee import Judging
from graphopt.verification.comparison import Outputs, compare_outputs
from graphopt.verification.guard import Guard

__all__ = ["Trial", "judged", "metric_of"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a coded model misses of the budget ("" if nothing), and its figures.

    `disagreement` is what it uses of the guard's limits, as passes are judged: decisions by how
    likely other inputs are to change them, with room left for what the samples do not show.
    """

    coded: Coded
    reason: str
    metric: float | None
    error: float | None
    disagreement: float | None


def judged(
    setting: Setting, coded: Coded, source: float | None, *, look: bool, share: float
) -> Trial:
    """What a model misses of a share of the budget, if anything; outputs are looked at if asked.

    Args:
        setting: the source, samples and budget.
        coded: what is judged.
        source: the metric of the source.
        look: compare outputs.
        share: of the budget.
    """
    budget, judge = setting.budget, setting.judge
    reason, error, over, metric = "", None, None, None
    if judge is not None and look:
        outputs: list[Outputs]
        if setting.guard is None:
            outputs = list(run_each(coded.model, judge.probe, optimize=True))
        else:
            with setting.guard.opened(coded.model) as predict:
                outputs = [predict(feeds) for feeds in judge.probe]
        compared = compare_outputs(judge.source, [_own(judge.source[0], run) for run in outputs])
        error = compared.worst
        reason = compared.broken or budget.over_error(error / share)
        if setting.guard is not None and not reason:
            over = Judging(setting.guard, share).used(outputs)
            reason = _said(setting.guard, outputs, over, share) if over > 1 else ""
    if not reason:
        metric = metric_of(setting, coded.model)
        if source is not None and metric is not None:
            reason = budget.over_drop(source, source - (source - metric) / share)
    return Trial(coded, reason, metric, error, over)


def _own(expected: Outputs, run: Outputs) -> Outputs:
    """The outputs of the model alone, without what is judged in their stead."""
    return {name: run[name] for name in expected}


def _said(guard: Guard, outputs: Sequence[Outputs], over: float, share: float) -> str:
    """Why outputs that use so much of the limits are over them."""
    name, worst = max(guard.judge(outputs, share).items(), key=lambda item: item[1].over)
    if worst.over > 1:
        return f"{name} says something else: {worst}"
    many = f"{over:.2g} times what may"
    return f"other inputs are likely to say something else: {many}; give more samples, or a limit"


def metric_of(setting: Setting, model: ir.Model) -> float | None:
    """What the budget's `evaluate` says of a model; None without."""
    evaluate = setting.budget.evaluation
    if evaluate is None:
        return None
    with opened(model) as predict:
        try:
            return float(evaluate(predict))
        except Exception as error:
            raise PassError(f"the evaluation function raised {described(error)}") from error
