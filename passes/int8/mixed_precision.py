"""Mixed precision: what every node becomes so that budget and guard are met, found by measuring.

Each unit (what reads one activation) is made integer alone, and how far that moves the model
towards its limits is measured: by the guard's own measure where a guard judges
(`graphopt.verification.strain`), else by the squared error of the outputs. How much all may move
it together is found by halving, each candidate measured as a whole: units are taken by their
multiply-accumulates for movement wherever they fit, the others go back to float. Then those that
went back are offered again, all of them, halves, quarters: what spoiled the model may be few of
them. Products are offered to be quantized at run time first, since ranges of each run have no
outliers of others, and then block by block, since blocks have none of the rest of their row.
Meanwhile what stays float has its weights in 16 bits, which spoil nothing: integers that compute
come before integers that lie in the file. Then those have as few bits as the rest allows.

Where the target has activations of 16 bits, these come before float: all of the model gets them,
and then the stages that bear 8 bits go back, the least sensitive first, by halving.

Before all that: where everything in integers is too much, ranges fitted to their readers and
weights rounded to the nearest are tried, and what strains least is where the search starts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import onnx_ir as ir
from graphopt.passes.int8.everywhere import WIDE, stages
from graphopt.passes.int8.limits import Limits, limited
from graphopt.passes.int8.plan import Choice, Plan, Quantize, reads_blocks
from graphopt.passes.int8.speed import gains_in_blocks
from graphopt.passes.int8.stored import weights_to_store
from graphopt.passes.int8.unit_sensitivity import (
    Unit,
    measured_on,
    movements,
    unit_sensitivities,
)

from graphopt.analyses.cost import cost
from graphopt.analyses.shapes.analysis import shapes
from graphopt.budget import Budget
from graphopt.context import Context
from graphopt.graph.constants import weight_of
from graphopt.graph.traverse import all_nodes
from graphopt.knapsack import left_out, marginal_steps
from graphopt.samples import Samples

__all__ = ["FACT", "choose"]

#: The name of the decisions in the recipe.
FACT = "int8.precision"
#: Whole models that are measured while units are offered again.
OFFERS = 12
#: Error on invented inputs beyond which integers are doubted: outputs that move by a tenth of how
#: far they spread are seldom safe on others. Of pictures, whose range is known, that half of it is
#: wrong on the very inputs that the ranges come from.
DOUBT, HALF = 0.1, 0.5
#: Integers that do less of the work than this are not worth weights of 16 bits elsewhere.
LITTLE = 0.1


def choose(
    model: ir.Model,
    ctx: Context,
    plan: Plan,
    slow: Mapping[str, str],
    quantize: Quantize,
    invented: Samples | None = None,
) -> Choice:
    """What becomes of the nodes of `plan`, for the sake of budget and guard.

    Without samples, on `invented` inputs: a range that is found in each run may still be far wider
    than most of what is in it (powers of a spectrum, of which the logarithm is taken).
    """
    if invented is not None and (ctx.samples is None or ctx.samples.synthetic):
        kept = ctx.samples, ctx.budget
        limit = DOUBT if ctx.samples is None else HALF
        ctx.samples, ctx.budget = ctx.samples or invented, _doubting(ctx.budget, limit)
        try:
            return choose(model, ctx, plan, slow, quantize)
        finally:
            ctx.samples, ctx.budget = kept
    if FACT in ctx.facts:
        known = ctx.facts[FACT]
        return Choice(**{**known, "left": {**slow, **known["left"]}})
    if not limited(ctx) or not (len(plan) or plan.stored):
        return Choice(slow)
    chosen = _Search(model, ctx, quantize, slow).run(plan)
    left = {n: why for n, why in chosen.left.items() if n not in slow}
    ctx.facts[FACT] = {**dataclasses.asdict(chosen), "left": left}
    return chosen


def _doubting(budget: Budget | None, limit: float) -> Budget:
    """A limit of error where the user neither gave one nor lifted them all."""
    budget = budget or Budget()
    settled = budget.guard is None or budget.max_error is not None or budget.max_drop is not None
    return budget if settled else dataclasses.replace(budget, max_error=limit)


class _Search:
    def __init__(
        self, model: ir.Model, ctx: Context, quantize: Quantize, slow: Mapping[str, str]
    ) -> None:
        self.model, self.ctx, self.quantize, self.slow = model, ctx, quantize, slow
        self.limits = Limits(model, ctx, quantize)

    def run(self, plan: Plan) -> Choice:
        """Everything if the budget is met, else the most that was found to meet it."""
        if self.limits.met(Choice(self.slow)):
            return Choice(self.slow)
        if self.ctx.target.int8 is not None and self.ctx.target.int8.wide:
            return self._widened(plan)
        start = self._start(plan)
        if start != Choice(self.slow) and self.limits.met(start):
            return start
        return self._narrowed(plan, start)

    def _widened(self, plan: Plan) -> Choice:
        """Activations of 16 bits as few as the budget asks for; where they do not do, floats."""
        every = stages(plan)

        def with_16(wide: Sequence[Unit]) -> Choice:
            return Choice(self.slow, forms={n: WIDE for u in wide for n in u})

        if not self.limits.met(with_16(every)):
            return self._narrowed(plan, with_16(every))

        def alone(stage: Unit) -> Choice:
            return with_16([u for u in every if u != stage])

        moved = movements(self.model, self.ctx, every, alone, self.quantize)
        ranked = sorted(every, key=lambda u: -moved[u])
        count = self._fewest(len(ranked), lambda k: with_16(ranked[:k]))
        self.ctx.note(
            f"{count} of {len(ranked)} stages have activations of 16 bits, so that the outputs "
            f"still say what they have to; {ranked[0][0]} is the most sensitive to 8 bits."
        )
        return with_16(ranked[:count])

    def _narrowed(self, plan: Plan, start: Choice) -> Choice:
        """With as many units in integers as the budget allows, the others in float."""
        moved = unit_sensitivities(self.model, self.ctx, plan, self.quantize, start)
        ranked = self._ranked(moved)
        total = math.sqrt(sum(moved.values())) or 1.0
        text = "alone it makes {:.0%} of the error of int8"
        reasons = {n: text.format(math.sqrt(e) / total) for u, e in moved.items() for n in u}
        nodes = all_nodes(self.model.graph)
        wide = {n.name: 16 for n in nodes if n.name and weights_to_store(n)}
        start = dataclasses.replace(start, bits=wide)

        def without(units: Sequence[Unit]) -> Choice:
            left = {n: reasons[n] for u in units for n in u}
            return dataclasses.replace(start, left={**start.left, **left})

        if not self.limits.met(without(ranked)):
            start = dataclasses.replace(start, bits=dict.fromkeys(wide, 0))
        backs = left_out(ranked[::-1], moved)
        back = backs[self._fewest(len(backs) - 1, lambda k: without(backs[k]))]
        left, forms = self._offered(plan, without, back, moved)
        if left:
            worst = max(left, key=lambda u: moved[u])
            self.ctx.note(
                f"{worst[0]} is the most sensitive to int8: alone it makes "
                f"{math.sqrt(moved[worst]) / total:.0%} of its error."
            )
            self.ctx.note(
                f"{len(left)} of {len(ranked)} int8 units went back to float, so that "
                "the outputs still say what they have to."
            )
        chosen = dataclasses.replace(without(left), forms={**start.forms, **forms})
        if not any(start.bits.values()):
            return chosen
        chosen = self._stored(chosen)
        if left and len(left) < len(ranked) and self._share(set(ranked) - set(left)) < LITTLE:
            idle = self._stored(without(ranked))  # what they use of the limit may store more
            if sum(idle.bits.values()) < sum(chosen.bits.values()):
                return idle
        return chosen

    def _share(self, units: Collection[Unit]) -> float:
        """The share of the model's multiply-accumulates that these units do."""
        macs = {name: c.macs or 0 for name, c in self.ctx.get(cost).nodes.items()}
        inside = sum(macs.get(n, 0) for u in units for n in u)
        return inside / max(sum(macs.values()), 1)

    def _start(self, plan: Plan) -> Choice:
        """All of it in integers, in the way that strains least; gates may stay float."""
        every = Choice(self.slow)
        if self.ctx.referee is None:
            return every
        gates = [n.name for n, kind in plan.nodes.items() if kind.fixed is not None and n.name]
        text = "its rounding moves the outputs more than it saves"
        lefts = [{}, dict.fromkeys(gates, text)] if gates else [{}]
        ways = [
            dataclasses.replace(every, left={**self.slow, **left}, fitted=fitted, nearest=nearest)
            for left in lefts
            for fitted in (False, True)
            for nearest in (False, True)
        ]
        on = measured_on(self.ctx)
        strains = [self.ctx.referee.strain(self.limits.folds(way), *on) for way in ways]
        return min(zip(strains, range(len(ways)), ways, strict=True))[2]

    def _fewest(self, most: int, chosen: Callable[[int], Choice]) -> int:
        """The least k > 0 found whose choice meets the budget, where that of `most` does."""
        low, high = 0, most  # the budget is missed with `low` units back, met with `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.limits.met(chosen(middle)) else (middle, high)
        return high

    def _offered(
        self,
        plan: Plan,
        without: Callable[[Sequence[Unit]], Choice],
        back: Sequence[Unit],
        moved: Mapping[Unit, float],
    ) -> tuple[list[Unit], dict[str, str]]:
        """Units that stay float of those that went back, and the forms of those that do not."""
        left, forms = list(back), dict[str, str]()
        asked = {n for unit in back for n in unit}
        some = [n for n in (*plan.nodes, *plan.dynamic) if n.name in asked and self._in_blocks(n)]
        names = {
            "dynamic": {n.name for n, kind in plan.nodes.items() if kind.output == "either"},
            "blocks": {n.name for n in gains_in_blocks(self.model, self.ctx, some, self.quantize)},
        }
        offers = OFFERS
        assert self.ctx.target.int8 is not None
        static = self.ctx.target.int8.everywhere
        for form in ("",) if static else ("dynamic", "blocks", ""):
            able = [u for u in left if not form or names[form].issuperset(u)]
            groups = [able] if form and able else _halves(able)  # all of them is what has failed
            while groups and offers:
                group, *groups = groups
                rest = [u for u in left if u not in group]
                more = {n: form for u in group for n in u if form}
                offers -= 1
                trial = without(rest)
                if self.limits.met(
                    dataclasses.replace(trial, forms={**trial.forms, **forms, **more})
                ):
                    left, forms = rest, {**forms, **more}
                else:
                    groups += _halves(group)
        return left, forms

    def _in_blocks(self, node: ir.Node) -> bool:
        """Whether it can read its matrix in blocks: so many rows as it has are known to be rows."""
        (x, *_) = node.inputs
        rank = None if x is None else self.ctx.get(shapes).rank(x)
        return rank is not None and rank >= 2 and reads_blocks(node, self.ctx.target)

    def _stored(self, chosen: Choice) -> Choice:
        """With as few bits for the stored weights as the rest allows: 8, else 12, else 16."""
        stored = self.quantize(self.model.clone(), chosen).stored
        sizes = {(n.name or "",): _size(n, positions) for n, (positions, _) in stored.items()}
        if not sizes:
            return dataclasses.replace(chosen, bits={})
        every = {n for u in sizes for n in u}
        narrow = dataclasses.replace(chosen, bits={})
        if self.ctx.referee is not None:
            ways = [dataclasses.replace(narrow, nearest=n) for n in (False, True)]
            on = measured_on(self.ctx)
            strains = [self.ctx.referee.strain(self.limits.folds(way), *on) for way in ways]
            narrow = ways[strains[1] < strains[0]]
        if self.limits.met(narrow):
            return narrow

        def alone(unit: Unit) -> Choice:
            return dataclasses.replace(narrow, bits={n: 8 if n in unit else 16 for n in every})

        moved = movements(self.model, self.ctx, sizes, alone, self.quantize)
        ranked = sorted(sizes, key=lambda u: -moved[u] / max(sizes[u], 1))

        def wide(count: int, bits: int, others: int) -> Choice:
            chosen_ = {n: bits if k < count else others for k, u in enumerate(ranked) for n in u}
            return dataclasses.replace(narrow, bits=chosen_)

        steps = (12, 8) if self.limits.met(wide(len(ranked), 12, 8)) else (16, 12)
        return wide(self._fewest(len(ranked), lambda k: wide(k, *steps)), *steps)

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


def _halves(units: Sequence[Unit]) -> list[Sequence[Unit]]:
    middle = (len(units) + 1) // 2
    return [units[:middle], units[middle:]] if len(units) > 1 else []


def _size(node: ir.Node, positions: Sequence[int]) -> int:
    weights = [weight_of(node.inputs[k]) for k in positions]
    return sum(w.tensor.nbytes for w in weights if w is not None)
