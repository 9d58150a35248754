"""Depth pruning: residual branches that the outputs miss least are taken out.

    x + f(x)    ->    a * x + b        with a, b per channel: least squares on samples

Which branch goes next is measured: each is left out alone, repaired, and the outputs are compared
(Jordao et al., On the effect of pruning on layers, 2020; Men et al., ShortGPT, 2024, remove by what
a block changes). After each removal the others are measured again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.cost import macs_of
from graphopt.analyses.residual import Residual, residuals
from graphopt.analyses.shapes.analysis import bound_shapes, shapes
from graphopt.calibration.sensitivity import movement
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.execution.observe import observe
from graphopt.execution.runtime import run_each
from graphopt.graph import provenance
from graphopt.graph.building import Builder, remove_dead
from graphopt.layers import by_node, pattern_of
from graphopt.pass_ import Pass
from graphopt.samples import Feeds

__all__ = ["Depth"]

Array = np.ndarray[Any, Any]
#: A scale and a shift per channel.
Repair = tuple[Array, Array]

#: Runs and rows that branches are compared on.
RUNS, ROWS = 64, 256
#: A repair that leaves more than this share of the error it would mend is not worth two nodes.
MENDED = 0.98


@dataclasses.dataclass(frozen=True)
class Depth(Pass):
    """Remove whole residual branches: blocks of a ResNet, attention or feed-forward parts.

    Needs samples: the branches whose removal moves the outputs least, repaired by a scale and a
    shift per channel of the stream that passes by, go one after the other. Train what is left with
    `distill` where more than one or two go.

    Attributes:
        blocks: how many branches to remove.
        layers: (pattern, 1 or 0) pairs (`graphopt.layers`): sums whose name matches lose their
            branch, or with 0 keep it; those that are named to go are no choice of `blocks`.
    """

    blocks: int = 1
    layers: tuple[tuple[str, int], ...] = ()

    lossy: ClassVar[bool] = True
    compresses: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"samples"})

    def __post_init__(self) -> None:
        if self.blocks < 0:
            raise UsageError(f"depth(blocks=...) is a number from 0 on, not {self.blocks}")
        for pattern, keep in self.layers:
            if keep not in (0, 1):
                raise UsageError(f"depth: layers: '{pattern}' takes 1 (remove) or 0, not {keep}")

    def weaker(self) -> Depth | None:
        """One branch fewer."""
        if self.blocks < 2:
            return None
        return dataclasses.replace(self, blocks=self.blocks - 1)

    def choices(self, model: ir.Model, ctx: Context) -> dict[str, tuple[int, ...]]:
        """Every branch may go."""
        return dict.fromkeys(self.removes(model, ctx), (1,))

    def removes(self, model: ir.Model, ctx: Context) -> dict[str, tuple[str, ...]]:
        """The nodes of each branch, by its sum."""
        return {
            pattern_of(one.node): tuple(n.name or "" for n in one.branch) for one in residuals(ctx)
        }

    def only(self, layers: tuple[tuple[str, int], ...], others: Sequence[str] = ()) -> Depth:
        """Takes these branches out and no other."""
        return dataclasses.replace(self, blocks=0, layers=layers)

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Take branches out; returns how many.

        Those that `layers` names go also where there are no real samples, and are not repaired.
        """
        measured = ctx.samples is not None and not ctx.samples.synthetic
        if self.blocks and not measured:
            return ctx.nothing("what the outputs miss least is measured: give --samples")
        named = by_node(self.layers, model.graph, "depth")
        able = [r for r in residuals(ctx) if named.get(r.node) != 0]
        if not able:
            return ctx.nothing("no sum adds a branch to what passes by it, of equal shape")
        feeds = _some(ctx.samples) if measured else []
        expected = list(run_each(model, feeds, optimize=True)) if self.blocks else []
        before = _macs(model, ctx)
        gone = 0
        for wanted in [r.node.name for r in able if named.get(r.node) == 1]:
            one = next((r for r in residuals(ctx) if r.node.name == wanted), None)
            if one is not None:
                gone += self._remove(ctx, one, _repairs(model, ctx, [one], feeds)[one])
        for k in range(self.blocks):
            able = [r for r in residuals(ctx) if r.node not in named]
            repairs = _repairs(model, ctx, able, feeds) if able else {}
            moved = self._moved(ctx, repairs, feeds, expected, k)
            for one in sorted(repairs, key=moved.__getitem__):
                if self._remove(ctx, one, repairs[one]):
                    gone += 1
                    break
            else:
                ctx.note(f"depth: only {gone} branches could be removed.")
                break
        if gone:
            share = 1 - _macs(model, ctx) / max(before, 1)
            ctx.note(f"depth: {gone} of the residual branches removed, {share:.0%} of the MACs.")
        return gone

    def _moved(
        self,
        ctx: Context,
        repairs: Mapping[Residual, Repair | None],
        feeds: Sequence[Feeds],
        expected: Sequence[Mapping[str, Array]],
        done: int,
    ) -> dict[Residual, float]:
        """How far the outputs move without each branch alone."""
        found = {}
        text = f"trying what is left without each branch ({done + 1} of {self.blocks})"
        for one in ctx.track(repairs, len(repairs), text):
            trial = ctx.model.clone()
            theirs = next(n for n in trial.graph if n.name == one.node.name)
            stream = theirs.inputs[list(one.node.inputs).index(one.stream)]
            assert stream is not None
            _take_out(trial, theirs, stream, repairs[one])
            found[one] = movement(expected, run_each(trial, feeds, optimize=True))
        return found

    def _remove(self, ctx: Context, one: Residual, repair: Repair | None) -> bool:
        if not ctx.edit(self, one.node):
            return False
        made = _take_out(ctx.model, one.node, one.stream, repair)
        provenance.derive(made, [one.node], ctx.pass_name)
        provenance.explain(made, f"{self}: {len(one.branch)} nodes of its branch removed")
        ctx.note(f"depth: {one.node.name} lost its branch of {len(one.branch)} nodes.")
        ctx.invalidate()
        return True


def _some(samples: Any) -> list[Feeds]:
    """Runs to compare branches on: enough for an order, not for a figure."""
    found: list[Feeds] = []
    rows = 0
    for feed in islice(samples, RUNS):
        found.append(feed)
        rows += max((len(a) for a in feed.values() if a.ndim), default=1)
        if rows >= ROWS:
            break
    return found


def _macs(model: ir.Model, ctx: Context) -> int:
    known = bound_shapes(model, bind_shapes(model, ctx.shapes)[0])
    return sum(macs_of(node, known) or 0 for node in model.graph.all_nodes())


def _repairs(
    model: ir.Model, ctx: Context, able: Sequence[Residual], feeds: Sequence[Feeds]
) -> dict[Residual, Repair | None]:
    """By branch, a and b with a x + b closest to x + f(x) per channel; None where x is as good."""
    if not feeds:
        return dict.fromkeys(able)
    sums = {one: _Sums(_channels(one, ctx)) for one in able}
    names = [v.name or "" for one in able for v in (one.stream, one.node.outputs[0])]
    for seen in observe(model, names, feeds):
        for one, sum_ in sums.items():
            sum_.add(seen[one.stream.name or ""], seen[one.node.outputs[0].name or ""])
    return {one: sum_.repair(ctx.get(shapes).rank(one.stream) or 0) for one, sum_ in sums.items()}


def _channels(one: Residual, ctx: Context) -> int:
    """The axis of channels: 1 where the branch convolves, else the last."""
    rank = ctx.get(shapes).rank(one.stream) or 1
    convolves = any(n.op_type in ("Conv", "ConvTranspose") for n in one.branch)
    return 1 if convolves and rank > 2 else rank - 1


class _Sums:
    """Sums of x, y, xx, xy and yy per channel, in float64."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.sums: Array | None = None
        self.count = 0

    def add(self, x: Array, y: Array) -> None:
        x, y = (
            np.moveaxis(v, self.axis, -1).reshape(-1, v.shape[self.axis]).astype(np.float64)
            for v in (x, y)
        )
        new = np.stack([v.sum(0) for v in (x, y, x * x, x * y, y * y)])
        self.sums = new if self.sums is None else self.sums + new
        self.count += len(x)

    def repair(self, rank: int) -> Repair | None:
        """a = cov(x, y) / var(x), b = mean(y) - a mean(x), shaped to be broadcast."""
        assert self.sums is not None
        x, y, xx, xy, yy = self.sums / self.count
        variance = xx - x * x
        safe = variance > 1e-12 * (xx + 1e-300)
        a = np.where(safe, (xy - x * y) / np.where(safe, variance, 1.0), 1.0)
        b = y - a * x
        left = yy + a * a * xx + b * b - 2 * (a * xy + b * y - a * b * x)
        plain = yy - 2 * xy + xx
        if left.sum() > MENDED * plain.sum():
            return None
        shape = [-1 if k == self.axis else 1 for k in range(rank)]
        return a.reshape(shape), b.reshape(shape)


def _take_out(
    model: ir.Model, node: ir.Node, stream: ir.Value, repair: Repair | None
) -> list[ir.Node]:
    """Let a repaired stream stand for a sum; returns the nodes made."""
    op = Builder(model, node)
    made = stream
    if repair is not None:
        dtype = node.outputs[0].dtype
        assert dtype is not None
        a, b = (
            op.constant(v.astype(dtype.numpy()), f"{node.name}/{n}")
            for v, n in zip(repair, ("scale", "shift"), strict=True)
        )
        made = op.Add(op.Mul(stream, a), b)
    else:
        made = op.Identity(stream)
    op.take_over(node.outputs[0], made)
    remove_dead([node])
    return op.nodes
