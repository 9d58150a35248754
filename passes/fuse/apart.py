"""Keeping apart what the runtime would fuse by itself into something slower."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt import Context, Rule
from graphopt.analyses.shapes import shapes
from graphopt.pattern import Match, constant_value

__all__ = ["SumBeforeNorm"]

#: The fused operator a runtime makes of a sum and the norm after it, by the norm.
FUSED = {
    "LayerNormalization": "SkipLayerNormalization",
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
}


class SumBeforeNorm(Rule):
    """a + b before a norm -> Sum(a, b)

    The same numbers; the runtime's own fusion looks for Add. Only where the target says that the
    fused operator is slower than its parts.
    """

    shared = True

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        """Any sum."""
        return op.Add(a, b)

    def check(self, ctx: Context, a: ir.Value, b: ir.Value, match: Match) -> bool:
        """Two activations, or one and a table of positions, read by a norm."""
        value = match.root.outputs[0]
        return (
            any(FUSED.get(use.node.op_type) in ctx.target.slow for use in value.uses())
            and ctx.get(shapes).dtype(value) == ir.DataType.FLOAT
            and not any(_row(v) for v in (a, b))
        )

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value) -> ir.Value:
        """The same sum under the other name."""
        out: ir.Value = op.Sum(a, b)
        return out


def _row(value: ir.Value) -> bool:
    """Whether it is a bias: a constant of one row, with which the runtime fuses nothing."""
    tensor = constant_value(value)
    return tensor is not None and all(n == 1 for n in tuple(tensor.shape.numpy())[:-1])
