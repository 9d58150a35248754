"""Affine folding: batch normalization, scale and shift after a linear operator, into its weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
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
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, shared
from graphopt.rewriting.patterns import Match
from graphopt.rewriting.rules import Verdict

__all__ = ["ScaleShiftAfter", "new_bias"]


class ScaleShiftAfter(Rule):
    """s * (W x + b) + t -> (s W) x + (s b + t)

    per output channel, for Conv, ConvTranspose, Gemm and MatMul; a MatMul has no bias, so it takes
    a scale alone, or a BatchNormalization whose shift stays behind as one Add.
    """

    def pattern(self, op: Any, x: Any, w: Any, c: Any) -> Any:
        linear = op.any(
            op.Conv(x, w, ..., as_="linear"),
            op.ConvTranspose(x, w, ..., as_="linear"),
            op.Gemm(x, w, ..., as_="linear"),
            op.MatMul(x, w, as_="linear"),
        )
        return op.any(
            op.Mul(linear, c),
            op.Div(linear, c),
            op.Add(linear, c),
            op.Sub(linear, c),
            op.Sub(c, linear),
            op.Neg(linear),
            op.BatchNormalization(linear, ...),
        )

    def check(self, linear: ir.Node, match: Match, ctx: Context) -> Verdict:
        facts = ctx.get(shapes)
        lin, f = held_linear(linear, facts), affine_of(match.root, facts, linear.outputs[0])
        if lin is None or f is None:
            return None
        rank = output_rank(lin, facts)
        is_matmul = linear.op_type == "MatMul"
        if is_matmul and f.shifts and f.node.op_type != "BatchNormalization":
            return None
        if is_matmul and f.shifts and rank != 2:
            return Refused("the batch normalization's channels are not the product's last axis")
        if not f.fits(rank, lin.y_axis, lin.out_channels):
            along = f"the {lin.out_channels} output channels"
            return Refused(f"the constant does not run along {along}")
        if f.scales and shared(lin.weight):
            return Refused(f"the weight {lin.weight.name} is used elsewhere too")
        if not is_matmul and not _bias_fits(lin):
            return Refused("the bias is no constant along the output channels")
        arrays = folded(lin, f, *f.scale_shift())
        if arrays is None:
            return Refused("the folded weight would overflow or the constant is not finite")
        return Bind(lin=lin, w=arrays[0], b=arrays[1])

    def rewrite(self, op: Builder, lin: Linear, w: Array | None, b: Array | None) -> ir.Value:
        weight = lin.weight if w is None else op.constant(w, lin.weight.name)
        name = f"{lin.weight.name}_bias" if lin.bias is None else lin.bias.name
        if lin.node.op_type == "MatMul":
            product = op.MatMul(*((weight, lin.x) if lin.left else (lin.x, weight)))
            return product if b is None else op.Add(product, op.constant(b, name))
        if b is not None:
            return op.again(lin.node, [lin.x, weight, op.constant(b, name)], beta=None)
        return op.again(lin.node, [v for v in (lin.x, weight, lin.bias) if v is not None])


def _bias_fits(lin: Linear) -> bool:
    if lin.bias is None:
        return True
    shape = constant_shape(lin.bias)
    return shape is not None and per_channel(shape, 2, -1, lin.out_channels) is not None


def folded(lin: Linear, f: Affine, s: Array, t: Array) -> tuple[Array | None, Array | None] | None:
    """New weight and bias (None: as it was) for s * l + t; None if a value is not finite."""
    if not (np.isfinite(s).all() and np.isfinite(t).all()):
        return None
    w: Array | None = None
    like = None
    if f.scales:
        like = array_of(lin.weight)
        w = rounded(lin.scale_outputs(like.astype(np.float64), s), like)
        if w is None:
            return None
    if lin.bias is None and not f.shifts:
        return w, None
    b = new_bias(lin, s, t)
    return None if b is None else (w, b)


def new_bias(lin: Linear, s: Array, t: Array) -> Array | None:
    """s * b + t of shape (out_channels,), in the bias' type; None if it overflows."""
    old = np.zeros(1) if lin.bias is None else array_of(lin.bias).astype(np.float64).reshape(-1)
    like = array_of(lin.weight)[:0]
    return rounded(np.array(np.broadcast_to(s * (old * lin.beta) + t, (lin.out_channels,))), like)
