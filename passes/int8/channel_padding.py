"""Padding the input channels of a convolution to what integer kernels read at once.

A kernel for dot products reads channels in packs (4 on x86). A convolution of 3 channels, as in
most first layers, misses it and has its patches copied out instead: 2 to 3 times the time. A
channel of zeros with zero weights changes nothing:

    q[n, 3, h, w] -> Pad -> [n, 4, h, w],  W[o, 3, ...] -> [o, 4, ...]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.writer import Writer

from graphopt.analyses.linear import linear_of
from graphopt.graph.constants import weight_of

__all__ = ["missing_channels", "padded", "with_zeros"]

#: From so many channels on, copying patches costs little beside the products.
WIDE = 16
#: Products of an added channel that cost as much as copying one channel (measured: AVX512-VNNI).
COPY = 100


def missing_channels(node: ir.Node, pack: int) -> int:
    """Channels of zeros to add to the data of convolution `node`; 0 if that gains nothing."""
    op = linear_of(node) if node.op_type == "Conv" else ""
    if isinstance(op, str) or pack < 2 or op.groups != 1:
        return 0
    out, channels = op.out_channels, op.in_channels
    missing = -channels % pack
    return missing if channels < WIDE and out * missing <= COPY * channels else 0


def padded(writer: Writer, read: ir.Value, missing: int, node: ir.Node) -> ir.Value:
    """The result of a DequantizeLinear with `missing` more channels, padded while integer."""
    pair = read.producer()
    assert pair is not None
    q, scale, zero = pair.inputs
    weight = weight_of(node.inputs[1])
    assert q is not None
    assert weight is not None
    ends = np.zeros(2 * len(weight.shape), np.int64)
    ends[len(weight.shape) + 1] = missing
    pad = writer.node(
        "Pad",
        [q, writer.shared(ends, "pads"), zero],
        f"{q.name}_padded",
        origin=[node],
        after=q.producer(),
    )
    again = writer.node(
        "DequantizeLinear",
        [pad.outputs[0], scale, zero],
        f"{read.name}_padded",
        origin=[node],
        after=pad,
    )
    shape: ir.Shape | None = None
    if read.shape is not None and len(read.shape) == len(weight.shape):
        shape = ir.Shape([*read.shape[:1], weight.shape[1] + missing, *read.shape[2:]])
    pad.outputs[0].type, again.outputs[0].type = q.type, read.type
    pad.outputs[0].shape = again.outputs[0].shape = shape
    return again.outputs[0]


def with_zeros(integers: np.ndarray[Any, Any], missing: int) -> np.ndarray[Any, Any]:
    """Weights [o, c + missing, ...] of which the last channels are 0."""
    ends = [(0, missing if axis == 1 else 0) for axis in range(integers.ndim)]
    return np.pad(integers, ends)
