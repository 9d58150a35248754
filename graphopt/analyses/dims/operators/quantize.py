"""Quantized tensors: scales and zero points ride along with the axis they belong to."""

from __future__ import annotations

from graphopt.analyses.dims.axes import Tensor
from graphopt.analyses.dims.operation import Operation
from graphopt.analyses.dims.operators.linear import grouped, product

__all__ = ["OPERATORS"]


def quantize(op: Operation) -> None:
    """QuantizeLinear, DequantizeLinear: scale and zero point are scalars, or lie along `axis`."""
    x, y = op.x(0), op.y()
    op.all_same(x, y)
    for k in (1, 2):
        if op.has(k):
            along(op, op.x(k), x, int(op.attribute("axis", 1)))


def along(op: Operation, scale: Tensor, x: Tensor, axis: int) -> None:
    """A scale per position of one axis; one per block of positions freezes that axis."""
    if scale.rank == 1 and scale.sizes[0] != 1:
        op.same(scale[0], x[axis % x.rank])
    elif scale.rank > 1:
        for a, b, n, m in zip(scale.axes, x.axes, scale.sizes, x.sizes, strict=True):
            if n == m:
                op.same(a, b)
            else:
                op.freeze((a, b), "it is quantized in blocks")


def dynamic_quantize(op: Operation) -> None:
    """The range is taken over all elements, and over those that are left after a cut."""
    op.all_same(op.x(0), op.y())
    for k in range(op.x(0).rank):
        op.reads(op.x(0), k)


def qlinear_conv(op: Operation) -> None:
    """x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias."""
    w, y = op.x(3), op.y()
    grouped(op, op.x(0), w, y, [op.x(8)] if op.has(8) else [])
    for k in (4, 5):
        along(op, op.x(k), w, 0)


def conv_integer(op: Operation) -> None:
    """x, w, x_zero, w_zero."""
    grouped(op, op.x(0), op.x(1), op.y(), [])
    if op.has(3):
        along(op, op.x(3), op.x(1), 0)


def qlinear_matmul(op: Operation) -> None:
    """a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero."""
    a, b = op.x(0), op.x(3)
    product(op, a, b, op.y())
    for k in (1, 2):
        along(op, op.x(k), a, -2)
    for k in (4, 5):
        along(op, op.x(k), b, -1)


def matmul_integer(op: Operation) -> None:
    """a, b, a_zero, b_zero."""
    product(op, op.x(0), op.x(1), op.y())
    for k, axis in ((2, -2), (3, -1)):
        if op.has(k):
            along(op, op.x(k), op.x(k - 2), axis)


OPERATORS = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": quantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "QuantizeLinear": quantize,
    "com.microsoft:DequantizeLinear": quantize,
    "com.microsoft:QuantizeLinear": quantize,
}
