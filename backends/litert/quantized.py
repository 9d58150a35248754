"""Integers: a node between DequantizeLinear and QuantizeLinear as one operator of LiteRT on int8.

LiteRT's rules: activations int8 with any zero point, weights int8 with zero point 0 and a scale
per channel, biases int32 on the grid of data times weights; Concat, MaxPool and what only moves
elements take and give one grid (a QUANTIZE before or behind sees to it); Sigmoid, Softmax and Tanh
give fixed ones.
"""

from __future__ import annotations

import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import Grid
from graphopt.backends.litert.fusing import tail_of
from graphopt.backends.litert.writer import Lower, Refused, Writer, plain_axes

__all__ = ["FIXED", "INTEGER", "QUANTIZATION", "in_integers"]

#: The grids that kernels give, whatever is asked for.
FIXED = {
    "Sigmoid": Grid((1 / 256,), -128),
    "Softmax": Grid((1 / 256,), -128),
    "Tanh": Grid((1 / 128,), 0),
}

#: Operators with integer kernels, and which inputs are data on a grid (None: all).
INTEGER: dict[str, tuple[int, ...] | None] = {
    "Add": None,
    "AveragePool": (0,),
    "Concat": None,
    "Conv": (0, 1),
    "DepthToSpace": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "Gemm": (0, 1),
    "GlobalAveragePool": (0,),
    "LeakyRelu": (0,),
    "MatMul": None,
    "MaxPool": (0,),
    "Mul": None,
    "Pad": (0,),
    "ReduceMean": (0,),
    "Relu": (0,),
    "Reshape": (0,),
    "Resize": (0,),
    "Sigmoid": (0,),
    "Slice": (0,),
    "Softmax": (0,),
    "SpaceToDepth": (0,),
    "Squeeze": (0,),
    "Sub": None,
    "Tanh": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
}


def in_integers(name: str, lower: Lower) -> Lower:
    """The same operator, on int8 where the model says so."""
    if name not in INTEGER:
        return lower

    def write(w: Writer, node: ir.Node) -> None:
        if (quantize := _quantizer(w, node)) is None:
            lower(w, node)
            return
        grid = w.grid_of(quantize)
        value = tail_of(w, node).value
        w.grid = FIXED.get(name, grid)
        try:
            lower(w, node)
        finally:
            w.grid = None
        held = w.take(value)
        w.give(quantize.outputs[0], w.requantize(held.tensor, grid), held.axes)
        w.skip(quantize)

    return write


def _quantizer(w: Writer, node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear behind a node that reads integers alone; None if it is not so."""
    after = w.only_reader(tail_of(w, node).value)
    if after is None or after.op_type != "QuantizeLinear" or len(node.outputs) != 1:
        return None
    data = INTEGER[node.op_type]
    for k, value in enumerate(node.inputs):
        if data is not None and k not in data:
            continue
        source = None if value is None else value.producer()
        if source is None or source.op_type != "DequantizeLinear":
            return None
        if w.attribute(source, "block_size", 0):
            return None
    return after


def quantize(w: Writer, node: ir.Node) -> None:
    """QuantizeLinear(x) -> QUANTIZE"""
    value = node.inputs[0]
    assert value is not None
    axes = w.axes(value)
    shape = w.shape(value)
    grid = w.grid_of(node, tuple(shape[k] for k in axes), plain_axes(len(axes)))
    if len(grid.scale) > 1:
        raise Refused("results with a scale per channel")
    w.give(node.outputs[0], w.requantize(w.read(value, axes), grid), axes)


def dequantize(w: Writer, node: ir.Node) -> None:
    """DequantizeLinear(x): written where its result is read as floats"""


QUANTIZATION: dict[str, Lower] = {"DequantizeLinear": dequantize, "QuantizeLinear": quantize}
