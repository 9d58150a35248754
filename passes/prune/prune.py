"""Prune: remove the channels, heads and hidden units that matter least, wherever they occur.

Three parts: *group* (`graphopt.analyses.dims`), *choose* (`curves`, `work`, `choice`) and *cut*
(`graphopt.cut`); then what reads the cut dimensions is refitted on samples (`refit`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.choice import Curve, allowed_counts, choose, fewest, source_size
from graphopt.passes.prune.compensation import refit
from graphopt.passes.prune.curves import NO_SAMPLES, Score, curves
from graphopt.passes.prune.sampling import enough_of
from graphopt.passes.prune.selection import changed, selection
from graphopt.passes.prune.sensitivity import scan

from graphopt.analyses.dims import Dimension, dimensions
from graphopt.analyses.dims.cost_model import Of, time_like, work
from graphopt.calibration.padding import Padding, padding_of
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.graph.kept import source_sizes
from graphopt.layers import by_layer, names_of
from graphopt.pass_ import Pass
from graphopt.rewriting.cutting import cut
from graphopt.samples import Samples, many

__all__ = ["Prune"]

Array = np.ndarray[Any, Any]


#: A ratio below this is not tried where a larger one cost too much.
LEAST = 0.03
#: Counts of one dimension that a search chooses among.
CHOICES = 12


@dataclasses.dataclass(frozen=True)
class Prune(Pass):
    """Remove the units that matter least from every tensor that carries them.

    With samples, units are chosen by how well the others can stand in for them, and the linear
    operators downstream are refitted so that their outputs stay as they were. No training.

    Attributes:
        ratio: share of the MACs to remove, in [0, 1).
        of: what `ratio` is a share of: "macs", "params", or "units".
        scope: "inner" leaves the width of residual streams, and the size of heads where heads can
            go; "all" does not.
        score: what a unit is worth: "reconstruction" error of what reads it (needs samples),
            "activation" (norm of weight times norm of input; needs samples), the loss without it
            to first or second order, "taylor" or "fisher" (need samples and the torch extra), or of
            its weights "l1", "l2", "fpgm"; or "random". "auto" is "reconstruction" with samples,
            else "l2".
        spread: "global" takes units where they cost least per work saved by the score,
            "sensitivity" by the error of the outputs, measured for each dimension (needs samples;
            takes some runs per dimension), "uniform" the same share of every dimension. "auto" is
            "uniform" for of="units" (a head is not worth a feature), else "global".
        layers: (pattern, share) pairs: a dimension whose name, or a node or weight that writes it,
            matches the pattern loses that share of its units instead (0 excludes it); the first
            match counts.
        floor: share of its units in the original model that every dimension keeps at least (and two
            units; of two, one).
        compensate: refit what reads the removed units (needs samples).
    """

    lossy = True

    ratio: float = 0.3
    of: Of = "macs"
    scope: Literal["inner", "all"] = "inner"
    score: Score = "auto"
    spread: Literal["auto", "global", "sensitivity", "uniform"] = "auto"
    layers: tuple[tuple[str, float], ...] = ()
    floor: float = 0.1
    compensate: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio is a share in [0, 1), not {self.ratio}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a share in [0, 1], not {self.floor}")
        for pattern, share in self.layers:
            if not 0 <= share < 1:
                raise ValueError(f"layers: '{pattern}' loses a share in [0, 1), not {share}")

    def weaker(self) -> Prune | None:
        """Half the ratio, as long as that is worth a cut."""
        half = round(self.ratio / 2, 3)
        return dataclasses.replace(self, ratio=half) if half >= LEAST else None

    def choices(self, model: ir.Model, ctx: Context) -> dict[str, tuple[float, ...]]:
        """Shares of its units that each dimension may lose, in the steps the target likes."""
        dims = self._dimensions(ctx)
        found = {}
        for name, counts in dataclasses.replace(self, layers=())._counts(dims, ctx).items():
            fewer = counts[1:]
            some = np.linspace(0, len(fewer) - 1, min(len(fewer), CHOICES)).round().astype(int)
            found[escape(name)] = tuple(
                round(1 - fewer[k] / dims[name].size, 4) for k in dict.fromkeys(some.tolist())
            )
        return {name: shares for name, shares in found.items() if shares}

    def only(self, layers: tuple[tuple[str, float], ...], others: Sequence[str] = ()) -> Prune:
        """Cuts these dimensions and no other."""
        return dataclasses.replace(self, ratio=0.0, layers=layers)

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Choose, cut, refit; the number of dimensions cut and operators refitted."""
        dims = self._dimensions(ctx)
        if not self.ratio:  # nothing goes but what layers= names: the others need no curves
            shares = self._shares(dims, ctx)
            dims = {name: dim for name, dim in dims.items() if shares.get(name)}
        if not dims:
            return ctx.nothing(self._nothing_free(ctx))
        if not work(dims, self.of, ctx).free(dims):
            return ctx.nothing(f"nothing to prune: the dimensions that are free do no {self.of}")
        samples = self._samples(model, ctx)
        padding = None if samples is None else padding_of(model, samples, ctx)
        found = curves(self.score, model, dims, samples, ctx, padding)
        if self.spread == "sensitivity":
            if samples is None:
                raise UsageError("prune: spread='sensitivity' needs samples; give --samples")
            counts = self._counts(dims, ctx)
            found = scan(
                model, dims, found, counts, samples, ctx, padding, compensate=self.compensate
            )
        return self.apply(model, ctx, dims, found, samples, padding)

    def apply(
        self,
        model: ir.Model,
        ctx: Context,
        dims: Mapping[str, Dimension],
        found: Mapping[str, Curve],
        samples: Samples | None,
        padding: Padding | None = None,
    ) -> int:
        """What `run` does once there is a curve for every dimension."""
        amount = work(dims, self.of, ctx)
        uniform = self.spread == "uniform" or (self.spread == "auto" and self.of == "units")
        gain = time_like(dims, ctx) if self.of == "macs" else amount
        counts = self._counts(dims, ctx)
        chosen = choose(found, counts, amount, self.ratio, uniform=uniform, gain=gain)
        left = amount.left({n: c / dims[n].size for n, c in chosen.items()}) / amount.total
        if self.ratio and abs(left - (1 - self.ratio)) > 0.02:
            why = " in the steps the target likes" if ctx.target.channel_multiple > 1 else ""
            ctx.note(
                f"{1 - left:.0%} of the {self.of} go: {self.ratio:.0%} cannot be had{why} "
                f"({amount.free(dims):.0%} are in what may shrink)"
            )
        kept = {
            name: found[name].kept(count)
            for name, count in chosen.items()
            if count < dims[name].size and ctx.edit(self, name)
        }
        if not kept:
            return ctx.nothing(f"no dimension can lose {self.ratio:.3g} of the {self.of}")
        where, dirty = selection(dims, kept), changed(model, dims, kept)
        source = model.clone() if self.compensate and samples is not None else None
        edits = cut(model, kept, ctx)
        if source is not None and samples is not None:
            edits += refit(source, model, where, dirty, samples, ctx, padding)
            ctx.invalidate()
        elif self.compensate:
            ctx.note("no samples were given, so nothing was refitted: expect a large loss")
        return edits

    def _samples(self, model: ir.Model, ctx: Context) -> Samples | None:
        """Real samples, or else invented images; other invented inputs say nothing of real ones."""
        if ctx.samples is None:
            return None
        if not ctx.samples.synthetic:
            return enough_of(ctx.samples)
        if self.score in NO_SAMPLES and self.spread != "sensitivity" and not self.compensate:
            return None
        found = many(model, ctx.samples, seed=ctx.seed)
        if found is not None:
            ctx.note(
                f"no samples were given: units were chosen and layers refitted on {found.source}; "
                "real ones (--samples) lose less"
            )
        return found

    def _nothing_free(self, ctx: Context) -> str:
        """Why there is nothing to cut, and what would."""
        why = "no dimension is free to prune (see `graphopt inspect --dims`)"
        if self.scope == "inner" and ctx.get(dimensions).prunable:
            why += "; scope='all' cuts the widths of residual streams too"
            return f"{why}, and branches that are added up may be one operator after `fuse`"
        return why

    def _dimensions(self, ctx: Context) -> dict[str, Dimension]:
        """What may be pruned."""
        found = ctx.get(dimensions).prunable
        return {n: d for n, d in found.items() if self.scope == "all" or d.scope == "inner"}

    def _shares(self, dims: Mapping[str, Dimension], ctx: Context) -> dict[str, float]:
        """The share of units that `layers` says a dimension loses."""
        if not self.layers:
            return {}
        nodes = {n.name: n for n in ctx.model.graph.all_nodes()}
        # what is there but cannot be pruned may be named too
        known = {"": {*nodes, *ctx.model.graph.initializers}}
        for name, dim in dims.items():
            writers = [m for m in dim.members if m.role == "writes"]
            made = [n for m in writers if m.node in nodes for n in names_of(nodes[m.node])]
            # what is called like another dimension means that one
            known[name] = {name, *({*made, *(m.input for m in writers)} - dims.keys())}
        return by_layer(self.layers, known, "prune")

    def _counts(self, dims: Mapping[str, Dimension], ctx: Context) -> dict[str, list[int]]:
        """Counts each dimension may keep."""
        counts = {}
        shares = self._shares(dims, ctx)
        cut_before = source_sizes(ctx.model)
        for name, dim in dims.items():
            share = shares.get(name)
            if share is None:
                source = source_size(dim, cut_before)
                counts[name] = allowed_counts(dim, ctx.target.channel_multiple, self.floor, source)
            else:
                counts[name] = [max(fewest(dim.size), round(dim.size * (1 - share)))]
        return counts
