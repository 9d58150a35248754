"""Algebraic simplification: neutral operands, involutions, idempotence, constant conditions.

Zeros of either sign are one number here: x + 0 -> x may keep a -0.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt import Bind, Context, Refused, Replacement, Rule, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import Builder
from graphopt.graph.constants import constant_value
from graphopt.rewriting.patterns import Match
from graphopt.rewriting.rules import Found, Verdict

__all__ = ["RULES"]


class Neutral(Rule):
    """x + 0, x - 0, x * 1, x / 1, x ** 1 -> x, where the constant does not broadcast x"""

    def pattern(self, op: Any, x: Any) -> Any:
        sums, products = (op.Add, op.Sub), (op.Mul, op.Div, op.Pow)
        return op.any(*(f(x, 0.0) for f in sums), *(f(x, 1.0) for f in products))

    def check(self, ctx: Context, match: Match, x: ir.Value) -> Verdict:
        facts, y = ctx.get(shapes), match.root.outputs[0]
        held = [facts.rank(v) for v in match.root.inputs if v is not None and v is not x]
        if held != [0] and not facts.same_shape(x, y):
            return Refused("the constant may broadcast the value to a larger shape")
        return Bind() if facts.dtype(x) == facts.dtype(y) else None

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return x


class Involution(Rule):
    """Not(Not(x)) -> x, Neg(Neg(x)) -> x"""

    shared = True

    def pattern(self, op: Any, x: Any) -> Any:
        return op.any(op.Not(op.Not(x)), op.Neg(op.Neg(x)))

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return x


class Idempotent(Rule):
    """f(f(x)) -> f(x) for Relu, Abs, Ceil, Floor, Round, Sign"""

    shared = True

    def pattern(self, op: Any, x: Any) -> Any:
        functions = (op.Relu, op.Abs, op.Ceil, op.Floor, op.Round, op.Sign)
        return op.any(*(f(f(x, as_="once")) for f in functions))

    def rewrite(self, op: Builder, once: ir.Node) -> ir.Value:
        return once.outputs[0]


class ConstantCondition(Walker):
    """Where(true, a, b) -> a, Where(false, a, b) -> b, Where(c, a, a) -> a, not broadcasting"""

    roots = ("Where",)

    def find(self, node: ir.Node, ctx: Context) -> Found:
        c, a, b = node.inputs
        always = _truth(c)
        chosen = a if a is b or always else b
        if chosen is None or (a is not b and always is None):
            return None
        if not ctx.get(shapes).same_shape(chosen, node.outputs[0]):
            return Refused("the other side may broadcast the chosen one to a larger shape")
        return Replacement(lambda op: chosen)


class ConstantLogic(Rule):
    """And(x, true) -> x, Or(x, false) -> x, Xor(x, false) -> x, where c does not broadcast x"""

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        return op.any(*(f(*pair) for f in (op.And, op.Or, op.Xor) for pair in ((c, x), (x, c))))

    def check(self, ctx: Context, match: Match, x: ir.Value, c: ir.Value) -> Verdict:
        neutral = _truth(c) is (match.root.op_type == "And")
        return Bind() if neutral and ctx.get(shapes).same_shape(x, match.root.outputs[0]) else None

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return x


def _truth(condition: ir.Value | None) -> bool | None:
    """What a constant condition is everywhere."""
    tensor = constant_value(condition)
    if tensor is None or tensor.size == 0:
        return None
    taken = tensor.numpy()
    return True if taken.all() else None if taken.any() else False


RULES = (Neutral, Involution, Idempotent, ConstantCondition, ConstantLogic)
