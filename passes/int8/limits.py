"""Limits of a quantization: whether the guard and the budget stand an integer model."""

from __future__ import annotations

from itertools import islice

import onnx_ir as ir
from graphopt.passes.int8.plan import Choice, Plan, Quantize
from graphopt.passes.int8.unit_sensitivity import folds, folds_of

from graphopt.budget import Budget
from graphopt.context import Context
from graphopt.execution.runtime import opened, run_each
from graphopt.verification.comparison import compare_outputs

__all__ = ["Limits", "limited", "meets_budget"]

#: Runs of samples that errors are measured on.
RUNS = 16


def meets_budget(model: ir.Model, integer: ir.Model, ctx: Context) -> bool:
    """Whether `integer`, made of `model`, is within the budget's limits of error and metric."""
    if ctx.referee is not None and ctx.referee.over([integer]) > 1:
        return False
    return not limited(ctx) or Limits(model, ctx, lambda *_: Plan()).accepts(integer)


def limited(ctx: Context) -> bool:
    """Whether there is anything to hold a model to: a limit and samples."""
    return (_given(ctx.budget) or ctx.referee is not None) and ctx.samples is not None


def _given(budget: Budget | None) -> bool:
    """Whether there is a limit of error or of the metric."""
    return budget is not None and not (budget.max_error is None and budget.max_drop is None)


class Limits:
    """The model as it was on a few runs, and what quantized ones are held to.

    Args:
        model: what is quantized; it is not changed.
        ctx: budget, guard and samples.
        quantize: makes the integer model of a choice.
    """

    def __init__(self, model: ir.Model, ctx: Context, quantize: Quantize) -> None:
        assert ctx.samples is not None
        self.model, self.ctx, self.quantize = model, ctx, quantize
        self.probe = list(islice(ctx.samples, RUNS))
        self.expected = list(run_each(model, self.probe))
        self.metric = self._metric(model)

    def met(self, chosen: Choice) -> bool:
        """Whether this is within the guard on samples that ranges do not know, and the budget.

        So must be what is made in the end, with ranges that know them all: it is judged once more.
        """
        referee = self.ctx.referee
        if referee is not None and referee.over(self.folds(chosen)) > 1:
            return False
        if referee is not None and folds_of(self.ctx) and referee.over([self._made(chosen)]) > 1:
            return False
        return not _given(self.ctx.budget) or self.accepts(self._made(chosen))

    def folds(self, chosen: Choice) -> list[ir.Model]:
        """A model for each part of the samples, made without it."""
        return folds(self.model, self.ctx, chosen, self.quantize)

    def accepts(self, made: ir.Model) -> bool:
        """Whether the integer model `made` is within the budget."""
        budget = self.ctx.budget
        if budget is None:
            return True
        if budget.max_error is not None:
            as_deployed = run_each(made, self.probe, optimize=True)
            found = compare_outputs(self.expected, as_deployed)
            if found.worst > budget.max_error:
                return False
        if budget.max_drop is None:
            return True
        return self.metric - self._metric(made) <= budget.max_drop

    def _made(self, chosen: Choice) -> ir.Model:
        made = self.model.clone()
        self.quantize(made, chosen)
        return made

    def _metric(self, model: ir.Model) -> float:
        budget = self.ctx.budget
        if budget is None or budget.max_drop is None or budget.evaluation is None:
            return 0.0
        with opened(model) as predict:
            return float(budget.evaluation(predict))
