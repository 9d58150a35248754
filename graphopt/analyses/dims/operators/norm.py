"""Normalizations: statistics over some axes, a scale and a bias along some.

What is normalized is read: the statistics of the pruned tensor are those of what is left.
"""

from __future__ import annotations

from graphopt.analyses.dims.axes import Tensor
from graphopt.analyses.dims.operation import Operation

__all__ = ["OPERATORS"]


def _along(op: Operation, y: Tensor, axis: int, operands: range) -> None:
    for k in operands:
        if op.has(k) and op.x(k).rank == 1:
            op.same(op.x(k)[0], y[axis])


def batch_norm(op: Operation) -> None:
    """y = (x - mean[c]) / sqrt(var[c] + eps) * scale[c] + bias[c], c the second axis."""
    x, y = op.x(0), op.y()
    op.all_same(x, y)
    _along(op, y, 1, range(1, 5))
    for k in range(1, len(op.node.outputs)):
        if op.made(k):
            op.same(op.y(k)[0], y[1])


def layer_norm(op: Operation) -> None:
    """Normalize over all axes from `axis` on; scale and bias broadcast to them."""
    x, y = op.x(0), op.y()
    axis = int(op.attribute("axis", -1)) % x.rank
    op.all_same(x, y)
    op.broadcast([op.x(k) for k in (1, 2) if op.has(k)], y)
    for k in range(axis, x.rank):
        op.reads(x, k)
    for n in range(1, len(op.node.outputs)):
        if op.made(n):
            for k in range(axis):
                op.same(op.y(n)[k], x[k])


def instance_norm(op: Operation) -> None:
    """Normalize each (n, c) over the axes from the third on; scale and bias along c."""
    x, y = op.x(0), op.y()
    op.all_same(x, y)
    _along(op, y, 1, range(1, 3))
    for k in range(2, x.rank):
        op.reads(x, k)


def group_norm(op: Operation) -> None:
    """Channels g*c normalized per group g over c and the rest; scale along g*c (or g, opset 18)."""
    x, y = op.x(0), op.y()
    op.all_same(x, y)
    group, channels = int(op.attribute("num_groups", 1)), x.sizes[1]
    if not isinstance(channels, int):
        op.freeze_all("the number of channels is not known")
        return
    g, c = op.virtual(group), op.virtual(channels // group)
    op.merge(x[1], (g, c))
    op.count(g, attribute="num_groups")
    for k in (1, 2):
        scale = op.x(k)
        op.same(scale[0], x[1] if scale.sizes[0] == channels else g)
    op.reads(x, 1, via=c)
    for k in range(2, x.rank):
        op.reads(x, k)


def skip_norm(op: Operation) -> None:
    """LayerNorm(x + skip + bias) over the last axis; the sum is the fourth output."""
    x = op.x(0)
    for k in (0, 3):
        if op.made(k):
            op.broadcast(op.inputs(), op.y(k))
    op.reads(x, -1)
    op.reads(op.x(1), -1)
    for k in (1, 2):
        if op.made(k):
            for j in range(x.rank - 1):
                op.same(op.y(k)[j], x[j])


def mean_variance(op: Operation) -> None:
    """(x - mean) / std over `axes`."""
    x = op.x(0)
    op.all_same(x, op.y())
    for k in op.attribute("axes", [0, 2, 3]):
        op.reads(x, int(k))


def lp_norm(op: Operation) -> None:
    """x / ||x|| along `axis`."""
    op.all_same(op.x(0), op.y())
    op.reads(op.x(0), int(op.attribute("axis", -1)))


def local_response(op: Operation) -> None:
    """A window slides along the channels."""
    op.all_same(op.x(0), op.y())
    op.freeze(op.x(0)[1], "a window slides along it")


OPERATORS = {
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": local_response,
    "LayerNormalization": layer_norm,
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": layer_norm,
    "SimplifiedLayerNormalization": layer_norm,
    "com.microsoft:SimplifiedLayerNormalization": layer_norm,
    "com.microsoft:SkipLayerNormalization": skip_norm,
    "com.microsoft:SkipSimplifiedLayerNormalization": skip_norm,
}
