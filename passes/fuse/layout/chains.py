"""Chains of one operator become one: Concat, Slice, reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.norms import reduced_axes

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.attributes import attribute
from graphopt.rewriting.patterns import Match

__all__ = ["ConcatChain", "ReduceChain", "SliceChain"]


def _alone(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


class ConcatChain(Rule):
    """Concat(a, Concat(b, c), d) -> Concat(a, b, c, d)

    along the same axis, where nothing else reads the inner one: else it would be written twice.
    """

    def pattern(self, op: Any) -> Any:
        """Any Concat."""
        return op.Concat(...)

    def check(self, ctx: Context, match: Match) -> bool | dict[str, Any]:
        """One operand at least is a Concat along the same axis."""
        facts = ctx.get(shapes)
        root = match.root
        parts: list[ir.Value | None] = []
        inner: list[ir.Node] = []
        for value in root.inputs:
            node = None if value is None else value.producer()
            if (
                node is not None
                and node.op_type == "Concat"
                and node.graph is root.graph
                and _alone(value)
                and _axis(node, facts) == _axis(root, facts) is not None
            ):
                parts += node.inputs
                inner.append(node)
            else:
                parts.append(value)
        return {"parts": parts, "nodes": inner} if inner else False

    def rewrite(self, op: Any, match: Match, parts: list[ir.Value | None]) -> ir.Value:
        """Joined at once."""
        out: ir.Value = op.Concat(*parts, axis=match.root.attributes["axis"].value)
        return out


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
        """The same reduction twice."""
        names = [f"Reduce{name}" for name in _REDUCTIONS]
        return op.any(*(getattr(op, n)(getattr(op, n)(x, ..., as_="inner"), ...) for n in names))

    def check(
        self, ctx: Context, match: Match, inner: ir.Node, x: ir.Value
    ) -> bool | dict[str, Any]:
        """Constant axes, told apart by their places in x."""
        rank = ctx.get(shapes).rank(x)
        keep = attribute(match.root, "keepdims")
        if rank is None or keep != attribute(inner, "keepdims"):
            return False
        first = reduced_axes(inner, rank)
        if first is None:
            return False
        left = [k for k in range(rank) if k not in first]
        second = reduced_axes(match.root, rank if keep else len(left))
        if second is None:
            return False
        both = {*first, *(second if keep else (left[k] for k in second))}
        return {"axes": sorted(both)} if both else False

    def rewrite(
        self, op: Any, match: Match, ctx: Context, inner: ir.Node, x: ir.Value, axes: list[int]
    ) -> ir.Value:
        """Reduced at once, axes where this opset has them."""
        root = match.root
        since = 13 if root.op_type == "ReduceSum" else 18
        keep = {"keepdims": attribute(root, "keepdims")}
        out: ir.Value
        if ctx.model.graph.opset_imports.get("", 1) < since:
            out = op.node(root.op_type, [x], {**keep, "axes": axes}).outputs[0]
        else:
            given = op.constant(np.array(axes, np.int64), "axes")
            out = op.node(root.op_type, [x, given], keep).outputs[0]
        return out


#: axis -> (begin, end, step), all numbers, 0 <= begin <= end.
_Cut = dict[int, tuple[int, int, int]]


class SliceChain(Rule):
    """Slice(Slice(x, A), B) -> Slice(x, A then B), steps forward along axes of known size"""

    def pattern(self, op: Any, x: Any) -> Any:
        """A Slice of a Slice."""
        return op.Slice(op.Slice(x, ..., as_="inner"), ...)

    def check(
        self, ctx: Context, match: Match, inner: ir.Node, x: ir.Value
    ) -> bool | dict[str, Any]:
        """Constant bounds."""
        facts = ctx.get(shapes)
        if facts.opsets.get("", 1) < 10:
            return False
        first = _cut(inner, facts)
        second = _cut(match.root, facts)
        if first is None or second is None:
            return False
        both = dict(first)
        for axis, (low, high, step) in second.items():
            base, _, stride = first.get(axis, (0, 0, 1))
            if high <= low:
                both[axis] = (0, 0, 1)
            else:
                last = base + (high - 1) * stride
                both[axis] = (base + low * stride, last + 1, stride * step)
        return {"cut": both}

    def rewrite(self, op: Any, x: ir.Value, cut: _Cut) -> ir.Value:
        """Cut at once."""
        axes = sorted(cut)
        columns = [[cut[a][k] for a in axes] for k in range(3)]
        starts, ends, steps = (np.array(c, np.int64) for c in columns)
        out: ir.Value = op.Slice(
            x,
            op.constant(starts, "starts"),
            op.constant(ends, "ends"),
            op.constant(np.array(axes, np.int64), "axes"),
            op.constant(steps, "steps"),
        )
        return out


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
