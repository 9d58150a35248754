"""Slow kernel avoidance: operators written in the form that the target's runtime computes fast."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt import Context, Replacement, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, constant_value

__all__ = ["MeanOverRows", "SumBeforeNorm"]

#: Named in a target's `slow`: a mean over the middle axis of [1, rows, columns].
MEAN = "ReduceMean[1,rows,columns]"

#: The fused operator a runtime makes of a sum and the norm after it, by the norm.
FUSED = {
    "LayerNormalization": "SkipLayerNormalization",
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
}


class SumBeforeNorm(Walker):
    """a + b before a norm -> Sum(a, b)

    The same numbers; the runtime's own fusion looks for Add. Only where the target says that the
    fused operator is slower than its parts.
    """

    shared = True

    roots = ("Add",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        value = node.outputs[0]
        normed = any(FUSED.get(use.node.op_type) in ctx.target.slow for use in value.uses())
        single = normed and ctx.get(shapes).dtype(value) == ir.DataType.FLOAT
        fused = single and not any(_row(v) for v in node.inputs)
        return Replacement(lambda op: op.Sum(*node.inputs)) if fused else None


def _row(value: ir.Value | None) -> bool:
    """Whether it is a bias: a constant of one row, with which the runtime fuses nothing."""
    tensor = constant_value(value)
    return tensor is not None and all(n == 1 for n in tuple(tensor.shape.numpy())[:-1])


class MeanOverRows(Walker):
    """ReduceMean(x[1, n, c], axis 1) -> ReduceMean(x[n, c], axis 0)

    The same sums. ONNX Runtime spreads the first form over its leading axis, of which there is
    one index: 14 times the time of the second (128 rows of 1024). Only where the target says so.
    """

    roots = ("ReduceMean",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        x, axes = (*node.inputs, None)[:2]  # the axes are an input from opset 18 on
        if MEAN not in ctx.target.slow or x is None or constant_shape(axes) != (1,):
            return None
        dims, axis = ctx.get(shapes).static(x), int(array_of(axes)[0])
        if dims is None or len(dims) != 3 or axis not in (1, -2) or dims[0] != 1 or dims[1] < 2:
            return None
        keep = bool(attribute(node, "keepdims"))
        return Replacement(partial(_mean_over_rows, x, dims[1], dims[2], keep))


def _mean_over_rows(x: ir.Value, rows: int, columns: int, keep: bool, op: Builder) -> ir.Value:
    flat = op.Reshape(x, op.constant(np.array([rows, columns], np.int64), "rows"))
    row = op.ReduceMean(flat, op.constant(np.array([0], np.int64), "axis"), keepdims=1)
    if not keep:
        return row
    return op.Reshape(row, op.constant(np.array([1, 1, columns], np.int64), "mean_shape"))
