"""Svd: write layers as two or three thinner ones where that is cheaper on the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import onnx_ir as ir
from graphopt.passes.svd.allocation import allot, cheapest
from graphopt.passes.svd.factorize import replace
from graphopt.passes.svd.layers import Layer, find
from graphopt.passes.svd.observed import again, observed, samples_of
from graphopt.passes.svd.pca import bases, narrow, streams
from graphopt.passes.svd.plan import (
    Curve,
    Finished,
    curve_of,
    finish,
    problem_of,
    saves,
    useful_ranks,
)
from graphopt.passes.svd.reasons import describe, ranks_of, too_small, why_not
from graphopt.passes.svd.sensitivity import sensitivities
from graphopt.passes.svd.speed import is_faster
from graphopt.passes.svd.stages import Candidate, Cost, Problem, original

from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.cost import cost, macs_of
from graphopt.analyses.shapes.analysis import bound_shapes
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.graph import provenance
from graphopt.graph.building import Names
from graphopt.layers import by_layer, names_of, pattern_of
from graphopt.pass_ import Pass

__all__ = ["Svd"]


#: A ratio below this, or an error of a tenth of it, is not tried where more cost too much.
LEAST = 0.03
#: Of the rank at which two factors save nothing, what a search chooses among.
SHARES = (0.75, 0.5, 0.35, 0.25)


@dataclasses.dataclass(frozen=True)
class Svd(Pass):
    """Low-rank factorization: x M -> (x A) B, and its forms for convolutions and recurrent layers.

    With samples, factors minimize the error of each layer's output; without, of its weight. One of
    `energy`, `error`, `ratio` and `rank` says how far to go; `energy` 0.99 if none does. Ranks are
    multiples of the target's channel multiple. Layers whose factors would not be cheaper (measured,
    where the target can be) are left alone.

    Attributes:
        energy: share of each layer's squared output to keep, 0 to 1.
        error: relative L2 error of each layer's output to allow.
        ratio: share of the whole model's MACs to remove, spent where it costs least error.
        rank: the rank of every layer.
        of: what `ratio` and cheapness count, "macs" or "params".
        fold: relative error at which an activation may be narrowed to the directions it spans, by
            folding their basis into the layers on both sides (needs samples); 0 turns that off.
        layers: (pattern, how far) pairs (`graphopt.layers`): layers of which a node's name matches
            get the rank (1 or more) or the error (below 1) given, or with 0 stay as they are; the
            first match counts.
    """

    energy: float | None = None
    error: float | None = None
    ratio: float | None = None
    rank: int | None = None
    of: Literal["macs", "params"] = "macs"
    fold: float = 0.01
    layers: tuple[tuple[str, float], ...] = ()

    lossy: ClassVar[bool] = True
    compresses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        given = [n for n in ("energy", "error", "ratio", "rank") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UsageError(f"svd takes one of energy, error, ratio and rank, not {given}")
        for name in ("energy", "error", "ratio", "fold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"svd({name}=...) must be between 0 and 1, not {value}")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"svd(rank=...) must be at least 1, not {self.rank}")
        for pattern, far in self.layers:
            if far < 0 or (far > 1 and far != int(far)):
                raise UsageError(f"svd: layers: '{pattern}' takes a rank or an error, not {far}")
        if self.of not in ("macs", "params"):
            raise UsageError(f'svd(of=...) is "macs" or "params", not {self.of!r}')

    def weaker(self) -> Svd | None:
        """Half the error or ratio; of energy, half of what is lost. A rank stays what it is."""
        if self.rank is not None:
            return None
        if self.ratio is not None:
            half = round(self.ratio / 2, 3)
            return dataclasses.replace(self, ratio=half) if half >= LEAST else None
        if self.error is not None:
            half = round(self.error / 2, 4)
            return dataclasses.replace(self, error=half) if half >= LEAST / 10 else None
        lost = (1 - (0.99 if self.energy is None else self.energy)) / 4
        return dataclasses.replace(self, energy=1 - lost) if lost >= 1e-4 else None

    def choices(self, model: ir.Model, ctx: Context) -> dict[str, tuple[float, ...]]:
        """Ranks that each layer may have: some of those at which two factors do less work."""
        multiple = ctx.target.channel_multiple
        found = {}
        for layer in find(model, Context(model, shapes=ctx.shapes), self):
            useful = useful_ranks(layer, saves(layer, self.of))
            ranks = {int(useful * share) // multiple * multiple for share in SHARES}
            if ranks := ranks - {0}:
                found[pattern_of(layer.node)] = tuple(map(float, sorted(ranks, reverse=True)))
        return found

    def only(self, layers: tuple[tuple[str, float], ...], others: Sequence[str] = ()) -> Svd:
        """Factors these layers and no other."""
        return dataclasses.replace(self, fold=0.0, layers=(*layers, ("*", 0.0)))

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Factor what pays; returns the number of layers factored."""
        heads = {provenance.why(n).partition(": ")[0] for n in model.graph.all_nodes()}
        if heads & {str(self), f"{self} pca"}:
            return ctx.nothing(f"{self} has run on this model before and has nothing to add")
        folded = self._fold(model, ctx)
        layers, given = self._layers(model, ctx)
        if self.ratio is None:
            chosen = self._each(layers, given, ctx)
        else:
            chosen = self._for_all(layers, given, ctx)
        names = Names(model)
        if chosen and samples_of(ctx) is None:
            ctx.note("svd: no samples given, so weights were approximated, not outputs.")
        edits = folded
        for made in chosen:
            layer = made.layer
            granted = [ctx.edit(self, use.node) for use in layer.uses]
            if not all(granted):
                continue
            why = describe(str(self), made)
            replace(
                model,
                layer,
                made.stages,
                made.shifts,
                why=why,
                pass_name=ctx.pass_name,
                names=names,
            )
            ctx.note(f"{why}.")
            edits += 1
        if not edits:
            cheaper = f"none of the {len(layers)} layers with weights would be cheaper as factors"
            return ctx.nothing(cheaper if layers else "no layer has weights to factor")
        ctx.invalidate(self.preserves)
        return edits

    def _layers(self, model: ir.Model, ctx: Context) -> tuple[list[Layer], dict[Layer, float]]:
        """The layers to factor, and how far for those that `layers` names."""
        found = find(model, ctx, self)
        names = {la: [n for u in la.uses for n in names_of(u.node)] for la in found}
        given = by_layer(self.layers, names, "svd")
        return [la for la in found if given.get(la) != 0], given

    def _fold(self, model: ir.Model, ctx: Context) -> int:
        """Narrow what streams can be; returns how many were."""
        samples = samples_of(ctx)
        if samples is None or not self.fold:
            return 0
        silent = Context(model, shapes=ctx.shapes)
        every, given = self._layers(model, silent)
        layers = [la for la in every if la.node.graph is model.graph and la not in given]
        names = Names(model)
        edits = 0
        multiple = ctx.target.channel_multiple
        for stream, basis, lost in bases(model, streams(layers), samples, self.fold**2, multiple):
            ends = dict.fromkeys(la.node for la in (*stream.writers, *stream.readers))
            granted = [ctx.edit("Pca", node) for node in ends]
            if not all(granted):
                continue
            text = f"{len(ends)} layers' channels narrowed from {stream.width} to {basis.shape[1]}"
            why = f"{self} pca: {text}, relative error {lost:.3g}"
            narrow(model, stream, basis, why, names)
            ctx.note(f"{why}, at {ctx.edits[-1].node}.")
            edits += 1
        if edits:
            ctx.invalidate(self.preserves)
        return edits

    # --- layer by layer ---------------------------------------------------------------------

    def _allowed(self) -> float:
        """Relative squared error a layer may have."""
        if self.error is not None:
            return self.error**2
        return 1 - (self.energy if self.energy is not None else 0.99)

    def _each(
        self, layers: Sequence[Layer], given: Mapping[Layer, float], ctx: Context
    ) -> list[Finished]:
        wanted = None if self.rank is not None or given else 1 - self._allowed()
        chosen = []
        for curve, problem in self._curves(layers, ctx, wanted):
            candidate = self._pick(curve, given.get(curve.layer), ctx)
            if candidate is None:
                continue
            made = finish(problem, curve, candidate)
            if self._measured(curve, made, ctx):
                chosen.append(made)
        order = {layer: i for i, layer in enumerate(layers)}
        return sorted(chosen, key=lambda made: order[made.layer])

    def _pick(self, curve: Curve, far: float | None, ctx: Context) -> Candidate | None:
        """The candidate of a layer: at the rank or within the error `far`, else as for all."""
        layer = curve.layer
        wanted, allowed = self.rank, self._allowed()
        if far is not None:
            wanted, allowed = (int(far), 0.0) if far >= 1 else (None, far**2)
        if wanted is not None:
            rank = -(-wanted // ctx.target.channel_multiple) * ctx.target.channel_multiple
            pair = (c for c in curve.candidates if c.scheme == "channel" and c.ranks == (rank,))
            found = next(pair, None)
            if found is None:
                ctx.refuse(self, layer.node, f"at rank {rank} its factors would not be cheaper")
            return found
        found = cheapest(curve.candidates, allowed, self.of)
        if found is None:
            ctx.refuse(self, layer.node, why_not(curve, allowed, self.of))
        return found

    def _measured(self, curve: Curve, made: Finished, ctx: Context) -> bool:
        if is_faster(made, ctx, curve.place) is not False:
            return True
        text = f"{made.candidate.scheme} factors of rank {ranks_of(made.candidate)}"
        ctx.refuse(self, curve.layer.node, f"{text} measured no faster on {ctx.target.name}")
        return False

    def _curves(
        self, layers: Sequence[Layer], ctx: Context, wanted: float | None
    ) -> Iterator[tuple[Curve, Problem]]:
        """Every layer's curve and numbers, one layer at a time."""
        seen = ctx.track(observed(layers, ctx), len(layers), "factoring layers")
        for layer, moments in seen:
            weigh = saves(layer, self.of)
            useful = useful_ranks(layer, weigh)
            if useful <= ctx.target.channel_multiple:
                ctx.refuse(self, layer.node, too_small(layer, self.of))
                continue
            problem, energies = problem_of(
                layer, moments, wanted=wanted, useful=useful, seed=ctx.seed
            )
            multiple = ctx.target.channel_multiple
            yield curve_of(problem, energies, moments, multiple, weigh), problem

    # --- the whole model --------------------------------------------------------------------

    def _for_all(
        self, layers: Sequence[Layer], given: Mapping[Layer, float], ctx: Context
    ) -> list[Finished]:
        assert self.ratio is not None
        curves = {c.layer: c for c, _ in self._curves(layers, ctx, None)}
        curves = {la: curves[la] for la in layers if la in curves}
        originals = {la: original(la) for la in curves}
        weights = dict.fromkeys(curves, 1.0)
        samples = samples_of(ctx)
        if samples is not None:
            spectra = {la: c.spectrum for la, c in curves.items()}
            weights |= sensitivities(ctx.model, spectra, samples)
        whole = whole_model(ctx)
        save = self.ratio * (whole.macs if self.of == "macs" else whole.params)
        able = {la: c.candidates for la, c in curves.items()}
        fixed = {la: self._pick(curves[la], far, ctx) for la, far in given.items() if la in curves}
        done: dict[Layer, Finished] = {}
        while True:
            chosen = {la: c for la, c in fixed.items() if c in able[la]}
            rest = {la: c for la, c in able.items() if la not in fixed}
            spent = sum(originals[la].of(self.of) - c.cost.of(self.of) for la, c in chosen.items())
            choice = {**chosen, **allot(rest, originals, weights, save - spent, self.of)}
            done = {la: d for la, d in done.items() if choice.get(la) is d.candidate}
            new = {la: c for la, c in choice.items() if la not in done}
            if not new:
                break
            for layer, moments in ctx.track(again(new, ctx), len(new), "factoring chosen layers"):
                curve, candidate = curves[layer], new[layer]
                problem, _ = problem_of(
                    layer, moments, wanted=None, useful=0, seed=ctx.seed, spectrum=curve.spectrum
                )
                done[layer] = finish(problem, curve, candidate)
                if not self._measured(curve, done[layer], ctx):
                    limit = candidate.cost.of(self.of)
                    able[layer] = tuple(c for c in able[layer] if c.cost.of(self.of) < limit)
        saved = sum(originals[la].of(self.of) - c.cost.of(self.of) for la, c in choice.items())
        if saved < save:
            reached = saved / save * self.ratio
            ctx.note(f"svd: only {reached:.1%} of {self.of} could be removed by low rank.")
        return [done[la] for la in curves if la in choice]


def whole_model(ctx: Context) -> Cost:
    """What the whole model costs, layers that cannot be factored included."""
    shapes = bound_shapes(ctx.model, bind_shapes(ctx.model, ctx.shapes)[0])
    macs = sum(macs_of(node, shapes) or 0 for node in ctx.model.graph.all_nodes())
    return Cost(macs, ctx.get(cost).params)
