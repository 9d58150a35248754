"""Activation functions written out become one operator."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from graphopt.passes.fuse.availability import has, reachable, standard
from graphopt.passes.fuse.weights import FLOATS

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.constants import number

__all__ = ["ErfGelu", "HardSigmoidClip", "HardSwish", "Mish", "SigmoidGate", "TanhGelu"]

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def _half_of(op: Any, x: Any, one_plus: Any) -> Any:
    """0.5 * x * one_plus, in every association."""
    return op.any(
        op.Mul(op.Mul(x, one_plus), 0.5),
        op.Mul(op.Mul(x, 0.5), one_plus),
        op.Mul(op.Mul(one_plus, 0.5), x),
    )


def _gelu(op: Any, x: ir.Value, ctx: Context, approximate: str) -> ir.Value:
    out: ir.Value
    if standard(ctx, "Gelu", 20):
        out = op.Gelu(x, approximate=approximate if approximate != "none" else None)
    elif approximate == "none":
        out = op.Gelu(x, domain_="com.microsoft")
    else:
        out = op.FastGelu(x, domain_="com.microsoft")
    return out


class ErfGelu(Rule):
    """x/2 * (1 + erf(x / sqrt(2))) -> Gelu(x)  (Hendrycks & Gimpel, arXiv:1606.08415)"""

    def pattern(self, op: Any, x: Any) -> Any:
        """The exact form, in every association."""
        scaled = op.any(op.Div(x, math.sqrt(2)), op.Mul(x, math.sqrt(0.5)))
        return _half_of(op, x, op.Add(op.Erf(scaled), 1.0))

    def check(self, ctx: Context) -> bool | str:
        """The target has one of the operators."""
        if reachable(ctx, "Gelu", 20):
            return standard(ctx, "Gelu", 20)
        return has(ctx, "com.microsoft:Gelu") or "the target has no Gelu at this opset"

    def rewrite(self, op: Any, x: ir.Value, ctx: Context) -> ir.Value:
        """Gelu."""
        return _gelu(op, x, ctx, "none")


class TanhGelu(Rule):
    """x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) -> Gelu(x, approximate="tanh")"""

    def pattern(self, op: Any, x: Any) -> Any:
        """The cube by Pow or Mul, the factor inside or outside."""
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

    def check(self, ctx: Context) -> bool | str:
        """The target has one of the operators."""
        if reachable(ctx, "Gelu", 20):
            return standard(ctx, "Gelu", 20)
        return has(ctx, "com.microsoft:FastGelu") or "the target has no Gelu at this opset"

    def rewrite(self, op: Any, x: ir.Value, ctx: Context) -> ir.Value:
        """Gelu by tanh."""
        return _gelu(op, x, ctx, "tanh")


class SigmoidGate(Rule):
    """x * sigmoid(a x) -> QuickGelu(x, alpha=a) where the target has it, else Swish(x, alpha=a)

    SiLU is a = 1, the sigmoid form of GELU a = 1.702.
    """

    def pattern(self, op: Any, x: Any, a: Any) -> Any:
        """With and without the factor."""
        return op.Mul(x, op.Sigmoid(op.any(x, op.Mul(x, a))))

    def check(self, ctx: Context, x: ir.Value, a: ir.Value | None = None) -> Any:
        """A constant factor, and one of the operators."""
        alpha = 1.0 if a is None else number(a)
        if alpha is None or ctx.get(shapes).dtype(x) not in FLOATS:
            return False
        if has(ctx, "com.microsoft:QuickGelu"):
            return {"alpha": alpha, "domain": "com.microsoft"}
        if reachable(ctx, "Swish", 24):
            return standard(ctx, "Swish", 24) and {"alpha": alpha, "domain": ""}
        return "the target has neither QuickGelu nor Swish"

    def rewrite(self, op: Any, x: ir.Value, alpha: float, domain: str) -> ir.Value:
        """One operator."""
        out: ir.Value = (
            op.QuickGelu(x, alpha=alpha, domain_=domain) if domain else op.Swish(x, alpha=alpha)
        )
        return out


class HardSigmoidClip(Rule):
    """clip(x + 3, 0, 6) / 6 -> HardSigmoid(x, alpha=1/6, beta=1/2)"""

    def pattern(self, op: Any, x: Any) -> Any:
        """By Div or Mul."""
        clipped = op.Clip(op.Add(x, 3.0), 0.0, 6.0)
        return op.any(op.Div(clipped, 6.0), op.Mul(clipped, 1.0 / 6.0))

    def check(self, ctx: Context, x: ir.Value) -> bool:
        """Floats."""
        return ctx.get(shapes).dtype(x) in FLOATS

    def rewrite(self, op: Any, x: ir.Value) -> ir.Value:
        """HardSigmoid."""
        out: ir.Value = op.HardSigmoid(x, alpha=1.0 / 6.0, beta=0.5)
        return out


class HardSwish(Rule):
    """x * HardSigmoid(x, 1/6, 1/2) -> HardSwish(x), and x * clip(x + 3, 0, 6) / 6 alike"""

    def pattern(self, op: Any, x: Any) -> Any:
        """By HardSigmoid, or with the division last."""
        clipped = op.Clip(op.Add(x, 3.0), 0.0, 6.0)
        return op.any(
            op.Mul(x, op.HardSigmoid(x, alpha=1.0 / 6.0, beta=0.5)),
            op.Div(op.Mul(x, clipped), 6.0),
            op.Mul(op.Mul(x, clipped), 1.0 / 6.0),
        )

    def check(self, ctx: Context) -> bool | str:
        """The target has the operator."""
        if reachable(ctx, "HardSwish", 14):
            return standard(ctx, "HardSwish", 14)
        return "the target has no HardSwish at this opset"

    def rewrite(self, op: Any, x: ir.Value) -> ir.Value:
        """HardSwish."""
        out: ir.Value = op.HardSwish(x)
        return out


class Mish(Rule):
    """x * tanh(softplus(x)) -> Mish(x)  (Misra, arXiv:1908.08681)"""

    def pattern(self, op: Any, x: Any) -> Any:
        """The product."""
        return op.Mul(x, op.Tanh(op.Softplus(x)))

    def check(self, ctx: Context) -> bool | str:
        """The target has the operator."""
        if reachable(ctx, "Mish", 18):
            return standard(ctx, "Mish", 18)
        return "the target has no Mish at this opset"

    def rewrite(self, op: Any, x: ir.Value) -> ir.Value:
        """Mish."""
        out: ir.Value = op.Mish(x)
        return out
