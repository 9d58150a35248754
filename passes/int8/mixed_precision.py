"""Mixed precision: which nodes must stay float so that the budget is met, found by measuring.

Each unit (what reads one activation) is made integer alone, and the error of the model's outputs is
its own error e_i. Errors of different units are nearly independent, so their squares add up:

    error of all  ~  sqrt(sum e_i^2)

Units go back to float in the order of e_i^2 bought per multiply-accumulate lost; the smallest
number of them that meets the budget is found by halving, each candidate measured as a whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import onnx_ir as ir
from graphopt.passes.int8.plan import Plan, Quantize

from graphopt.analyses.cost import cost
from graphopt.context import Context
from graphopt.execution.runtime import opened, run_each
from graphopt.verification.outputs import compare_outputs

__all__ = ["FACT", "Sensitivity", "float_nodes", "meets_budget", "sensitivities"]

#: The name of the decisions in the recipe.
FACT = "int8.precision"
#: Runs of samples that errors are measured on: all of them, and of single units.
RUNS, UNIT_RUNS = 16, 2


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """One unit made integer alone.

    Attributes:
        nodes: its nodes, by name.
        error: the worst output's relative L2 difference.
        macs: multiply-accumulates that become float if it is taken back.
    """

    nodes: tuple[str, ...]
    error: float
    macs: int


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
    return limited and ctx.samples is not None


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
        ranked = sorted(
            sensitivities(self.model, self.ctx, plan, self.quantize, self.slow),
            key=lambda s: (-(s.error**2) / (s.macs + 1), s.nodes),
        )
        if not ranked:
            return {}
        total = math.sqrt(sum(s.error**2 for s in ranked)) or 1.0
        low, high = 0, len(ranked)  # the budget is missed with `low` units back, met with `high`
        while high - low > 1:
            middle = (low + high) // 2
            if self._met(_denied(ranked[:middle], total)):
                high = middle
            else:
                low = middle
        worst = max(ranked, key=lambda s: s.error)
        self.ctx.note(
            f"{worst.nodes[0]} is the most sensitive to int8: alone it moves the outputs by "
            f"{worst.error:.2g}."
        )
        self.ctx.note(f"{high} of {len(ranked)} int8 units went back to float for the budget.")
        return _denied(ranked[:high], total)

    def _met(self, denied: Mapping[str, str]) -> bool:
        made = self.model.clone()
        self.quantize(made, {**self.slow, **denied})
        return self.accepts(made)

    def accepts(self, made: ir.Model) -> bool:
        """Whether the integer model `made` is within the budget."""
        budget = self.ctx.budget
        assert budget is not None
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


def sensitivities(
    model: ir.Model, ctx: Context, plan: Plan, quantize: Quantize, slow: Mapping[str, str]
) -> list[Sensitivity]:
    """The error that each unit of `plan` makes alone, on the first samples."""
    assert ctx.samples is not None
    probe = list(islice(ctx.samples, UNIT_RUNS))
    expected = list(run_each(model, probe))
    macs = ctx.get(cost).nodes
    every = {n.name: "another unit" for n in plan.modes() if n.name}
    units = _units(plan)
    out = []
    for unit in ctx.track(units, len(units), "measuring the error of single layers"):
        names = tuple(n.name for n in unit if n.name and n.name not in slow)
        if not names:
            continue
        made = model.clone()
        denied = {**every, **slow}
        for name in names:
            denied.pop(name, None)
        quantize(made, denied)
        error = compare_outputs(expected, run_each(made, probe)).worst
        spent = sum(macs[n].macs or 0 for n in names if n in macs)
        out.append(Sensitivity(names, error, spent))
    return out


def _units(plan: Plan) -> list[list[ir.Node]]:
    """Products that share an activation are one unit; static followers are none."""
    shared: dict[Any, list[ir.Node]] = {}
    for node in plan.dynamic:
        shared.setdefault(node.inputs[0], []).append(node)
    units = [[n] for n, k in plan.nodes.items() if k.weight is not None]
    return [*units, *shared.values(), *([n] for n in (*plan.recurrent, *plan.tables))]


def _denied(units: Sequence[Sensitivity], total: float) -> dict[str, str]:
    return {
        name: f"alone it makes {unit.error / total:.0%} of the error of int8"
        for unit in units
        for name in unit.nodes
    }
