"""Operator merging: chains of Concat, of Slice and of one reduction become one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.norms import reduced_axes

from graphopt import Bind, Context, Replacement, Rule, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.traverse import read_once

__all__ = ["ConcatChain", "ReduceChain", "SliceChain"]


class ConcatChain(Walker):
    """Concat(a, Concat(b, c), d) -> Concat(a, b, c, d)

    along the same axis, where nothing else reads the inner one: else it would be written twice.
    """

    roots = ("Concat",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        facts = ctx.get(shapes)
        axis = _axis(node, facts)
        parts: list[ir.Value | None] = []
        inner: list[ir.Node] = []
        for value in node.inputs:
            maker = None if value is None or not read_once(value) else value.producer()
            joins = maker is not None and maker.op_type == "Concat" and maker.graph is node.graph
            if maker is not None and joins and _axis(maker, facts) == axis:
                parts += maker.inputs
                inner.append(maker)
            else:
                parts.append(value)
        if axis is None or not inner:
            return None
        return Replacement(lambda op: op.again(node, parts), tuple(inner))


def _axis(node: ir.Node, facts: Shapes) -> int | None:
    axis = int(node.attributes["axis"].value)
    rank = facts.rank(node.outputs[0])
    if axis >= 0:
        return axis
    return None if rank is None else axis % rank


_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2")


class ReduceChain(Rule):
    """reduce(reduce(x, A), B) -> reduce(x, A + B)

    for sums, means (over whole axes, so every group has one size), extremes, products and the
    norms L1 and L2, where both keep the reduced axes or both drop them.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        reductions = [getattr(op, f"Reduce{name}") for name in _REDUCTIONS]
        return op.any(*(r(r(x, ..., as_="inner"), ..., as_="outer") for r in reductions))

    def check(self, ctx: Context, outer: ir.Node, inner: ir.Node, x: ir.Value) -> Bind | None:
        rank, keep = ctx.get(shapes).rank(x), attribute(outer, "keepdims")
        if rank is None or keep != attribute(inner, "keepdims"):
            return None
        first = reduced_axes(inner, rank)
        if first is None:
            return None
        left = [k for k in range(rank) if keep or k not in first]
        second = reduced_axes(outer, len(left))
        if second is None:
            return None
        both = {*first, *(left[k] for k in second)}
        return Bind(axes=sorted(both)) if both else None

    def rewrite(
        self, op: Builder, outer: ir.Node, ctx: Context, x: ir.Value, axes: list[int]
    ) -> ir.Value:
        since = 13 if outer.op_type == "ReduceSum" else 18
        kept: dict[str, Any] = {"keepdims": attribute(outer, "keepdims")}
        if ctx.model.graph.opset_imports.get("", 1) < since:
            return op.node(outer.op_type, [x], {**kept, "axes": axes}).outputs[0]
        given = op.constant(np.array(axes, np.int64), "axes")
        return op.node(outer.op_type, [x, given], kept).outputs[0]


#: axis -> (begin, end, step), all numbers, 0 <= begin <= end.
_Cut = dict[int, tuple[int, int, int]]


class SliceChain(Rule):
    """Slice(Slice(x, A), B) -> Slice(x, A then B), steps forward along axes of known size"""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Slice(op.Slice(x, ..., as_="inner"), ..., as_="outer")

    def check(self, ctx: Context, outer: ir.Node, inner: ir.Node) -> Bind | None:
        facts = ctx.get(shapes)
        if facts.opsets.get("", 1) < 10:
            return None
        first, second = _cut(inner, facts), _cut(outer, facts)
        if first is None or second is None:
            return None
        both = dict(first)
        for axis, (low, high, step) in second.items():
            base, _, stride = first.get(axis, (0, 0, 1))
            last = base + (high - 1) * stride
            empty = high <= low
            both[axis] = (0, 0, 1) if empty else (base + low * stride, last + 1, stride * step)
        return Bind(cut=both)

    def rewrite(self, op: Builder, x: ir.Value, cut: _Cut) -> ir.Value:
        axes = sorted(cut)
        starts, ends, steps = ([cut[a][k] for a in axes] for k in range(3))
        given = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
        return op.Slice(x, *(op.constant(np.array(v, np.int64), k) for k, v in given.items()))


def _cut(node: ir.Node, facts: Shapes) -> _Cut | None:
    """What a Slice cuts, in numbers; None where bounds, sizes or a direction are not known."""
    source = node.inputs[0]
    dims = None if source is None else facts.shape(source)
    given = [*node.inputs[1:], None, None, None, None][:4]
    data = [None if v is None else facts.fact(v).concrete for v in given]
    if dims is None or any(d is None and v is not None for d, v in zip(data, given, strict=True)):
        return None
    begins, ends, axes, steps = (None if d is None else d.ravel().tolist() for d in data)
    if begins is None or ends is None:
        return None
    axes = list(range(len(begins))) if axes is None else [a % len(dims) for a in axes]
    steps = [1] * len(begins) if steps is None else steps
    cut: _Cut = {}
    for axis, begin, end, step in zip(axes, begins, ends, steps, strict=True):
        size = dims[axis]
        if not isinstance(size, int) or step < 1:
            return None
        low, high, _ = slice(begin, end, step).indices(size)
        cut[axis] = (low, max(low, high), step)
    return cut
