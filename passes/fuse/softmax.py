"""Softmax fusion: Softmax and LogSoftmax written out."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from graphopt.passes.fuse.norms import reduced_axes

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.rewriting.rules import Verdict

__all__ = ["LogSoftmaxWritten", "SoftmaxWritten"]


def _axis(ctx: Context, x: ir.Value, *reductions: ir.Node) -> Verdict:
    """The one axis that both reduce, and keep."""
    rank = ctx.get(shapes).rank(x)
    if rank is None or any(not attribute(r, "keepdims") for r in reductions):
        return None
    axes = {reduced_axes(r, rank) for r in reductions}
    if len(axes) != 1:
        return Refused("the maximum and the sum are over different axes")
    (over,) = axes
    if over is None or len(over) != 1:
        return Refused("Softmax is over one axis")
    return Bind(axis=over[0] - rank)


class SoftmaxWritten(Rule):
    """exp(x - max x) / sum exp(x - max x) -> Softmax(x)

    Without the maximum it overflows where Softmax does not, and is left alone.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        e = op.Exp(op.Sub(x, op.ReduceMax(x, ..., as_="top")), as_="e")
        return op.Div(e, op.ReduceSum(e, ..., as_="total"))

    def check(self, ctx: Context, x: ir.Value, top: ir.Node, total: ir.Node) -> Verdict:
        return _axis(ctx, x, top, total)

    def rewrite(self, op: Builder, x: ir.Value, axis: int) -> ir.Value:
        return op.Softmax(x, axis=axis)


class LogSoftmaxWritten(Rule):
    """(x - max x) - log sum exp(x - max x) -> LogSoftmax(x)

    log(Softmax(x)) is another thing: it is -Inf where Softmax underflows.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        centred = op.Sub(x, op.ReduceMax(x, ..., as_="top"))
        total = op.any(
            op.Log(op.ReduceSum(op.Exp(centred), ..., as_="total")),
            op.ReduceLogSumExp(centred, ..., as_="total"),
        )
        return op.Sub(centred, total)

    def check(self, ctx: Context, x: ir.Value, top: ir.Node, total: ir.Node) -> Verdict:
        return _axis(ctx, x, top, total)

    def rewrite(self, op: Builder, x: ir.Value, axis: int) -> ir.Value:
        return op.LogSoftmax(x, axis=axis)
