"""Arithmetic that changes nothing: neutral operands, involutions, constant conditions.

Zeros of either sign are one number here: x + 0 -> x may keep a -0.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.constants import constant_value
from graphopt.rewriting.patterns import Match

__all__ = ["RULES"]


class Neutral(Rule):
    """x + 0, x - 0, x * 1, x / 1, x ** 1 -> x, where the constant does not broadcast x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match a neutral right operand, or left where the operator commutes."""
        return op.any(
            op.Add(x, 0.0), op.Sub(x, 0.0), op.Mul(x, 1.0), op.Div(x, 1.0), op.Pow(x, 1.0)
        )

    def check(self, ctx: Context, match: Match, x: ir.Value) -> bool | str | None:
        """Same shape, same type."""
        facts = ctx.get(shapes)
        y = match.root.outputs[0]
        if not facts.same_shape(x, y):
            return "the constant may broadcast the value to a larger shape"
        return None if facts.dtype(x) == facts.dtype(y) else False

    def rewrite(self, op: Any, x: ir.Value) -> ir.Value:
        """The operand itself."""
        return x


class Involution(Rule):
    """Not(Not(x)) -> x, Neg(Neg(x)) -> x"""

    shared = True

    def pattern(self, op: Any, x: Any) -> Any:
        """Match twice the same."""
        return op.any(op.Not(op.Not(x)), op.Neg(op.Neg(x)))

    def rewrite(self, op: Any, x: ir.Value) -> ir.Value:
        """Undone."""
        return x


class Idempotent(Rule):
    """f(f(x)) -> f(x) for Relu, Abs, Ceil, Floor, Round, Sign"""

    shared = True

    def pattern(self, op: Any, x: Any) -> Any:
        """Match twice the same."""
        names = ("Relu", "Abs", "Ceil", "Floor", "Round", "Sign")
        return op.any(*(getattr(op, n)(getattr(op, n)(x)) for n in names))

    def rewrite(self, op: Any, match: Match) -> ir.Value:
        """Once."""
        inner = match.root.inputs[0]
        assert inner is not None
        return inner


class ConstantCondition(Rule):
    """Where(true, a, b) -> a and Where(false, a, b) -> b, where it does not broadcast"""

    def pattern(self, op: Any, c: Any, a: Any, b: Any) -> Any:
        """Match any Where."""
        return op.Where(c, a, b)

    def check(
        self, ctx: Context, match: Match, c: ir.Value, a: ir.Value, b: ir.Value
    ) -> bool | str | None:
        """The condition is the same everywhere, or both sides are one value."""
        chosen = _chosen(c, a, b)
        if chosen is None:
            return False
        if not ctx.get(shapes).same_shape(chosen, match.root.outputs[0]):
            return "the other side may broadcast the chosen one to a larger shape"
        return None

    def rewrite(self, op: Any, c: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """The side that is always taken."""
        chosen = _chosen(c, a, b)
        assert chosen is not None
        return chosen


def _chosen(c: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value | None:
    if a is b:
        return a
    tensor = constant_value(c)
    if tensor is None or tensor.size == 0:
        return None
    taken = tensor.numpy()
    return a if taken.all() else None if taken.any() else b


class ConstantLogic(Rule):
    """And(x, true) -> x, Or(x, false) -> x, Xor(x, false) -> x"""

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        """Match logic with any operand; `check` wants it constant."""
        return op.any(op.And(x, c), op.Or(x, c), op.Xor(x, c))

    def check(self, ctx: Context, match: Match) -> bool | str | None:
        """One operand is neutral and does not broadcast the other."""
        return self._other(ctx, match.root) is not None

    def rewrite(self, op: Any, ctx: Context, match: Match) -> ir.Value:
        """The other operand."""
        other = self._other(ctx, match.root)
        assert other is not None
        return other

    def _other(self, ctx: Context, node: ir.Node) -> ir.Value | None:
        neutral = node.op_type == "And"
        a, b = node.inputs
        for constant, other in ((a, b), (b, a)):
            tensor = constant_value(constant)
            if tensor is None or other is None or tensor.size == 0:
                continue
            if bool((tensor.numpy() == neutral).all()) and ctx.get(shapes).same_shape(
                other, node.outputs[0]
            ):
                return other
        return None


RULES: tuple[type[Rule], ...] = (
    Neutral,
    Involution,
    Idempotent,
    ConstantCondition,
    ConstantLogic,
)
