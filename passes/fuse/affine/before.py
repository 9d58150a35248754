"""Affine folding: a scale or shift before a linear operator, into its weight and bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.after import new_bias
from graphopt.passes.fuse.affine.operators import (
    Affine,
    affine_of,
    held_linear,
    output_rank,
    rounded,
)
from graphopt.passes.fuse.weights import Array, per_channel

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.linear import Linear
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, shared
from graphopt.rewriting.rules import Verdict

__all__ = ["ScaleBefore", "ShiftBefore"]


def _check(affine: ir.Node, linear: ir.Node, facts: Shapes, shift: bool) -> Verdict:
    lin = held_linear(linear, facts)
    if lin is None or affine.outputs[0] is not lin.x:
        return None
    f = affine_of(affine, facts)
    if f is None or f.shifts is not shift:
        return None
    rank = facts.rank(lin.x) if linear.op_type == "MatMul" else output_rank(lin, facts)
    if lin.turned:
        return Refused("the operand is transposed")
    if not f.fits(rank, lin.x_axis, lin.in_channels):
        return Refused(f"the constant does not run along the {lin.in_channels} input channels")
    if _widens(f, facts):
        return Refused("the constant may broadcast what it meets")
    if f.scales and shared(lin.weight):
        return Refused(f"the weight {lin.weight.name} is used elsewhere too")
    if shift:
        if _pads(linear):
            return Refused("padding would add zeros where the shift is missing")
        if lin.bias is not None:
            shape = constant_shape(lin.bias)
            if shape is None or per_channel(shape, 2, -1, lin.out_channels) is None:
                return Refused("the bias is no constant along the output channels")
    s, t = f.scale_shift()
    if not (np.isfinite(s).all() and np.isfinite(t).all()):
        return Refused("the constant is not finite")
    like = array_of(lin.weight)
    wide = like.astype(np.float64)
    w = rounded(lin.scale_inputs(wide, s), like) if f.scales else None
    if f.scales and w is None:
        return Refused("the folded weight would overflow")
    b = new_bias(lin, np.ones(()), lin.shift_inputs(wide, t)) if shift else None
    if shift and b is None:
        return Refused("the folded bias would overflow")
    return Bind(lin=lin, x=f.input, weight=w, bias=b)


def _widens(f: Affine, facts: Shapes) -> bool:
    """Whether the result may have another shape than the operand."""
    if f.node.op_type == "BatchNormalization":
        return False
    shape = facts.shape(f.input)
    if shape is not None and shape == facts.shape(f.node.outputs[0]):
        return False
    rank = facts.rank(f.input)
    known = [s for s in map(constant_shape, f.constants) if s is not None]
    return rank is None or any(len(s) > rank or any(d != 1 for d in s) for s in known)


def _pads(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    auto = attribute(node, "auto_pad")
    return auto in ("SAME_UPPER", "SAME_LOWER") or any(attribute(node, "pads") or ())


class ScaleBefore(Rule):
    """W (s * x) + b -> (W s) x + b

    per input channel. A zero of the padding stays zero under a scale.
    """

    def pattern(self, op: Any, a: Any, c: Any, w: Any) -> Any:
        scaled = op.any(
            op.Mul(a, c, as_="affine"), op.Div(a, c, as_="affine"), op.Neg(a, as_="affine")
        )
        return op.any(
            op.Conv(scaled, w, ..., as_="linear"),
            op.ConvTranspose(scaled, w, ..., as_="linear"),
            op.Gemm(scaled, w, ..., as_="linear"),
            op.MatMul(scaled, w, as_="linear"),
            op.MatMul(w, scaled, as_="linear"),
        )

    def check(self, affine: ir.Node, linear: ir.Node, ctx: Context) -> Verdict:
        return _check(affine, linear, ctx.get(shapes), shift=False)

    def rewrite(self, op: Builder, lin: Linear, x: ir.Value, weight: Array) -> ir.Value:
        w = op.constant(weight, lin.weight.name)
        operands = (w, x) if lin.left else (x, w, lin.bias)
        return op.again(lin.node, [v for v in operands if v is not None])


class ShiftBefore(Rule):
    """W (s * x + t) + b -> (W s) x + (b + W t)

    for Gemm and for a Conv without padding: a padded zero does not carry the shift.
    """

    def pattern(self, op: Any, a: Any, c: Any, w: Any) -> Any:
        shifted = op.any(
            op.Add(a, c, as_="affine"),
            op.Sub(a, c, as_="affine"),
            op.Sub(c, a, as_="affine"),
            op.BatchNormalization(a, ..., as_="affine"),
        )
        return op.any(
            op.Conv(shifted, w, ..., as_="linear"), op.Gemm(shifted, w, ..., as_="linear")
        )

    def check(self, affine: ir.Node, linear: ir.Node, ctx: Context) -> Verdict:
        return _check(affine, linear, ctx.get(shapes), shift=True)

    def rewrite(
        self, op: Builder, lin: Linear, x: ir.Value, weight: Array | None, bias: Array
    ) -> ir.Value:
        name = f"{lin.weight.name}_bias" if lin.bias is None else lin.bias.name
        w = lin.weight if weight is None else op.constant(weight, lin.weight.name)
        return op.again(lin.node, [x, w, op.constant(bias, name)], beta=None)
