"""Reductions over rows in the form that the runtime computes fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.weights import array, constant_shape

from graphopt import Context, Rule
from graphopt.analyses.shapes import shapes
from graphopt.pattern import Match

__all__ = ["MeanOverRows"]

#: Named in a target's `slow`: a mean over the middle axis of [1, rows, columns].
MEAN = "ReduceMean[1,rows,columns]"


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
        axis = int(array(axes)[0])
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
