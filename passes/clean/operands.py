"""Operands that add nothing: the only one, empty ones, ones expanded before they broadcast."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from graphopt.passes.clean.noops import Noop

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.rewriting.patterns import Match

__all__ = ["RULES"]


class SingleOperand(Noop):
    """Concat, Sum, Mean, Max or Min of x alone -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match variadic operators."""
        return op.any(op.Concat(x), op.Sum(x), op.Mean(x), op.Max(x), op.Min(x))

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """One operand is its own sum, mean, maximum and minimum."""
        return True


class ExpandedOperand(Rule):
    """f(Expand(x), y) -> f(x, y) for an elementwise f, where y has the expanded shape anyway"""

    shared = True

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        """Match operators that broadcast, either operand expanded."""
        wide = op.Expand(x, ..., as_="wide")
        names = ("Add", "Sub", "Mul", "Div", "Pow")
        pairs = [(getattr(op, n)(wide, y), getattr(op, n)(y, wide)) for n in names]
        return op.any(*(p for pair in pairs for p in pair))

    def check(self, ctx: Context, wide: ir.Node, y: ir.Value) -> bool | str | None:
        """The same shape on every run, by another value."""
        out = wide.outputs[0]
        return y is not out and ctx.get(shapes).same_shape(out, y)

    def rewrite(self, op: Any, match: Match, wide: ir.Node, x: ir.Value) -> ir.Value:
        """Broadcast once."""
        old = wide.outputs[0]
        inputs = [x if v is old else v for v in match.root.inputs]
        result: ir.Value = op.node(match.root.op_type, inputs).outputs[0]
        return result


class EmptyOperands(Rule):
    """Concat(x, empty, ...) -> Concat(x, ...): operands of size 0 along the axis add nothing"""

    def pattern(self, op: Any) -> Any:
        """Match any Concat."""
        return op.Concat(...)

    def check(self, ctx: Context, match: Match) -> bool | str | None:
        """Some operand is empty and some other is not."""
        kept = self._kept(ctx, match.root)
        return 0 < len(kept) < len(match.root.inputs)

    def rewrite(self, op: Any, ctx: Context, match: Match) -> ir.Value:
        """Join what is left."""
        kept = self._kept(ctx, match.root)
        result: ir.Value = op.Concat(*kept, axis=match.root.attributes["axis"].value)
        return result

    def _kept(self, ctx: Context, node: ir.Node) -> list[ir.Value]:
        facts = ctx.get(shapes)
        axis = node.attributes["axis"].value
        kept = []
        for value in node.inputs:
            dims = None if value is None else facts.shape(value)
            if value is not None and (dims is None or dims[axis] != 0):
                kept.append(value)
        return kept


RULES: tuple[type[Rule], ...] = (SingleOperand, ExpandedOperand, EmptyOperands)
