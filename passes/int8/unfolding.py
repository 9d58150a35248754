"""Convolutions along one axis as products of unfolded rows (im2col), for rounding block by block.

    y[n, :, t] = sum_i W_i x[n, :, s t + d i - p] + b
               = [W_0 ... W_k-1] [x[n, :, s t - p]; ...; x[n, :, s t + d (k-1) - p]] + b

The rows of the product are the places of y, its columns the taps of W with their channels. Where
the step divides the kernel (frames of a Fourier transform: 256 samples every 64), x is cut into
frames of one step each, and a row joins the frames that it covers. Axes beside the one that W moves
along (Keras and JAX write one axis as an image of one row) only pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.analyses.linear import Linear, linear_of
from graphopt.graph import provenance
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, Names

__all__ = ["Unfolded", "unfold", "unfolds"]

#: More slices than this cost more than the product.
SLICES = 16
LAST = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Unfolded:
    """A convolution that moves along one axis.

    Attributes:
        op: its weight is [out channels, channels, *kernel], with one axis of the kernel above 1.
        axis: of x, the one that it moves along.
        kernel, stride, dilation: along that axis.
        pads: before and after it.
    """

    op: Linear
    axis: int
    kernel: int
    stride: int
    dilation: int
    pads: tuple[int, int]

    @property
    def framed(self) -> bool:
        """Whether rows are joined of frames of one step each."""
        return self.dilation == 1 and self.kernel % self.stride == 0

    @property
    def slices(self) -> int:
        """Slices that are joined to rows."""
        return self.kernel // self.stride if self.framed else self.kernel


def unfolds(node: ir.Node) -> Unfolded | None:
    """The node, if it is such a convolution with one group and few enough slices."""
    op = linear_of(node) if node.op_type == "Conv" and node.domain in ("", "ai.onnx") else ""
    if isinstance(op, str) or op.groups != 1 or op.shared or op.dtype != ir.DataType.FLOAT:
        return None
    kernels = op.shape[2:]
    rank = len(kernels)
    at = int(np.argmax(kernels)) if max(kernels, default=0) > 1 else rank - 1
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    pads = list(attribute(node, "pads", [0] * 2 * rank))
    mode = attribute(node, "auto_pad", "NOTSET")
    whole = dilations[at] * (kernels[at] - 1)
    if mode in ("SAME_UPPER", "SAME_LOWER") and strides[at] == 1:
        less, more = whole // 2, whole - whole // 2
        pads[at], pads[rank + at] = (less, more) if mode == "SAME_UPPER" else (more, less)
    elif mode not in ("NOTSET", "VALID"):
        return None
    others = [k for k in range(rank) if k != at]
    if any(kernels[k] * strides[k] > 1 or pads[k] or pads[rank + k] for k in others):
        return None
    found = Unfolded(
        op, at + 2, kernels[at], strides[at], dilations[at], (pads[at], pads[rank + at])
    )
    return found if rank and found.slices <= SLICES else None


def unfold(model: ir.Model, conv: Unfolded, names: Names) -> ir.Node:
    """Put the product in place of a convolution that `unfolds`; returns the MatMul."""
    op, stride = conv.op, conv.stride
    builder = Builder(model, op.node, names)
    rank = len(op.shape)
    inner = [0, *(k for k in range(2, rank) if k != conv.axis), conv.axis, 1]
    x = builder.Transpose(op.x, perm=inner)
    if any(conv.pads):
        beside = [0] * (rank - 2)
        ends = [*beside, conv.pads[0], 0, *beside, conv.pads[1], 0]
        x = builder.Pad(x, builder.constant(np.array(ends), "unfold_pads"))
    axis = builder.constant(np.array([rank - 2]), "unfold_axis")
    if conv.framed and stride > 1:
        x = _frames(builder, x, axis, rank, op.in_channels, stride)
    gap, step = (1, 1) if conv.framed else (conv.dilation, stride)
    parts = list(_slices(builder, x, axis, conv.slices, gap, step))
    rows = builder.Concat(*parts, axis=rank - 1) if len(parts) > 1 else parts[0]
    taps = op.array().reshape(*op.shape[:2], -1).transpose(2, 1, 0).reshape(-1, op.out_channels)
    weight = builder.constant(np.ascontiguousarray(taps), f"{op.weight.name}_unfolded")
    y = builder.MatMul(rows, weight)
    product = builder.nodes[-1]
    if op.bias is not None:
        y = builder.Add(y, op.bias)
    y = builder.Transpose(y, perm=np.argsort(inner).tolist())
    builder.take_over(op.y, y)
    provenance.derive(builder.nodes, [op.node], "int8")
    return product


def _frames(
    builder: Builder, x: ir.Value, axis: ir.Value, rank: int, channels: int, stride: int
) -> ir.Value:
    """x [..., length, channels] as [..., length / stride, stride * channels]; the rest is cut."""
    step = builder.constant(np.array([stride]), "unfold_stride")
    length = builder.Shape(x, start=rank - 2, end=rank - 1)
    whole = builder.Mul(builder.Div(length, step), step)
    zero = builder.constant(np.array([0]), "unfold_start")
    x = builder.Slice(x, zero, whole, axis)
    shape = builder.constant(np.array([*[0] * (rank - 2), -1, stride * channels]), "unfold_shape")
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
