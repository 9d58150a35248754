"""Operand elimination: empty operands, and ones expanded before they broadcast anyway."""

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


RULES = (ExpandedOperand, EmptyOperands)
