"""Compensation: after a cut, linear operators are refitted so that their outputs stay as they were.

Layer by layer in topological order, W and b of each operator whose input changed minimize

    |Y - W f(x') - b|^2,    Y the original model's output, x' the pruned model's actual input,

so that each layer also absorbs the errors of those before it (ThiNet, arXiv:1707.06342; He et al.,
arXiv:1707.06168). Where the output goes into a sum whose other term is known already (a residual
stream), the sum is what is kept: Y grows by the other term's original value minus its present one.
Where an activation follows that is flat on a side, only what gets through it counts (`rectified`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.least_squares import Gram
from graphopt.passes.prune.linear import Refittable, refittable
from graphopt.passes.prune.rectified import Rows, fit_rectified, sloped_range
from graphopt.passes.prune.recurrent import Cell, cell
from graphopt.passes.prune.sampling import FEATURES_MOST, Draw, fit_share
from graphopt.passes.prune.selection import Selection, select

from graphopt.calibration.padding import Padding
from graphopt.context import Context
from graphopt.execution.runtime import Arrays
from graphopt.execution.staged import Staged
from graphopt.graph.constants import array_of, is_constant, shared

__all__ = ["known_terms", "refit"]

Array = np.ndarray[Any, Any]
#: Puts what was fitted into the model.
Fitted = Callable[[ir.Model], None]


def refit(
    source: ir.Model,
    model: ir.Model,
    where: Selection,
    dirty: set[str],
    samples: Iterable[Arrays],
    ctx: Context,
    padding: Padding | None = None,
) -> int:
    """Refit the linear operators of `model`, a cut of `source`; returns how many were.

    Args:
        source: the model before the cut.
        model: the model after it, with the same names; changed in place.
        where: positions of the source's values that `model` still has.
        dirty: names of values that the cut changed.
        samples: calibration data, iterated twice.
        ctx: asked before each change.
        padding: tokens of the samples that do not count.
    """
    origin = {n.name: n for n in source.graph}
    place = {n: k for k, n in enumerate(model.graph)}
    wanted = [op for n in model.graph if (op := _candidate(n, dirty, origin, ctx)) is not None]
    theirs = {v.name or "": v for v in source.graph.inputs}
    theirs.update({o.name or "": o for n in source.graph for o in n.outputs})
    needs = [_needs(op, origin[op.node.name], place, theirs) for op in wanted]
    done = 0
    with Staged(source, samples) as was, Staged(model, samples) as now:
        for k, op in enumerate(ctx.track(wanted, len(wanted), "refitting layers")):
            axes = where.get(op.node.outputs[0].name or "")
            for sweep in range(1 if isinstance(op, Refittable) else 2):
                pairs = partial(_pairs, was, now, *needs[k])
                if isinstance(op, Refittable):
                    sloped = sloped_range(_sum_of(op, place)[1])
                    fitted = _fit_linear(op, pairs, axes, sloped, now.runs, ctx, padding)
                else:
                    twin = origin[op.node.name]
                    fitted = _fit_cell(op, twin, pairs(), axes, sweep == 0, now.runs)
                if isinstance(fitted, str):
                    ctx.refuse("Refit", op.node, fitted)
                elif sweep or ctx.edit("Refit", op.node):
                    fitted(model)
                    now.recompute(op.node.outputs)
                    done += not sweep
            was.forget([v for before, _ in needs[k + 1 :] for v in before])
            now.forget([v for _, after in needs[k + 1 :] for v in after])
    return done


def known_terms(op: Refittable, place: Mapping[ir.Node, int]) -> list[ir.Value]:
    """What is added to the operator's output before anything else happens to it.

    Only terms that are computed before the operator; constants do not count.
    """
    return _sum_of(op, place)[0]


def _sum_of(op: Refittable, place: Mapping[ir.Node, int]) -> tuple[list[ir.Value], ir.Value]:
    """`known_terms`, and the sum of them and the operator's output."""
    y = op.y
    terms: list[ir.Value] = []
    while True:
        uses = list(y.uses())
        if len(uses) != 1 or y.is_graph_output() or uses[0].node.op_type != "Add":
            return terms, y
        after = uses[0].node
        other = after.inputs[1 - uses[0].idx]
        assert other is not None
        if not is_constant(other):
            if other.shape is None or y.shape is None or len(other.shape) != len(y.shape):
                return terms, y
            producer = other.producer()
            if producer is not None and (producer not in place or place[producer] > place[op.node]):
                return terms, y
            terms.append(other)
        y = after.outputs[0]


def _pairs(
    was: Staged, now: Staged, before: list[ir.Value], after: list[ir.Value]
) -> Iterator[tuple[list[Array], list[Array]]]:
    """For each sample these values of the source and those of the model."""
    return zip(was.values(before), now.values(after), strict=True)


def _needs(
    op: Refittable | Cell,
    twin: ir.Node,
    place: Mapping[ir.Node, int],
    theirs: Mapping[str, ir.Value],
) -> tuple[list[ir.Value], list[ir.Value]]:
    """What a fit looks at: of the source output and terms, of the model input and terms."""
    if isinstance(op, Cell):
        source = cell(twin)
        assert isinstance(source, Cell)
        return source.values(), op.values()
    terms = known_terms(op, place)
    if not all(v.name in theirs for v in terms):
        terms = []
    return [twin.outputs[0], *(theirs[v.name or ""] for v in terms)], [op.x, *terms]


def _candidate(
    node: ir.Node, dirty: set[str], origin: Mapping[str | None, ir.Node], ctx: Context
) -> Refittable | Cell | None:
    """The node as an operator to refit, if the cut changed what it computes."""
    if not any(o.name in dirty for o in node.outputs):
        return None
    op: Refittable | Cell | str = refittable(node) or cell(node)
    if isinstance(op, Refittable) and node.op_type == "BatchNormalization":
        before = op.x.producer()
        if before is not None and isinstance(refittable(before), Refittable):
            return None  # what it normalizes is refitted itself
    if isinstance(op, str):
        if op:
            ctx.refuse("Refit", node, op)
        return None
    if node.name not in origin:
        ctx.refuse("Refit", node, "the cut made it: the source has no node of this name")
        return None
    if any(shared(v) for v in node.inputs[1:3] if v is not None and _is_matrix(v)):
        ctx.refuse("Refit", node, "its weight is shared with another node")
        return None
    return op


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is None or len(value.shape) > 1


def _fit_cell(
    op: Cell,
    twin: ir.Node,
    pairs: Iterable[tuple[list[Array], list[Array]]],
    axes: Mapping[int, Array] | None,
    forced: bool,
    runs: int,
) -> Fitted:
    source = cell(twin)
    assert isinstance(source, Cell)
    hidden = array_of(twin.inputs[2]).shape[-1]
    kept = (axes or {}).get(3, np.arange(hidden))
    weights = op.refit(source, pairs, kept, runs, forced=forced)
    return lambda model: op.store(model, weights)


def _fit_linear(
    op: Refittable,
    pairs: Callable[[], Iterable[tuple[list[Array], list[Array]]]],
    axes: Mapping[int, Array] | None,
    sloped: tuple[float, float] | None,
    runs: int,
    ctx: Context,
    padding: Padding | None,
) -> Fitted | str:
    w, bias = op.matrix(), op.bias() if op.can_shift else None
    if w.shape[2] > FEATURES_MOST:
        return f"{w.shape[2]} features are too many to solve for"
    # what a MatMul computes has not got its bias yet
    lacking = np.float32(0) if op.adds is None or bias is None else bias.astype(np.float32)

    def rows() -> Iterator[Rows]:
        draw = Draw(op, w.shape[2], runs, ctx.seed)
        for run, ((y, *before), (x, *after)) in enumerate(pairs()):
            y = select(_total(y, before), axes) + lacking
            at = draw(y.shape)
            known = op.channels(_total(np.zeros_like(y), after), at) if after else 0.0
            share = fit_share(run, runs)
            keep = padding.rows((op.y.name or "", op.channel_axis), run, at) if padding else None
            yield Rows(op.features(x, y.shape, at), op.channels(y, at), known, share).only(keep)

    gram = Gram(w.shape[0], w.shape[2], w.shape[1], shift=op.can_shift)
    for part in rows():
        gram.add(part.features, part.wanted - part.known, part.share)
    if gram.fitted.rows < w.shape[2]:
        ctx.note("too few samples: some operators have more features than rows; a ridge held them")
    weight, bias, ridge = gram.fit(w, bias)
    if np.isinf(ridge):
        return "samples show no better weights than those the cut left"
    if sloped is not None:
        weight, bias = fit_rectified(gram, rows, weight, bias, sloped)
    return lambda model: op.store(model, weight, bias)


def _total(y: Array, terms: Iterable[Array]) -> Array:
    for term in terms:
        y = y + term
    return y
