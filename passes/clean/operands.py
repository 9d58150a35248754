"""Operand elimination: empty ones, ones expanded before they broadcast anyway, parts of a whole."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt import Bind, Context, Replacement, Rule, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import Builder
from graphopt.rewriting.patterns import Match

__all__ = ["RULES"]


class ExpandedOperand(Rule):
    """f(Expand(x), y) -> f(x, y) for an elementwise f, where y has the expanded shape anyway"""

    shared = True

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        wide = op.Expand(x, ..., as_="wide")
        functions = (op.Add, op.Sub, op.Mul, op.Div, op.Pow)
        return op.any(*(f(*pair) for f in functions for pair in ((wide, y), (y, wide))))

    def check(self, ctx: Context, wide: ir.Node, y: ir.Value) -> Bind | None:
        out = wide.outputs[0]
        return Bind() if y is not out and ctx.get(shapes).same_shape(out, y) else None

    def rewrite(self, op: Builder, match: Match, wide: ir.Node, x: ir.Value) -> ir.Value:
        return op.again(match.root, [x if v is wide.outputs[0] else v for v in match.root.inputs])


class EmptyOperands(Walker):
    """Concat(x, empty, ...) -> Concat(x, ...): operands of size 0 along the axis add nothing"""

    roots = ("Concat",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        axis, facts = node.attributes["axis"].value, ctx.get(shapes)
        known = [(v, facts.shape(v)) for v in node.inputs if v is not None]
        kept = [v for v, dims in known if dims is None or dims[axis] != 0]
        if not 0 < len(kept) < len(node.inputs):
            return None
        return Replacement(lambda op: op.again(node, kept))


class RejoinedParts(Walker):
    """Concat(..., *Split(x), ...) -> Concat(..., x, ...) along one axis, all parts in order"""

    roots = ("Concat",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        left = [v for v in node.inputs if v is not None]
        kept: list[ir.Value] = []
        while left:
            value, count = _whole(left, node, ctx)
            kept.append(value)
            del left[:count]
        if len(kept) == len(node.inputs):
            return None
        return Replacement(lambda op: kept[0] if len(kept) == 1 else op.again(node, kept))


def _whole(values: list[ir.Value], concat: ir.Node, ctx: Context) -> tuple[ir.Value, int]:
    """What the first of the operands of `concat` are all the parts of, and how many they are.

    Where they are no parts, the first alone.
    """
    first = values[0]
    split = first.producer()
    if split is None or split.op_type != "Split" or split.domain or split.inputs[0] is None:
        return first, 1
    rank = ctx.get(shapes).rank(split.inputs[0])
    axes = [split.attributes.get_int("axis", 0), concat.attributes["axis"].as_int()]
    same = rank is not None and axes[0] % rank == axes[1] % rank
    parts = len(split.outputs)
    if not same or list(values[:parts]) != list(split.outputs):
        return first, 1
    return split.inputs[0], parts


RULES = (ExpandedOperand, EmptyOperands, RejoinedParts)
