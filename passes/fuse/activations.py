"""Activation fusion: GELU, SiLU (Swish), HardSwish, HardSigmoid and Mish written out."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from graphopt.passes.fuse.availability import available, has, reachable
from graphopt.passes.fuse.weights import FLOATS

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import Builder
from graphopt.graph.constants import constant_array, number
from graphopt.rewriting.rules import Verdict

__all__ = ["ErfGelu", "HardSigmoidClip", "HardSwish", "Mish", "OneSlope", "SigmoidGate", "TanhGelu"]

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def _half_of(op: Any, x: Any, one_plus: Any) -> Any:
    """0.5 * x * one_plus, in every association."""
    return op.any(
        op.Mul(op.Mul(x, one_plus), 0.5),
        op.Mul(op.Mul(x, 0.5), one_plus),
        op.Mul(op.Mul(one_plus, 0.5), x),
    )


def _clipped(op: Any, x: Any) -> Any:
    """relu6(x + 3), six times the hard sigmoid."""
    return op.Clip(op.Add(x, 3.0), 0.0, 6.0)


def _gelu(ctx: Context, contrib: str) -> Verdict:
    """The standard Gelu, or the target's own."""
    if not reachable(ctx, "Gelu", 20) and has(ctx, f"com.microsoft:{contrib}"):
        return Bind(domain="com.microsoft")
    return available(ctx, "Gelu", 20, domain="")


class ErfGelu(Rule):
    """x/2 * (1 + erf(x / sqrt(2))) -> Gelu(x)  (Hendrycks & Gimpel, arXiv:1606.08415)"""

    def pattern(self, op: Any, x: Any) -> Any:
        scaled = op.any(op.Div(x, math.sqrt(2)), op.Mul(x, math.sqrt(0.5)))
        return _half_of(op, x, op.Add(op.Erf(scaled), 1.0))

    def check(self, ctx: Context) -> Verdict:
        return _gelu(ctx, "Gelu")

    def rewrite(self, op: Builder, x: ir.Value, domain: str) -> ir.Value:
        return op.Gelu(x, domain_=domain)


class TanhGelu(Rule):
    """x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) -> Gelu(x, approximate="tanh")"""

    def pattern(self, op: Any, x: Any) -> Any:
        square = op.any(op.Mul(x, x), op.Pow(x, 2.0))
        cube = op.any(op.Pow(x, 3.0), op.Mul(x, square))
        outside = op.Mul(op.Add(x, op.Mul(cube, 0.044715)), SQRT_2_OVER_PI)
        small = op.any(op.Mul(square, 0.044715), op.Mul(op.Mul(x, 0.044715), x))
        inside = op.any(
            op.Mul(op.Mul(x, SQRT_2_OVER_PI), op.Add(small, 1.0)),
            op.Mul(op.Mul(op.Add(small, 1.0), SQRT_2_OVER_PI), x),
            op.Mul(op.Mul(op.Add(small, 1.0), x), SQRT_2_OVER_PI),
        )
        return _half_of(op, x, op.Add(op.Tanh(op.any(outside, inside)), 1.0))

    def check(self, ctx: Context) -> Verdict:
        return _gelu(ctx, "FastGelu")

    def rewrite(self, op: Builder, x: ir.Value, domain: str) -> ir.Value:
        return op.FastGelu(x, domain_=domain) if domain else op.Gelu(x, approximate="tanh")


class SigmoidGate(Rule):
    """x * sigmoid(a x) -> QuickGelu(x, alpha=a) where the target has it, else Swish(x, alpha=a)

    SiLU is a = 1, the sigmoid form of GELU a = 1.702.
    """

    def pattern(self, op: Any, x: Any, a: Any) -> Any:
        return op.Mul(x, op.Sigmoid(op.any(x, op.Mul(x, a))))

    def check(self, ctx: Context, x: ir.Value, a: ir.Value | None = None) -> Verdict:
        alpha = 1.0 if a is None else number(a)
        if alpha is None or ctx.get(shapes).dtype(x) not in FLOATS:
            return None
        if has(ctx, "com.microsoft:QuickGelu"):
            return Bind(operator="QuickGelu", domain="com.microsoft", alpha=alpha)
        if not reachable(ctx, "Swish", 24):
            return Refused("the target has neither QuickGelu nor Swish")
        return available(ctx, "Swish", 24, operator="Swish", domain="", alpha=alpha)

    def rewrite(
        self, op: Builder, x: ir.Value, operator: str, domain: str, alpha: float
    ) -> ir.Value:
        return op.node(operator, [x], {"alpha": alpha}, domain=domain).outputs[0]


class HardSigmoidClip(Rule):
    """clip(x + 3, 0, 6) / 6 -> HardSigmoid(x, alpha=1/6, beta=1/2)"""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.any(op.Div(_clipped(op, x), 6.0), op.Mul(_clipped(op, x), 1.0 / 6.0))

    def check(self, ctx: Context, x: ir.Value) -> Bind | None:
        return Bind() if ctx.get(shapes).dtype(x) in FLOATS else None

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return op.HardSigmoid(x, alpha=1.0 / 6.0, beta=0.5)


class HardSwish(Rule):
    """x * HardSigmoid(x, 1/6, 1/2) -> HardSwish(x), and x * clip(x + 3, 0, 6) / 6 alike"""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.any(
            op.Mul(x, op.HardSigmoid(x, alpha=1.0 / 6.0, beta=0.5)),
            op.Div(op.Mul(x, _clipped(op, x)), 6.0),
            op.Mul(op.Mul(x, _clipped(op, x)), 1.0 / 6.0),
        )

    def check(self, ctx: Context) -> Verdict:
        return available(ctx, "HardSwish", 14)

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return op.HardSwish(x)


class OneSlope(Rule):
    """PRelu(x, s) -> LeakyRelu(x, alpha=s), s being one number"""

    def pattern(self, op: Any, x: Any, s: Any) -> Any:
        return op.PRelu(x, s)

    def check(self, s: ir.Value) -> Bind | None:
        slopes = constant_array(s)
        if slopes is None or not slopes.size or (slopes != slopes.flat[0]).any():
            return None
        return Bind(alpha=float(slopes.flat[0]))

    def rewrite(self, op: Builder, x: ir.Value, alpha: float) -> ir.Value:
        return op.LeakyRelu(x, alpha=alpha)


class Mish(Rule):
    """x * tanh(softplus(x)) -> Mish(x)  (Misra, arXiv:1908.08681)"""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Tanh(op.Softplus(x)))

    def check(self, ctx: Context) -> Verdict:
        return available(ctx, "Mish", 18)

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return op.Mish(x)
