"""Measured gains: integer nodes are timed beside what they replace, and losers stay float.

Products and LSTMs are cut out and timed alone, once for each kind (operator and shapes): they are
many and alike. What is static hangs together, so it is timed inside the model: first all of it,
then without one class of nodes after the other (depthwise convolutions, sums, ...), keeping what is
faster. So are lookups: alone, integer rows always take longer than a copy, but few microseconds of
a model weigh little beside three quarters of a table. Where the guard then leaves some of a region
in float, the borders between the two are new work: what is left is timed once more.
`Context.faster` times, and its answers go into the recipe; a replay repeats them and times nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir
from graphopt.passes.int8.dynamic import addend_after
from graphopt.passes.int8.operators import describe
from graphopt.passes.int8.plan import CORE, POOLS, Choice, Plan, Quantize

from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.shapes.analysis import bound_shapes
from graphopt.context import Context, Pair
from graphopt.graph.constants import weight_of
from graphopt.measuring.parts import cut_out
from graphopt.samples import synthetic

__all__ = ["SLOWER", "gains_in_blocks", "slower_nodes", "worth_their_borders"]

#: Share of the time for one comparison that a pair inside the model gets.
INSIDE = 0.3
#: A class of nodes is taken back for a gain above this; lookups, which save bytes, for more.
GAIN, LOOKUPS_GAIN = 0.99, 0.95
LOOKUPS = "lookups"
#: Rows up to which a product in blocks of 8 bits gains where it is not timed: one row of 768 by
#: 768 takes 0.65 times the time of floats, 16 take 1.5 times, 128 take 2.8 (Zen 3, 1 thread).
FEW_ROWS = 8
#: Elements of a row, and of all, from which on an unfolded convolution gains where it is not timed.
LONG, LARGE = 256, 1 << 14
#: Everything that may be, in integers.
DRAFT = Choice()
SLOWER = "integers are slower there than float"


def slower_nodes(model: ir.Model, ctx: Context, plan: Plan, quantize: Quantize) -> dict[str, str]:
    """Nodes of `plan` to leave in float, by name, and why. `model` is not changed."""
    return _Trials(model, ctx, plan, quantize).run() if ctx.timed and len(plan) else {}


def worth_their_borders(
    model: ir.Model, ctx: Context, plan: Plan, chosen: Choice, quantize: Quantize
) -> Choice:
    """`chosen`, but with the static nodes of `plan` in float where that is faster."""
    if not ctx.timed or not plan.nodes:
        return chosen
    floats = {**chosen.left, **{n.name: SLOWER for n in plan.nodes if n.name}}
    without = dataclasses.replace(chosen, left=floats)
    ratio = _Trials(model, ctx, plan, quantize).compared("int8 beside float", without, chosen)
    return chosen if ratio is None or ratio <= 1 else without


def gains_in_blocks(
    model: ir.Model, ctx: Context, nodes: Sequence[ir.Node], quantize: Quantize
) -> set[ir.Node]:
    """Those of `nodes`, of which the target has a product in blocks, that are no slower as that.

    Not timed, a product gains with up to `FEW_ROWS` rows, or if how many is not known (in loops),
    and a convolution, which is unfolded for it, from rows of `LONG` elements on where the matrix is
    `LARGE`, but for one over all places of an image, which are many.
    """
    if not nodes:
        return set()
    trials = _Trials(model, ctx, Plan(), quantize)
    return {n for n in nodes if trials.gains_in_blocks(n)}


class _Trials:
    def __init__(self, model: ir.Model, ctx: Context, plan: Plan, quantize: Quantize) -> None:
        self.model, self.ctx, self.plan, self.quantize = model, ctx, plan, quantize
        self.bound, _ = bind_shapes(model, ctx.shapes)
        self.shapes = bound_shapes(model, self.bound)
        self.slow: dict[str, str] = {}

    def gains_in_blocks(self, node: ir.Node) -> bool:
        first, product = node.inputs[0], node.op_type != "Conv"
        form = self.shapes.static(first) if first is not None and product else None
        if self.ctx.timed and not (product and form is None):
            blocks = Choice(forms={node.name or "": "blocks"})
            ratio = self.ctx.faster(
                f"int8 blocks {self.signature(node)}",
                lambda: self.alone([node], [node.outputs[0]], blocks),
            )
            return ratio is not None and ratio <= 1
        if product:
            return form is None or math.prod(form[:-1]) <= FEW_ROWS
        weight = weight_of(node.inputs[1])
        shape = weight.shape if weight is not None else (0, 0)
        image = len(shape) > 3 and max(shape[2:]) == 1
        return math.prod(shape[1:]) >= LONG and math.prod(shape) >= LARGE and not image

    def run(self) -> dict[str, str]:
        """Products first, then classes of nodes, then all against the float model."""
        units = _units(self.plan)
        text = "timing integer products"
        for key, nodes, cut in self.ctx.track(units, len(units), text):
            what = " ".join(("int8", key, *(self.signature(n) for n in nodes)))
            ratio = self.ctx.faster(what, lambda n=nodes, c=cut: self.alone(n, c))  # type: ignore[misc]
            if ratio is not None and ratio > 1:
                self._drop(nodes)
        if self.plan.nodes or self.plan.tables:
            self._by_class()
        elif len(self.slow) < len(self.plan):
            self._whole()
        return self.slow

    def _drop(self, nodes: Iterable[ir.Node]) -> None:
        self.slow.update((n.name, SLOWER) for n in nodes if n.name)

    # --- cut out ----------------------------------------------------------------------------

    def signature(self, node: ir.Node) -> str:
        shapes = [self.shapes.static(v) if v is not None else None for v in node.inputs]
        return f"{node.op_type} {' '.join(str(list(s)) if s else '?' for s in shapes)}"

    def alone(
        self, nodes: list[ir.Node], outputs: list[ir.Value], chosen: Choice = DRAFT
    ) -> Pair | None:
        """These nodes alone, as floats and as integers."""
        cut = cut_out(self.model, nodes, outputs, self._form)
        if cut is None:
            return None
        integer = cut[0].clone()
        return (cut[0], integer, cut[1]) if len(self.quantize(integer, chosen)) else None

    def _form(self, value: ir.Value) -> tuple[tuple[int, ...], ir.DataType] | None:
        shape, dtype = self.shapes.static(value), self.shapes.dtype(value)
        return None if shape is None or dtype is None else (shape, dtype)

    # --- inside the model -------------------------------------------------------------------

    def _by_class(self) -> None:
        classes = _classes(self.plan)
        text = "timing integer regions"
        for name, nodes in self.ctx.track(classes.items(), len(classes), text):
            worth = LOOKUPS_GAIN if name == LOOKUPS else GAIN
            trial = {**self.slow, **{n.name: SLOWER for n in nodes if n.name}}
            ratio = self._inside(f"int8 without {name}", self.slow, trial)
            if ratio is not None and ratio < worth:
                self.slow = trial
        self._whole()

    def _whole(self) -> None:
        """Against the float model: static nodes go back to float if that is faster, then all."""
        ratio = self._inside("int8 of the model", None, self.slow)
        if ratio is None or ratio <= 1:
            return
        if self.plan.nodes:
            self._drop(self.plan.nodes)
            if len(self.slow) == len(self.plan):
                return
            ratio = self._inside("int8 of products alone", None, self.slow)
            if ratio is None or ratio <= 1:
                return
        self._drop(self.plan.modes())

    def _inside(
        self, what: str, before: Mapping[str, str] | None, after: Mapping[str, str]
    ) -> float | None:
        """Time with these nodes in float over time with those (None: with all) in float."""

        build = None if before is None else Choice(before)
        return self.compared(what, build, Choice(after))

    def compared(self, what: str, before: Choice | None, after: Choice) -> float | None:
        """Time of the model made as `after` says over that of `before` (None: the float model)."""

        def pair() -> Pair:
            feeds = next(iter(synthetic(self.model, seed=self.ctx.seed, shapes=self.bound)))
            a = self.model if before is None else self._build(before)
            return a, self._build(after), feeds

        return self.ctx.faster(what, pair, share=INSIDE, remembered=False)

    def _build(self, chosen: Choice) -> ir.Model:
        made = self.model.clone()
        self.quantize(made, chosen)
        return made


def _units(plan: Plan) -> list[tuple[str, list[ir.Node], list[ir.Value]]]:
    """What is timed alone: products that share an activation, LSTMs; and their results."""
    groups: dict[ir.Value | None, list[ir.Node]] = {}
    for node in plan.dynamic:
        groups.setdefault(node.inputs[0], []).append(node)
    units: list[tuple[str, list[ir.Node], list[ir.Value]]] = []
    for nodes in groups.values():
        adds = [addend_after(n) for n in nodes]
        ends = [n if a is None else a[0] for n, a in zip(nodes, adds, strict=True)]
        key = "".join("+" if a else "." for a in adds)
        units.append((key, nodes, [n.outputs[0] for n in ends]))
    for node in plan.recurrent:
        units.append((node.op_type, [node], [o for o in node.outputs if o.name and o.uses()]))
    return units


def _classes(plan: Plan) -> dict[str, list[ir.Node]]:
    """Nodes that are likely to win or lose together; the bulk of the work comes last."""
    found: dict[str, list[ir.Node]] = {}
    for node in plan.nodes:
        found.setdefault(_class(node), []).append(node)
    if len(found) == 1:
        found.clear()  # without them there is nothing static: that is the last comparison
    if plan.tables and len(plan) > len(plan.tables):
        found[LOOKUPS] = list(plan.tables)
    return dict(sorted(found.items(), key=lambda item: item[0] in ("convolutions", "products")))


def _class(node: ir.Node) -> str:
    if node.op_type == "Conv":
        weight = weight_of(node.inputs[1])
        shape = weight.shape if weight is not None else ()
        if node.attributes.get_int("group", 1) > 1:
            return "depthwise convolutions" if shape[1] == 1 else "grouped convolutions"
        return "convolutions of few channels" if shape[1] <= 4 else "convolutions"
    if node.op_type in CORE:
        return "products"
    if node.op_type in POOLS:
        return "pools"
    kind = describe(node)
    moves = kind is not None and not isinstance(kind, str) and kind.output == "same"
    return "moves" if moves else f"{node.op_type} nodes"
