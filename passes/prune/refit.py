"""Compensation: after a cut, linear operators are refitted so that their outputs stay as they were.

Layer by layer in topological order, W and b of each operator whose input changed minimize

    |Y - W f(x') - b|^2,    Y the original model's output, x' the pruned model's actual input,

so that each layer also absorbs the errors of those before it (ThiNet, arXiv:1707.06342; He et al.,
arXiv:1707.06168). Where the output goes into a sum whose other term is known already (a residual
stream), the sum is what is kept: Y grows by the other term's original value minus its present one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.gram import Gram
from graphopt.passes.prune.linear import Linear, constant, linear
from graphopt.passes.prune.selection import Selection, select

from graphopt.context import Context
from graphopt.runtime import Arrays
from graphopt.staged import Staged

__all__ = ["FEATURES_MOST", "ROWS_LEAST", "ROWS_PER_FEATURE", "known_terms", "refit"]

Array = np.ndarray[Any, Any]

#: Rows (samples times spatial positions) a fit looks at, if samples have as many.
ROWS_PER_FEATURE, ROWS_LEAST = 8, 16384
#: Operators with more features (kernel size times channels) are left as the cut leaves them.
FEATURES_MOST = 8192


def refit(
    source: ir.Model,
    model: ir.Model,
    where: Selection,
    dirty: set[str],
    samples: Iterable[Arrays],
    ctx: Context,
) -> int:
    """Refit the linear operators of `model`, a cut of `source`; returns how many were.

    Args:
        source: the model before the cut.
        model: the model after it, with the same node names; changed in place.
        where: positions of the source's values that `model` still has.
        dirty: names of values that the cut changed.
        samples: calibration data, iterated twice.
        ctx: asked before each change.
    """
    origin = {n.name: n for n in source.graph}
    place = {n: k for k, n in enumerate(model.graph)}
    wanted = [op for n in model.graph if (op := _candidate(n, dirty, origin, ctx)) is not None]
    done = 0
    with Staged(source, samples) as was, Staged(model, samples) as now:
        rows = max(now.runs, 1)
        for k, op in enumerate(wanted):
            others = known_terms(op, place)
            twins = [twin for v in others if (twin := _twin(v, origin)) is not None]
            if len(twins) != len(others):
                others, twins = [], []
            y = origin[op.node.name].outputs[0]
            gram = _accumulate(
                op, was.values([y, *twins]), now.values([op.x, *others]), where, y, ctx, rows
            )
            if isinstance(gram, str):
                ctx.refuse("Refit", op.node, gram)
            elif _solve(op, gram, model, ctx):
                done += 1
            later = wanted[k + 1 :]
            now.forget([v for o in later for v in (o.x, *known_terms(o, place))])
            was.forget([v for o in later for v in origin[o.node.name].outputs])
    return done


def known_terms(op: Linear, place: Mapping[ir.Node, int]) -> list[ir.Value]:
    """What is added to the operator's output before anything else happens to it.

    Only terms that are computed before the operator; constants do not count.
    """
    node, terms = op.node, []
    while True:
        y = node.outputs[0]
        uses = y.uses()
        if len(uses) != 1 or y.is_graph_output() or uses[0].node.op_type != "Add":
            return terms
        after = uses[0].node
        other = after.inputs[1 - uses[0].idx]
        assert other is not None
        if not constant(other):
            if other.shape is None or y.shape is None or len(other.shape) != len(y.shape):
                return terms
            producer = other.producer()
            if producer is not None and (producer not in place or place[producer] > place[op.node]):
                return terms
            terms.append(other)
        node = after


def _candidate(
    node: ir.Node, dirty: set[str], origin: Mapping[str | None, ir.Node], ctx: Context
) -> Linear | None:
    """The node as a linear operator to refit, if the cut changed what it computes."""
    if not any(o.name in dirty for o in node.outputs):
        return None
    op = linear(node)
    if isinstance(op, str):
        if op:
            ctx.refuse("Refit", node, op)
        return None
    if node.name not in origin:
        ctx.refuse("Refit", node, "the cut made it: the source has no node of this name")
        return None
    if any(len(v.uses()) > 1 for v in (node.inputs[1],) if v is not None):
        ctx.refuse("Refit", node, "its weight is shared with another node")
        return None
    return op


def _twin(value: ir.Value, origin: Mapping[str | None, ir.Node]) -> ir.Value | None:
    """The source model's value that `value` descends from."""
    producer = value.producer()
    if producer is None or producer.name not in origin:
        return None
    return origin[producer.name].outputs[value.index() or 0]


def _accumulate(
    op: Linear,
    originals: Iterable[list[Array]],
    actuals: Iterable[list[Array]],
    where: Selection,
    target: ir.Value,
    ctx: Context,
    runs: int,
) -> Gram | str:
    """Moments of features and targets over all samples, or why there are none."""
    gram: Gram | None = None
    axes = where.get(target.name or "")
    w = op.matrix()
    if w.shape[2] > FEATURES_MOST:
        return f"{w.shape[2]} features are too many to solve for"
    rng = np.random.default_rng(ctx.seed)
    for run, ((y, *before), (x, *after)) in enumerate(zip(originals, actuals, strict=True)):
        for term in before:
            y = y + term
        y = select(y, axes)
        for term in after:
            y = y - term
        if gram is None:
            gram = Gram(*w.shape[::2], w.shape[1], shift=op.can_shift)
            there = op.positions(y.shape)
            wanted = max(ROWS_LEAST, ROWS_PER_FEATURE * w.shape[2])
            some = min(there, -(-wanted // (runs * len(y))))
        at = None if some >= there else np.sort(rng.choice(there, some, replace=False))
        gram.add(op.features(x, y.shape, at), op.channels(y, at), fit_share(run, runs, len(x)))
    return gram if gram is not None else "there are no samples"


def fit_share(run: int, runs: int, batch: int) -> float:
    """Share of a run's rows to fit on: four fifths of the samples, whole ones if possible."""
    if batch >= 5 or runs < 5:
        return 0.8
    return 0.0 if run % 5 == 4 else 1.0


def _solve(op: Linear, gram: Gram, model: ir.Model, ctx: Context) -> bool:
    """Fit, and put the result in place if it is better on what was held out."""
    weight, bias, ridge = gram.fit(op.matrix(), op.bias() if op.can_shift else None)
    if np.isinf(ridge):
        ctx.refuse("Refit", op.node, "samples show no better weights than those the cut left")
        return False
    if not ctx.edit("Refit", op.node):
        return False
    op.store(model, weight, bias)
    return True
