"""A scale after a product and its bias goes into both."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import held_linear, output_rank, rounded
from graphopt.passes.fuse.weights import Array, per_channel

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.constants import array_of, constant_shape, shared

__all__ = ["ScaleAfterBias"]


class ScaleAfterBias(Rule):
    """s * (x W + b) -> x (W s) + s b

    per output column, for MatMul, whose bias is an Add of its own (the layer scale of ConvNeXt).
    """

    def pattern(self, op: Any, x: Any, w: Any, b: Any, s: Any) -> Any:
        """A product, its bias, its scale."""
        return op.Mul(op.Add(op.MatMul(x, w, as_="linear"), b), s)

    def check(
        self, linear: ir.Node, b: ir.Value, s: ir.Value, ctx: Context
    ) -> bool | str | dict[str, Any]:
        """Constants along the columns, a weight of its own, no overflow."""
        facts = ctx.get(shapes)
        lin = held_linear(linear, facts)
        given, biased = constant_shape(s), constant_shape(b)
        if lin is None or lin.left or given is None or biased is None:
            return False
        for shape in (given, biased):
            if per_channel(shape, output_rank(lin, facts), -1, lin.out_channels) is None:
                return f"the constant does not run along the {lin.out_channels} output channels"
        if shared(lin.weight):
            return f"the weight {lin.weight.name} is used elsewhere too"
        scale = array_of(s).astype(np.float64).reshape(-1)
        scale = scale[0] if scale.size == 1 else scale
        if not np.isfinite(scale).all():
            return "the constant is not finite"
        old, shift = array_of(lin.weight), array_of(b)
        weight = rounded(old.astype(np.float64) * scale, old)
        bias = rounded(shift.astype(np.float64).reshape(-1) * scale, shift)
        if weight is None or bias is None:
            return "the folded weight would overflow"
        return {"weight": weight, "bias": bias, "old": lin.weight}

    def rewrite(
        self, op: Any, x: ir.Value, b: ir.Value, old: ir.Value, weight: Array, bias: Array
    ) -> ir.Value:
        """The product and its bias with new constants."""
        product = op.MatMul(x, op.constant(weight, old.name))
        out: ir.Value = op.Add(product, op.constant(bias, b.name))
        return out
