"""A scale or shift before a linear operator goes into its weight and bias."""

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

from graphopt import Context, Rule
from graphopt.analyses.linear import Linear
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import array_of, constant_shape, shared

__all__ = ["ScaleBefore", "ShiftBefore"]


def _check(
    affine: ir.Node, linear: ir.Node, facts: Shapes, shift: bool
) -> str | bool | dict[str, Any]:
    lin = held_linear(linear, facts)
    if lin is None or affine.outputs[0] is not lin.x:
        return False
    f = affine_of(affine, facts)
    if f is None or f.shifts is not shift:
        return False
    rank = facts.rank(lin.x) if linear.op_type == "MatMul" else output_rank(lin, facts)
    if lin.turned:
        return "the operand is transposed"
    if not f.fits(rank, lin.x_axis, lin.in_channels):
        return f"the constant does not run along the {lin.in_channels} input channels"
    if _widens(f, facts):
        return "the constant may broadcast what it meets"
    if f.scales and shared(lin.weight):
        return f"the weight {lin.weight.name} is used elsewhere too"
    if shift:
        if _pads(linear):
            return "padding would add zeros where the shift is missing"
        if lin.bias is not None:
            shape = constant_shape(lin.bias)
            if shape is None or per_channel(shape, 2, -1, lin.out_channels) is None:
                return "the bias is no constant along the output channels"
    s, t = f.scale_shift()
    if not (np.isfinite(s).all() and np.isfinite(t).all()):
        return "the constant is not finite"
    like = array_of(lin.weight)
    wide = like.astype(np.float64)
    w = rounded(lin.scale_inputs(wide, s), like) if f.scales else None
    if f.scales and w is None:
        return "the folded weight would overflow"
    b = new_bias(lin, np.ones(()), lin.shift_inputs(wide, t)) if shift else None
    if shift and b is None:
        return "the folded bias would overflow"
    return {"lin": lin, "x": f.input, "w": w, "b": b}


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
        """A linear operator on a product with a constant."""
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

    def check(self, affine: ir.Node, linear: ir.Node, ctx: Context) -> str | bool | dict[str, Any]:
        """Constants along the input channels alone, a weight of its own, no overflow."""
        return _check(affine, linear, ctx.get(shapes), shift=False)

    def rewrite(self, op: Any, lin: Linear, x: ir.Value, w: Array) -> ir.Value:
        """The linear operator on the unscaled operand."""
        weight = op.constant(w, lin.weight.name)
        operands = [weight, x] if lin.left else [x, weight]
        operands += [lin.bias] if lin.bias is not None else []
        out: ir.Value = op.node(lin.node.op_type, operands, dict(lin.node.attributes)).outputs[0]
        return out


class ShiftBefore(Rule):
    """W (s * x + t) + b -> (W s) x + (b + W t)

    for Gemm and for a Conv without padding: a padded zero does not carry the shift.
    """

    def pattern(self, op: Any, a: Any, c: Any, w: Any) -> Any:
        """Conv or Gemm on a sum with a constant, or on a batch normalization."""
        shifted = op.any(
            op.Add(a, c, as_="affine"),
            op.Sub(a, c, as_="affine"),
            op.Sub(c, a, as_="affine"),
            op.BatchNormalization(a, ..., as_="affine"),
        )
        return op.any(
            op.Conv(shifted, w, ..., as_="linear"), op.Gemm(shifted, w, ..., as_="linear")
        )

    def check(self, affine: ir.Node, linear: ir.Node, ctx: Context) -> str | bool | dict[str, Any]:
        """As for `ScaleBefore`, and no padding."""
        return _check(affine, linear, ctx.get(shapes), shift=True)

    def rewrite(self, op: Any, lin: Linear, x: ir.Value, w: Array | None, b: Array) -> ir.Value:
        """The linear operator on the unshifted operand, with a new bias."""
        weight = lin.weight if w is None else op.constant(w, lin.weight.name)
        bias = op.constant(b, lin.bias.name if lin.bias is not None else f"{lin.weight.name}_bias")
        attributes = {k: a for k, a in lin.node.attributes.items() if k != "beta"}
        out: ir.Value = op.node(lin.node.op_type, [x, weight, bias], attributes).outputs[0]
        return out
