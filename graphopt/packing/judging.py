"""Judging a coded model as it would be decoded: its outputs, its metric, the budget."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from graphopt.blame import described
from graphopt.errors import PassError
from graphopt.execution.runtime import opened, run_each
from graphopt.packing.coding import Coded
from graphopt.pipeline.prepare import Setting
from graphopt.verification.outputs import compare_outputs

__all__ = ["Trial", "judged", "metric_of"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a coded model misses of the budget ("" if nothing), and its figures."""

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
        outputs = list(run_each(coded.model, judge.probe, optimize=True))
        compared = compare_outputs(judge.source, outputs)
        error = compared.worst
        reason = compared.broken or budget.over_error(error / share)
        if setting.guard is not None and not reason:
            name, worst = max(setting.guard.judge(outputs).items(), key=lambda item: item[1].over)
            over = worst.over
            reason = f"{name} says something else: {worst}" if over > share else ""
    if not reason:
        metric = metric_of(setting, coded.model)
        if source is not None and metric is not None:
            reason = budget.over_drop(source, source - (source - metric) / share)
    return Trial(coded, reason, metric, error, over)


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
