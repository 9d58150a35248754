"""Convolutions over one axis as products of unfolded rows (im2col), for rounding block by block.

    y[n, :, t] = sum_i W_i x[n, :, s t + d i - p] + b
               = [W_0 ... W_k-1] [x[n, :, s t - p]; ...; x[n, :, s t + d (k-1) - p]] + b

The rows of the product are the places of y, its columns the taps of W with their channels. Where
the step divides the kernel (frames of a Fourier transform: 256 samples every 64), x is cut into
frames of one step each, and a row joins the frames that it covers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.analyses.linear import Linear, linear_of
from graphopt.graph import provenance
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, Names

__all__ = ["unfold", "unfolds"]

#: More slices than this cost more than the product.
SLICES = 16
LAST = np.iinfo(np.int64).max


def unfolds(node: ir.Node) -> Linear | None:
    """The node, if it is a convolution over one axis with one group and few enough slices."""
    op = linear_of(node) if node.op_type == "Conv" and node.domain in ("", "ai.onnx") else ""
    if isinstance(op, str) or len(op.shape) != 3 or op.groups != 1 or op.shared:
        return None
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    kernel, stride, dilation, _ = _window(op)
    frames = kernel // stride if dilation == 1 and kernel % stride == 0 else kernel
    return op if frames <= SLICES and op.dtype == ir.DataType.FLOAT else None


def unfold(model: ir.Model, op: Linear, names: Names) -> ir.Node:
    """Put the product in place of a convolution that `unfolds`; returns the MatMul."""
    builder = Builder(model, op.node, names)
    kernel, stride, dilation, pads = _window(op)
    x = builder.Transpose(op.x, perm=[0, 2, 1])
    if any(pads):
        ends = builder.constant(np.array([0, pads[0], 0, 0, pads[1], 0]), "unfold_pads")
        x = builder.Pad(x, ends)
    axis = builder.constant(np.array([1]), "unfold_axis")
    if dilation == 1 and kernel % stride == 0:
        if stride > 1:
            x = _frames(builder, x, axis, op.in_channels, stride)
        count, gap, step = kernel // stride, 1, 1
    else:
        count, gap, step = kernel, dilation, stride
    parts = list(_slices(builder, x, axis, count, gap, step))
    rows = builder.Concat(*parts, axis=2) if len(parts) > 1 else parts[0]
    taps = op.array().transpose(2, 1, 0).reshape(-1, op.out_channels)
    weight = builder.constant(np.ascontiguousarray(taps), f"{op.weight.name}_unfolded")
    y = builder.MatMul(rows, weight)
    product = builder.nodes[-1]
    if op.bias is not None:
        y = builder.Add(y, op.bias)
    y = builder.Transpose(y, perm=[0, 2, 1])
    builder.take_over(op.y, y)
    provenance.derive(builder.nodes, [op.node], "int8")
    return product


def _window(op: Linear) -> tuple[int, int, int, list[int]]:
    """Kernel, stride, dilation and pads."""
    node, kernel = op.node, op.shape[2]
    (stride,), (dilation,) = attribute(node, "strides", [1]), attribute(node, "dilations", [1])
    return kernel, stride, dilation, list(attribute(node, "pads", [0, 0]))


def _frames(builder: Builder, x: ir.Value, axis: ir.Value, channels: int, stride: int) -> ir.Value:
    """x [n, length, channels] as [n, length / stride, stride * channels], what is over cut off."""
    step = builder.constant(np.array([stride]), "unfold_stride")
    length = builder.Shape(x, start=1, end=2)
    whole = builder.Mul(builder.Div(length, step), step)
    zero = builder.constant(np.array([0]), "unfold_start")
    x = builder.Slice(x, zero, whole, axis)
    shape = builder.constant(np.array([0, -1, stride * channels]), "unfold_shape")
    return builder.Reshape(x, shape)


def _slices(
    builder: Builder, x: ir.Value, axis: ir.Value, count: int, gap: int, step: int
) -> Iterator[ir.Value]:
    """For each tap the places of x that it meets, all equally many."""
    if count == step == 1:
        yield x
        return
    steps = builder.constant(np.array([step]), "unfold_step") if step > 1 else None
    for k in range(count):
        over = gap * (count - 1 - k)
        start = builder.constant(np.array([gap * k]), "unfold_start")
        end = builder.constant(np.array([-over if over else LAST]), "unfold_end")
        yield builder.Slice(x, start, end, axis, steps)
