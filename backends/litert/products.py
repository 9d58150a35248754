"""Products of matrices: with weights FULLY_CONNECTED, of two results BATCH_MATMUL.

A product of integers whose result stays float keeps its weights as integers: LiteRT has a kernel
that finds the range of the data on every run. Written with floats, it would unpack the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.convolution import bias_of
from graphopt.backends.litert.flatbuffer import Tensor
from graphopt.backends.litert.fusing import tail_of
from graphopt.backends.litert.writer import Lower, Refused, Writer, plain_axes

__all__ = ["PRODUCTS", "connected"]


def matmul(w: Writer, node: ir.Node) -> None:
    """MatMul(x, k) -> FULLY_CONNECTED(x, k^T, b); MatMul(a, b) -> BATCH_MATMUL"""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    assert b is not None
    left, right = w.shape(a), w.shape(b)
    if len(right) == 2 and w.real(b) is not None and len(left) > 1:
        tail = tail_of(w, node)
        for one in tail.nodes:
            w.skip(one)
        weights = w.weight(b, right, (1, 0), kept=_rounded(a))
        w.give(tail.value, connected(w, w.read(a), weights, tail.bias, tail.activation))
        return
    if len(left) == 1 or len(right) == 1:
        raise Refused("a product with a vector")
    swapped = (*range(len(right) - 2), len(right) - 1, len(right) - 2)
    turned = w.axes(b) == swapped != plain_axes(len(right))
    x, y = w.read(a), w.read(b, swapped if turned else None)
    if x.rank < y.rank:
        x = w.reshape(x, (1,) * (y.rank - x.rank) + x.shape)
    shape = w.shape(node.outputs[0])
    w.give(node.outputs[0], w.emit("BATCH_MATMUL", [x, y], shape, "BatchMatMul", adjY=turned))


def _rounded(data: ir.Value) -> bool:
    """Whether data is rounded to integers: then a kernel may that rounds it on every run."""
    node = data.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def connected(
    w: Writer, x: Tensor, weights: Tensor, bias: ir.Value | None, activation: int = 0
) -> Tensor:
    """x @ weights^T + bias over the last axis."""
    outputs = weights.shape[0]
    added = bias_of(w, bias, x, weights, outputs) if bias is not None or x.grid else None
    shape = (*x.shape[:-1], outputs)
    given: dict[str, Any] = {"keepNumDims": True, "fusedActivationFunction": activation}
    return w.emit("FULLY_CONNECTED", [x, weights, added], shape, "FullyConnected", **given)


def gemm(w: Writer, node: ir.Node) -> None:
    """Gemm(a, b, c) -> FULLY_CONNECTED"""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    assert b is not None
    alpha, beta = w.attribute(node, "alpha"), w.attribute(node, "beta")
    c = node.inputs[2] if len(node.inputs) > 2 else None
    if w.real(b) is None or (w.grid is not None and (alpha, beta) != (1.0, 1.0)):
        raise Refused("a product of two results, or a scaled one in integers")
    x = w.read(a, (1, 0)) if w.attribute(node, "transA") else w.read(a)
    order = (0, 1) if w.attribute(node, "transB") else (1, 0)
    array = w.array(b)
    if alpha != 1.0 and array is not None:
        weights = w.floats((array * np.float32(alpha)).transpose(order))
    else:
        weights = w.weight(b, w.shape(b), order, kept=_rounded(a))
    outputs = weights.shape[0]
    known = w.real(c)
    tail = tail_of(w, node)
    if c is None or (known is not None and beta == 1.0 and known.shape == (outputs,)):
        for one in tail.nodes:
            w.skip(one)
        w.give(tail.value, connected(w, x, weights, c, tail.activation))
        return
    made = connected(w, x, weights, None)
    added = w.read(c)
    if beta != 1.0:
        added = w.emit("MUL", [added, w.floats(beta)], added.shape, "Mul")
    w.give(node.outputs[0], w.emit("ADD", [made, added], made.shape, "Add"))


PRODUCTS: dict[str, Lower] = {"Gemm": gemm, "MatMul": matmul}
