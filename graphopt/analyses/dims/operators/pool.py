"""Pooling and resampling: channels are carried, windows freeze what they slide along."""

from __future__ import annotations

from graphopt.analyses.dims.operation import Operation
from graphopt.analyses.dims.operators.linear import spatial

__all__ = ["OPERATORS"]


def pool(op: Operation) -> None:
    """(N, C, ...) -> (N, C, ...) by windows over the rest."""
    x, y = op.x(0), op.y()
    op.same(x[0], y[0])
    op.same(x[1], y[1])
    spatial(op, x, y, op.attribute("kernel_shape"))
    if op.made(1):
        op.all_same(y, op.y(1))
        if op.node.outputs[1].uses():
            op.freeze(op.y(1), "its elements are positions in the whole tensor")


def global_pool(op: Operation) -> None:
    """(N, C, ...) -> (N, C, 1, ...)."""
    x, y = op.x(0), op.y()
    op.same(x[0], y[0])
    op.same(x[1], y[1])
    for k in range(2, x.rank):
        op.reads(x, k)


def resize(op: Operation) -> None:
    """Axes whose size stays are carried, the others are interpolated."""
    x, y = op.x(0), op.y()
    operand = 3 if op.has(3) else None
    axes = op.attribute("axes") or list(range(x.rank))
    if op.attribute("coordinate_transformation_mode") in (
        "tf_crop_and_resize",
        b"tf_crop_and_resize",
    ):
        op.freeze_all("it is cropped and resized")
        return
    for k in range(x.rank):
        if x.sizes[k] == y.sizes[k]:
            op.same(x[k], y[k])
            if operand is not None and k in axes:
                op.count(y[k], operand=operand, element=list(axes).index(k))
        else:
            op.freeze((x[k], y[k]), "it is interpolated")


OPERATORS = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), global_pool),
    "Resize": resize,
    "Upsample": resize,
}
