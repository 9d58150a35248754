"""Linear operators with constant weights, seen as y = W f(x) + b: what compensation can refit.

Convolutions (grouped, depthwise, of any rank), their transposes, Gemm and MatMul are all products
of a weight matrix and *features* gathered from the input: for output position p and kernel tap t
a table says which input position is read, or none. One table serves both kinds of convolution. A
batch norm at inference is one weight and one bias per channel, a convolution of C groups.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.linear import Linear, bias_add, linear_of
from graphopt.calibration.moments import patches, taps
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, remove_dead
from graphopt.graph.constants import array_of, is_constant

__all__ = ["Refittable", "put", "refittable"]

Array = np.ndarray[Any, Any]

#: They have no bias of their own.
PRODUCTS = ("FusedMatMul", "MatMul")
KINDS = ("Conv", "ConvTranspose", "Gemm", *PRODUCTS)


@dataclasses.dataclass(frozen=True)
class Refittable:
    """A node that computes W f(x) + b with constant W (and b, if it has one).

    Attributes:
        node: the Conv, ConvTranspose, Gemm, MatMul, FusedMatMul or BatchNormalization.
        groups: number of independent blocks of channels.
        op: how it is linear, or None for a BatchNormalization.
        adds: for a MatMul, the Add that holds its bias, or None.
    """

    node: ir.Node
    groups: int
    op: Linear | None = None
    adds: ir.Node | None = None

    @property
    def x(self) -> ir.Value:
        """The input that is not constant."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def y(self) -> ir.Value:
        """The output."""
        return self.node.outputs[0]

    @property
    def channel_axis(self) -> int:
        """Axis of the output that holds channels."""
        return 1 if self.op is None else self.op.y_axis

    @property
    def can_shift(self) -> bool:
        """Whether it has, or can be given, a bias."""
        return self.node.op_type not in PRODUCTS or self.adds is not None

    def matrix(self) -> Array:
        """The weight as [groups, outputs per group, features], float64."""
        if self.op is None:
            w = array_of(self.node.inputs[1]).astype(np.float64)
            return (w / self._deviation())[:, None, None]
        return self.op.matrix().astype(np.float64) * self.op.alpha

    def bias(self) -> Array:
        """The bias of each output, float64 (zeros if there is none)."""
        if self.op is None:
            gain, shift, mean = (array_of(v).astype(np.float64) for v in self.node.inputs[1:4])
            return shift - mean * gain / self._deviation()
        value = self.op.bias
        if self.adds is not None:
            value = next(v for v in self.adds.inputs if v is not self.y)
        if value is None:
            return np.zeros(self.op.out_channels)
        b = array_of(value).astype(np.float64).reshape(-1) * self.op.beta
        return np.broadcast_to(b, (self.op.out_channels,)).copy()

    def channels(self, y: Array, positions: Array | None = None) -> Array:
        """Outputs `y` as [groups, rows, outputs per group], at some spatial positions or at all."""
        if self.channel_axis == 1:
            flat = y.reshape(*y.shape[:2], -1)
            if positions is not None:
                flat = flat[:, :, positions]
            rows = flat.transpose(0, 2, 1).reshape(-1, y.shape[1])
        else:
            rows = y.reshape(-1, y.shape[-1])
        return rows.reshape(len(rows), self.groups, -1).transpose(1, 0, 2)

    def features(self, x: Array, y_shape: tuple[int, ...], positions: Array | None = None) -> Array:
        """f(x) as [groups, rows, features], row for row beside `channels`."""
        if self.channel_axis == -1:
            return x.reshape(1, -1, x.shape[-1])
        if self.node.op_type == "BatchNormalization":
            return self.channels(x, positions)
        assert self.op is not None
        table = taps(self.node, self.op.kernel, x.shape[2:], y_shape[2:])
        return patches(x, table if positions is None else table[positions], self.groups)

    def positions(self, y_shape: tuple[int, ...]) -> int:
        """How many spatial positions an output of this shape has (1 for Gemm and MatMul)."""
        return int(np.prod(y_shape[2:])) if self.channel_axis == 1 else 1

    def store(self, model: ir.Model, matrix: Array, bias: Array | None) -> None:
        """Put a refitted weight [groups, outputs per group, features] and bias into the node."""
        node = self.node
        if self.op is None:
            assert bias is not None
            weight, mean = matrix.reshape(-1), array_of(node.inputs[3])
            put(model, node, 1, (weight * self._deviation()).astype(mean.dtype))
            put(model, node, 2, (bias + weight * mean).astype(mean.dtype))
            return
        dtype = self.op.array().dtype
        put(model, node, 1, self.op.stored(matrix).astype(dtype))
        node.attributes.pop("alpha", None)
        node.attributes.pop("beta", None)
        if bias is None:
            return
        if node.op_type in PRODUCTS:
            assert self.adds is not None
            k = next(k for k, v in enumerate(self.adds.inputs) if v is not self.y)
            held = array_of(self.adds.inputs[k])
            put(model, self.adds, k, bias.reshape((*held.shape[:-1], -1)).astype(held.dtype))
        else:
            put(model, node, 2, bias.astype(dtype))

    def _deviation(self) -> Array:
        """sqrt(var + epsilon) of a batch norm."""
        variance = array_of(self.node.inputs[4]).astype(np.float64)
        return np.sqrt(variance + float(attribute(self.node, "epsilon")))


def refittable(node: ir.Node) -> Refittable | str:
    """`node` as a linear operator, or why it is none (empty if it is no candidate at all)."""
    if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
        held = all(is_constant(v) for v in node.inputs[1:5])
        if not held or attribute(node, "training_mode", 0):
            return ""
        return Refittable(node, len(array_of(node.inputs[1])))
    op = linear_of(node) if node.op_type in KINDS else ""
    if isinstance(op, str):
        return op
    if op.stacked:
        return "its weight is batched"
    if op.left:
        return "its weight stands on the left"
    if op.turned:
        return "its input is transposed"
    if op.bias is not None and not is_constant(op.bias):
        return "its bias is computed"
    if node.op_type == "ConvTranspose" and (
        "output_shape" in node.attributes or attribute(node, "auto_pad") != "NOTSET"
    ):
        return "its padding depends on the input size"
    return Refittable(node, op.groups, op, bias_add(op) if node.op_type in PRODUCTS else None)


def put(model: ir.Model, node: ir.Node, index: int, array: Array) -> None:
    """Let input `index` of `node` be this constant, and of no other node."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    own = old is not None and old.is_initializer() and len(old.uses()) == 1
    if old is not None and own and not (old.is_graph_input() or old.is_graph_output()):
        old.const_value = ir.tensor(np.ascontiguousarray(array), name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    name = old.name if old is not None and old.name else f"{node.name}.{index}"
    node.replace_input_with(index, Builder(model, node).constant(np.ascontiguousarray(array), name))
    producer = old.producer() if old is not None else None
    if producer is not None:
        remove_dead([producer])
