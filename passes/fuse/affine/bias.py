"""Layer scale folding: a scale after a product and its bias, into both."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import held_linear, output_rank, rounded
from graphopt.passes.fuse.weights import Array, per_channel

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, shared
from graphopt.rewriting.rules import Verdict

__all__ = ["ScaleAfterBias"]


class ScaleAfterBias(Rule):
    """s * (x W + b) -> x (W s) + s b

    per output column, for MatMul, whose bias is an Add of its own (the layer scale of ConvNeXt).
    """

    def pattern(self, op: Any, x: Any, w: Any, b: Any, s: Any) -> Any:
        return op.Mul(op.Add(op.MatMul(x, w, as_="linear"), b), s)

    def check(self, linear: ir.Node, b: ir.Value, s: ir.Value, ctx: Context) -> Verdict:
        facts = ctx.get(shapes)
        lin = held_linear(linear, facts)
        given, biased = constant_shape(s), constant_shape(b)
        if lin is None or lin.left or given is None or biased is None:
            return None
        for shape in (given, biased):
            if per_channel(shape, output_rank(lin, facts), -1, lin.out_channels) is None:
                along = f"the {lin.out_channels} output channels"
                return Refused(f"the constant does not run along {along}")
        if shared(lin.weight):
            return Refused(f"the weight {lin.weight.name} is used elsewhere too")
        scale = array_of(s).astype(np.float64).reshape(-1)
        if not np.isfinite(scale).all():
            return Refused("the constant is not finite")
        old, shift = array_of(lin.weight), array_of(b)
        weight = rounded(old.astype(np.float64) * scale, old)
        bias = rounded(shift.astype(np.float64).reshape(-1) * scale, shift)
        if weight is None or bias is None:
            return Refused("the folded weight would overflow")
        return Bind(weight=weight, bias=bias)

    def rewrite(
        self, op: Builder, x: ir.Value, w: ir.Value, b: ir.Value, weight: Array, bias: Array
    ) -> ir.Value:
        product = op.MatMul(x, op.constant(weight, w.name))
        return op.Add(product, op.constant(bias, b.name))
