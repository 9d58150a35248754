"""INT8 quantization, the pass: plan, calibrate, round weights, insert."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir
from graphopt.passes.clean.carried import hoist_invariants
from graphopt.passes.int8.applying import apply, drop_unused
from graphopt.passes.int8.calibrator_choice import best_ranges
from graphopt.passes.int8.constant_weights import settle_weights
from graphopt.passes.int8.equalization import balance
from graphopt.passes.int8.everywhere import float_values, plan_everywhere
from graphopt.passes.int8.halves import close_halves, open_halves
from graphopt.passes.int8.mixed_precision import choose
from graphopt.passes.int8.operators import FEW_BITS
from graphopt.passes.int8.plan import Choice, Mode, Plan, make_plan
from graphopt.passes.int8.plan_grids import make_grids, make_weights, observed
from graphopt.passes.int8.qat import Trained, trained_within_budget, why_not
from graphopt.passes.int8.requantize import form_of, open_quantized
from graphopt.passes.int8.rounding import Refined, learn, refine
from graphopt.passes.int8.speed import SLOWER, gains_in_blocks, slower_nodes, worth_their_borders
from graphopt.passes.int8.told import tell, why_nothing
from graphopt.passes.int8.unfuse import open_fused
from graphopt.passes.int8.unit_sensitivity import folds_of
from graphopt.passes.int8.writer import Writer

from graphopt.calibration.moments import Moments
from graphopt.calibration.ranges import METHODS, Method, Observed, Range, calibrate_folds
from graphopt.context import Context
from graphopt.layers import by_node, pattern_of
from graphopt.pass_ import Pass
from graphopt.rewriting.opset import raise_for
from graphopt.samples import many, of_unknown_scale, plausible
from graphopt.target import Int8Scheme

__all__ = ["Int8"]

#: What `layers` says of a node.
Form = Literal["float", "static", "dynamic"]
#: The forms that a search chooses among.
FORMS: tuple[Form, ...] = ("dynamic", "static")
Asked = Callable[[ir.Node], bool]
#: A peak above this many times the root mean square leaves the rest of a tensor few levels.
OUTLIER = 128.0
#: Values that exceed what other samples show by this factor are said.
HELD = 1.5
#: Per-channel DequantizeLinear is new in this opset.
OPSET = 13
#: Invented images that are enough for ranges.
IMAGES = 32


@dataclass(frozen=True)
class Int8(Pass):
    """Compute in 8-bit integers where the target gains from it, with ranges from samples.

    Attributes:
        calibrator: how ranges follow from samples: "minmax", "average", "percentile", "entropy"
            or "mse" (see `graphopt.calibration.ranges`), or "auto": for each activation the
            one of these that leaves the least error in what reads it.
        balance: scale activations against weights where that leaves less error (SmoothQuant,
            cross-layer equalization).
        refine: round each weight for what it multiplies on samples, and correct biases
            (`graphopt.passes.int8.rounding`).
        layers: (pattern, "float", "static" or "dynamic") pairs (`graphopt.layers`): nodes whose
            name matches stay float, or get their ranges from samples or at run time where they
            become integer; the first match counts.
        qat: train scales and weights through fake quantization on the float model's outputs
            (needs real samples, and the extra 'torch').
    """

    calibrator: Method = "minmax"
    balance: bool = True
    refine: bool = True
    layers: tuple[tuple[str, Form], ...] = ()
    qat: bool = False

    lossy: ClassVar[bool] = True
    compresses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.calibrator not in METHODS:
            raise ValueError(f"calibrator is one of {', '.join(METHODS)}, not {self.calibrator!r}")

    def choices(self, model: ir.Model, ctx: Context) -> dict[str, tuple[Form, ...]]:
        """How each node with a weight may become integer."""
        if ctx.target.int8 is None:
            return {}
        model = model.clone()
        open_halves(model, Context(model, target=ctx.target))
        open_fused(model, Context(model))
        settle_weights(model, Context(model))
        found: dict[str, list[Form]] = {}
        for form in FORMS if ctx.samples is not None else FORMS[:1]:
            forms = dict.fromkeys((n.name or "" for n in model.graph), form)
            plan = make_plan(
                model.graph, ctx.target, lambda *_: None, static=form == "static", forms=forms
            )
            able = plan.nodes if form == "static" else (*plan.dynamic, *plan.recurrent)
            for node in able:
                kind = plan.nodes.get(node)
                if kind is None or kind.weight is not None:
                    found.setdefault(pattern_of(node), []).append(form)
        return {name: tuple(forms) for name, forms in found.items()}

    def only(self, layers: tuple[tuple[str, Form], ...], others: Sequence[str] = ()) -> Int8:
        """Makes these nodes integer, and what lies between them."""
        return dataclasses.replace(self, layers=(*layers, *((n, "float") for n in others)))

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Quantize `model` in place; returns how many nodes became integer."""
        scheme = ctx.target.int8
        if scheme is None:
            because = f": {ctx.target.no_int8}" if ctx.target.no_int8 else ""
            ctx.note(f"{ctx.target.name} gains nothing from integers{because}.")
            if FEW_BITS in ctx.target.operators:
                ctx.note("weight_only stores weights in a few bits there.")
            return 0
        if self.qat and (reason := why_not(ctx)):
            ctx.refuse(self, "model", reason)
            return 0
        untouched = model.clone()
        settled = 0
        if (model.graph.opset_imports.get("") or 0) < OPSET:
            if not raise_for("int8", model, ctx, OPSET):
                return 0
            settled = 1
        drawn = ctx.samples
        if ctx.samples is not None and not ctx.samples.synthetic:
            ctx.samples, odd = plausible(ctx.samples, model)
            for text in odd:
                ctx.note(f"samples: {text}.")
        elif ctx.samples is not None:
            images = many(model, ctx.samples, seed=ctx.seed, images=IMAGES)
            any_will_do = ctx.samples.placeholders or not scheme.dynamic  # there is no other way
            scaleless = [] if any_will_do or images else of_unknown_scale(model)
            if scaleless:
                ctx.note(f"How large '{scaleless[0]}' is in use is not known.")
                ctx.samples = None
            else:
                where = "random inputs" if images is None else images.source
                told = "give real --samples, or accuracy may suffer."
                ctx.note(f"int8 found its ranges on {where}: {told}")
                ctx.samples = images or ctx.samples
        samples = ctx.samples
        if samples is None:
            ctx.note("Without --samples int8 quantizes only what needs no ranges.")
        halves = open_halves(model, ctx)
        given = self._opened(model, ctx, scheme)
        settled += hoist_invariants(model, ctx)
        weights = settle_weights(model, ctx)
        settled += (halves is not None) + bool(given) + open_fused(model, ctx) + weights.edits
        static = samples is not None or bool(given)
        forms = {n.name or "": f for n, f in by_node(self.layers, model.graph, "int8").items()}
        for node in model.graph if given else ():  # trained ranges are better than those of a run
            if node.inputs and node.inputs[0] is not None and node.inputs[0].name in given:
                forms.setdefault(node.name or "", "static")
        unknown = {n: "layers= says so" for n, form in forms.items() if form == "float"}

        def planned(graph: ir.Graph, chosen: Choice, asked: Asked = lambda _: True) -> Plan:
            def reason(node: ir.Node, mode: Mode) -> str | None:
                name = node.name or ""
                known = unknown.get(name) or chosen.left.get(name)
                return known or (None if asked(node) else "its edit was denied")

            modes = {**forms, **chosen.forms}
            if scheme.everywhere:
                floats = float_values(ctx)
                return plan_everywhere(graph, scheme, reason, lambda v: v.name in floats, modes)
            return make_plan(
                graph,
                ctx.target,
                reason,
                static=static,
                forms=modes,
                bits=lambda n: stored_bits(n.name or "", chosen) if asked(n) else 0,
            )

        def stored_bits(name: str, chosen: Choice) -> int:
            stays = forms.get(name) == "float" or name in weights.larger
            return 0 if stays else chosen.bits.get(name, 8)

        draft = planned(model.graph, Choice())
        while samples is None and (lost := _unseen(draft, given)):
            unknown.update(dict.fromkeys(lost, "its ranges are not known without samples"))
            draft = planned(model.graph, Choice())
        if self.balance and not given and (balanced := balance(model, ctx, draft)):
            settled += balanced
            draft = planned(model.graph, Choice())
        better = self.refine and samples is not None and not (samples.synthetic or self.qat)
        moments = learn(model, ctx, draft) if better else {}
        rounds: dict[tuple[bool, int | None], _Rounds] = {}

        def rounded(
            chosen: Choice, fold: int | None = None
        ) -> tuple[dict[str, Range], dict[str, Refined]]:
            key = chosen.fitted, fold
            if key not in rounds:
                method = "auto" if chosen.fitted else self.calibrator
                found = self._ranges(model, ctx, draft, given, method)
                for one, ranges in zip((None, *range(folds_of(ctx))), found, strict=True):
                    rounds[chosen.fitted, one] = _Rounds(ranges)
            rounds[key].refine(draft, scheme, moments)
            return rounds[key].ranges, {} if chosen.nearest else rounds[key].refined or {}

        rounded(Choice())

        def quantize(trial: ir.Model, chosen: Choice, fold: int | None = None) -> Plan:
            inside = Context(trial, target=ctx.target)
            made = planned(trial.graph, chosen)
            apply(trial, inside, made, *rounded(chosen, fold), scheme)
            return made

        slow = {**unknown, **slower_nodes(model, ctx, draft, quantize)}
        gaining = gains_in_blocks(model, ctx, draft.blocks, quantize)
        slow.update((n.name, SLOWER) for n in draft.blocks if n.name and n not in gaining)
        trained: Trained | None = None
        if self.qat:
            choice, trained = trained_within_budget(model, ctx, draft, slow, quantize)
        else:
            choice = choose(model, ctx, draft, slow, quantize, drawn)
            if len(choice.left) > len(slow):
                some = planned(model.graph, choice)
                choice = worth_their_borders(model, ctx, some, choice, quantize)
        plan = planned(model.graph, choice, lambda n: ctx.edit(self, n))
        weights.finish(plan.modes())
        plan.stored = {n: how for n, how in plan.stored.items() if n.graph is not None}
        tell(model, ctx, plan)
        if not (len(plan) or plan.stored or given):
            if settled:
                ctx.model = untouched  # what was opened and balanced was for integers
                ctx.edits.clear()
            else:
                drop_unused(model)
            ctx.invalidate()
            return ctx.nothing(why_nothing(untouched, plan))
        float_ = model.clone() if trained else model
        apply(model, ctx, plan, *rounded(choice), scheme)
        if trained:
            trained.put(model, float_, ctx)
        close_halves(model, halves or set())
        return settled + len(plan) + len(plan.stored)

    def _opened(self, model: ir.Model, ctx: Context, scheme: Int8Scheme) -> dict[str, Range]:
        """Open a model that is quantized in another form than the target's; returns its ranges."""
        form = form_of(model.graph)
        if form is None:
            return {}
        if form.suits(scheme):
            ctx.note(f"The model is quantized already ({form}), as the target wants it: kept.")
            return {}
        if not ctx.edit("Requantize", str(form)):
            return {}
        given = open_quantized(Writer(model, ctx))
        drop_unused(model)
        ctx.invalidate()
        ctx.note(
            f"The model was quantized already ({form}) in a form that is slow on "
            f"{ctx.target.name}: quantized anew, with the ranges it came with."
        )
        return given

    def _ranges(
        self,
        model: ir.Model,
        ctx: Context,
        draft: Plan,
        given: Mapping[str, Range],
        calibrator: Method,
    ) -> list[dict[str, Range]]:
        """The range of every activation that `draft` rounds; outliers are named in a note.

        Where folds are judged, then without each of those parts of the samples.
        """
        folds = folds_of(ctx)
        if ctx.samples is None:
            return [dict(given)] * (folds + 1)
        names = [n for n in observed(draft) if n not in given]
        found = calibrate_folds(model, names, ctx.samples, folds, calibrator, cache=ctx.cache)
        known = [{n: s for n, s in one.items() if s is not None} for one in found]
        _odd_ranges(ctx, known[0])
        if calibrator == "auto":
            best = best_ranges(model, ctx, draft, ctx.samples, known)
            return [{**given, **ranges} for ranges in best]
        return [{**given, **{n: s.range for n, s in one.items()}} for one in known]


def _odd_ranges(ctx: Context, known: Mapping[str, Observed]) -> None:
    """Say which values reach far, and whether ranges hold on samples that they do not know."""
    for name, seen in known.items():
        if seen.reach > OUTLIER:
            ctx.note(
                f"'{name}' reaches {seen.reach:.0f} times its usual size: 8 bits leave "
                "little for the rest; with a budget int8 keeps what it spoils in float."
            )
    beyond = {n: s.held for n, s in known.items() if s.held > HELD}
    if beyond:
        worst = max(beyond, key=lambda n: beyond[n])
        ctx.note(
            f"samples: {len(beyond)} of {len(known)} ranges found on four fifths of them do "
            f"not hold on the others ('{worst}' by {beyond[worst]:.1f} times): give more."
        )


@dataclasses.dataclass
class _Rounds:
    """How activations and weights are rounded: ranges, and integers chosen for them."""

    ranges: dict[str, Range]
    refined: dict[str, Refined] | None = None

    def refine(self, draft: Plan, scheme: Int8Scheme, moments: Mapping[str, Moments]) -> None:
        """Choose integers for what they multiply, where that is known and not yet done."""
        if self.refined is not None:
            return
        self.refined = {}
        if not moments:
            return
        grids = make_grids(draft, self.ranges, scheme)
        steps = {v.name or "": float(grid.scale) for v, grid in grids.items()}
        nearest = make_weights(draft, grids, scheme)
        top = 63 if scheme.reduce_range else 127
        self.refined = refine(draft, nearest, moments, steps, top)


def _unseen(plan: Plan, given: Mapping[str, Range]) -> list[str]:
    """Static nodes of `plan` that need a range which is not given."""
    lacking = set(observed(plan)) - set(given)
    return [
        node.name or ""
        for node, kind in plan.nodes.items()
        if any(
            v is not None and v.name in lacking
            for v in (*(node.inputs[i] for i in kind.data), *node.outputs, plan.output(node))
        )
    ]
