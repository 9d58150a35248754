"""Slow kernels avoided: operators written in the form that the target's runtime computes fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.constants import array_of, constant_shape, constant_value
from graphopt.rewriting.patterns import Match

__all__ = ["MeanOverRows", "SumBeforeNorm"]

#: Named in a target's `slow`: a mean over the middle axis of [1, rows, columns].
MEAN = "ReduceMean[1,rows,columns]"

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


class MeanOverRows(Rule):
    """ReduceMean(x[1, n, c], axis 1) -> ReduceMean(x[n, c], axis 0)

    The same sums. ONNX Runtime spreads the first form over its leading axis, of which there is
    one index: 14 times the time of the second (128 rows of 1024). Only where the target says so.
    """

    def pattern(self, op: Any, x: Any, axes: Any) -> Any:
        """A mean with its axes as an input (opset 18 on)."""
        return op.ReduceMean(x, axes, as_="mean")

    def check(self, x: ir.Value, axes: ir.Value, match: Match, ctx: Context) -> Any:
        """One axis, after leading ones, before the last."""
        if MEAN not in ctx.target.slow or constant_shape(axes) != (1,):
            return False
        dims = ctx.get(shapes).static(x)
        axis = int(array_of(axes)[0])
        if dims is None or len(dims) != 3 or axis not in (1, -2) or dims[0] != 1 or dims[1] < 2:
            return False
        return {"dims": dims, "keep": bool(match.root.attributes.get_int("keepdims", 1))}

    def rewrite(self, op: Any, x: ir.Value, dims: tuple[int, ...], keep: bool) -> ir.Value:
        """The leading axis is dropped first, and comes back as the reduced one."""
        _, n, c = dims
        rows = op.Reshape(x, op.constant(np.array([n, c], np.int64), "rows"))
        mean: ir.Value = op.ReduceMean(
            rows, op.constant(np.array([0], np.int64), "axis"), keepdims=1
        )
        if not keep:
            return mean
        out: ir.Value = op.Reshape(mean, op.constant(np.array([1, 1, c], np.int64), "mean_shape"))
        return out
