"""Mixed precision: which nodes stay float so that budget and guard are met, found by measuring.

Each unit (what reads one activation) is made integer alone, and how far that moves the outputs is
measured (`graphopt.calibration.sensitivity`). Units go back to float in the order of movement
bought per multiply-accumulate lost; the smallest number of them that meets the budget is found by
halving, each candidate measured as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import onnx_ir as ir
from graphopt.passes.int8.plan import Plan, Quantize

from graphopt.analyses.cost import cost
from graphopt.calibration.sensitivity import sensitivities
from graphopt.context import Context
from graphopt.execution.runtime import opened, run_each
from graphopt.knapsack import marginal_steps
from graphopt.verification.outputs import compare_outputs

__all__ = ["FACT", "float_nodes", "meets_budget", "unit_sensitivities"]

#: Nodes that become integer together, by name.
Unit = tuple[str, ...]
#: The name of the decisions in the recipe.
FACT = "int8.precision"
#: Runs of samples that errors are measured on: all of them, and of single units.
RUNS, UNIT_RUNS = 16, 2


def float_nodes(
    model: ir.Model, ctx: Context, plan: Plan, slow: Mapping[str, str], quantize: Quantize
) -> dict[str, str]:
    """Nodes of `plan` to leave in float for the budget's sake, by name, and why."""
    if FACT in ctx.facts:
        return dict(ctx.facts[FACT])
    if not _limited(ctx) or not len(plan):
        return {}
    search = _Search(model, ctx, quantize, slow)
    found = search.run(plan)
    ctx.facts[FACT] = found
    return found


def meets_budget(model: ir.Model, integer: ir.Model, ctx: Context) -> bool:
    """Whether `integer`, made of `model`, is within the budget's limits of error and metric."""
    return not _limited(ctx) or _Search(model, ctx, lambda m, d: Plan(), {}).accepts(integer)


def _limited(ctx: Context) -> bool:
    budget = ctx.budget
    limited = budget is not None and not (budget.max_error is None and budget.max_drop is None)
    return (limited or ctx.disagreement is not None) and ctx.samples is not None


class _Search:
    def __init__(
        self, model: ir.Model, ctx: Context, quantize: Quantize, slow: Mapping[str, str]
    ) -> None:
        assert ctx.samples is not None
        self.model, self.ctx, self.quantize, self.slow = model, ctx, quantize, slow
        self.probe = list(islice(ctx.samples, RUNS))
        self.expected = list(run_each(model, self.probe))
        self.metric = self._metric(model)

    def run(self, plan: Plan) -> dict[str, str]:
        """Nothing if the budget is met, else the fewest units found that meet it."""
        if self._met({}):
            return {}
        moved = unit_sensitivities(self.model, self.ctx, plan, self.quantize, self.slow)
        if not moved:
            return {}
        ranked = self._ranked(moved)
        total = math.sqrt(sum(moved.values())) or 1.0

        def denied(units: Sequence[Unit]) -> dict[str, str]:
            text = "alone it makes {:.0%} of the error of int8"
            return {n: text.format(math.sqrt(moved[u]) / total) for u in units for n in u}

        low, high = 0, len(ranked)  # the budget is missed with `low` units back, met with `high`
        while high - low > 1:
            middle = (low + high) // 2
            if self._met(denied(ranked[:middle])):
                high = middle
            else:
                low = middle
        worst = max(ranked, key=lambda u: moved[u])
        self.ctx.note(
            f"{worst[0]} is the most sensitive to int8: alone it moves the outputs by "
            f"{math.sqrt(moved[worst]):.2g}."
        )
        self.ctx.note(
            f"{high} of {len(ranked)} int8 units went back to float, so that "
            "the outputs still say what they have to."
        )
        return denied(ranked[:high])

    def _ranked(self, moved: Mapping[Unit, float]) -> list[Unit]:
        """Units in the order of movement bought per multiply-accumulate lost."""
        macs = self.ctx.get(cost).nodes
        left = {u: sum(macs[n].macs or 0 for n in u if n in macs) + 1 for u in sorted(moved)}
        ranked = []

        def price(unit: Unit) -> float | None:
            return -moved[unit] / left[unit] if unit in left else None

        for unit in marginal_steps(list(left), price):
            ranked.append(unit)
            del left[unit]
        return ranked

    def _met(self, denied: Mapping[str, str]) -> bool:
        made = self.model.clone()
        self.quantize(made, {**self.slow, **denied})
        return self.accepts(made)

    def accepts(self, made: ir.Model) -> bool:
        """Whether the integer model `made` is within the budget."""
        if self.ctx.disagreement is not None and self.ctx.disagreement(made) > 1:
            return False
        budget = self.ctx.budget
        if budget is None:
            return True
        if budget.max_error is not None:
            found = compare_outputs(self.expected, run_each(made, self.probe))
            if found.worst > budget.max_error:
                return False
        if budget.max_drop is None:
            return True
        return self.metric - self._metric(made) <= budget.max_drop

    def _metric(self, model: ir.Model) -> float:
        budget = self.ctx.budget
        if budget is None or budget.max_drop is None or budget.evaluation is None:
            return 0.0
        with opened(model) as predict:
            return float(budget.evaluation(predict))


def unit_sensitivities(
    model: ir.Model, ctx: Context, plan: Plan, quantize: Quantize, slow: Mapping[str, str]
) -> dict[Unit, float]:
    """How far each unit of `plan`, made integer alone, moves the outputs on the first samples."""
    assert ctx.samples is not None
    every = {n.name: "another unit" for n in plan.modes() if n.name}
    units = [tuple(n.name for n in u if n.name and n.name not in slow) for u in _units(plan)]

    def changes() -> Iterator[tuple[Unit, ir.Model]]:
        for names in ctx.track(units, len(units), "measuring the error of single layers"):
            if names:
                made = model.clone()
                others = {n: why for n, why in every.items() if n not in names}
                quantize(made, {**others, **slow})
                yield names, made

    return sensitivities(model, list(islice(ctx.samples, UNIT_RUNS)), changes())


def _units(plan: Plan) -> list[list[ir.Node]]:
    """Products that share an activation are one unit; static followers are none."""
    shared: dict[Any, list[ir.Node]] = {}
    for node in plan.dynamic:
        shared.setdefault(node.inputs[0], []).append(node)
    units = [[n] for n, k in plan.nodes.items() if k.weight is not None]
    return [*units, *shared.values(), *([n] for n in (*plan.recurrent, *plan.tables))]
