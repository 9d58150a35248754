"""A scale and shift after a linear operator goes into its weight and bias."""

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

from graphopt import Context, Rule
from graphopt.analyses.linear import Linear
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.constants import array_of, constant_shape, shared
from graphopt.rewriting.patterns import Match

__all__ = ["ScaleShiftAfter", "new_bias"]


class ScaleShiftAfter(Rule):
    """s * (W x + b) + t -> (s W) x + (s b + t)

    per output channel, for Conv, ConvTranspose, Gemm and MatMul; a MatMul has no bias, so it takes
    a scale alone, or a BatchNormalization whose shift stays behind as one Add.
    """

    def pattern(self, op: Any, x: Any, w: Any, c: Any) -> Any:
        """One of the affine operators on one of the linear ones."""
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

    def check(
        self, linear: ir.Node, match: Match, ctx: Context
    ) -> bool | str | dict[str, Any] | None:
        """Constants along the channel axis alone, a weight of its own, no overflow."""
        facts = ctx.get(shapes)
        lin, f = held_linear(linear, facts), affine_of(match.root, facts, linear.outputs[0])
        if lin is None or f is None:
            return False
        rank = output_rank(lin, facts)
        is_matmul = linear.op_type == "MatMul"
        if is_matmul and f.shifts and f.node.op_type != "BatchNormalization":
            return False
        if is_matmul and f.shifts and rank != 2:
            return "the batch normalization's channels are not the product's last axis"
        if not f.fits(rank, lin.y_axis, lin.out_channels):
            return f"the constant does not run along the {lin.out_channels} output channels"
        if f.scales and shared(lin.weight):
            return f"the weight {lin.weight.name} is used elsewhere too"
        if not is_matmul and not _bias_fits(lin):
            return "the bias is no constant along the output channels"
        s, t = f.scale_shift()
        arrays = folded(lin, f, s, t)
        if arrays is None:
            return "the folded weight would overflow or the constant is not finite"
        return {"lin": lin, "arrays": arrays}

    def rewrite(self, op: Any, lin: Linear, arrays: tuple[Array | None, Array | None]) -> ir.Value:
        """The linear operator again, with the new constants."""
        w, b = arrays
        weight = lin.weight if w is None else op.constant(w, lin.weight.name)
        node = lin.node
        if node.op_type == "MatMul":
            operands = (weight, lin.x) if lin.left else (lin.x, weight)
            product: ir.Value = op.MatMul(*operands)
            if b is None:
                return product
            added: ir.Value = op.Add(product, op.constant(b, f"{lin.weight.name}_bias"))
            return added
        attributes = {k: a for k, a in node.attributes.items() if k != "beta"}
        bias = lin.bias
        if b is not None:
            bias = op.constant(
                b, lin.bias.name if lin.bias is not None else f"{lin.weight.name}_bias"
            )
        elif "beta" in node.attributes:
            attributes["beta"] = node.attributes["beta"]
        out: ir.Value = op.node(
            node.op_type, [lin.x, weight, *([bias] if bias is not None else [])], attributes
        ).outputs[0]
        return out


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
    assert lin.weight.dtype is not None
    like = np.zeros(0, lin.weight.dtype.numpy())
    return rounded(np.array(np.broadcast_to(s * (old * lin.beta) + t, (lin.out_channels,))), like)
