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

from graphopt.execution.runtime import run
from graphopt.graph.building import Builder, remove_dead
from graphopt.graph.constants import constant_value

__all__ = ["Linear", "array_of", "constant", "linear", "put"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Linear:
    """A node that computes W f(x) + b with constant W (and b, if it has one).

    Attributes:
        node: the Conv, ConvTranspose, Gemm, MatMul or BatchNormalization.
        groups: number of independent blocks of channels.
        out_axis: axis of the weight that holds output channels.
        adds: for a MatMul, the Add that holds its bias, or None.
    """

    node: ir.Node
    groups: int
    out_axis: int
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
        return -1 if self.node.op_type in ("Gemm", "MatMul") else 1

    @property
    def can_shift(self) -> bool:
        """Whether it has, or can be given, a bias."""
        return self.node.op_type != "MatMul" or self.adds is not None

    def matrix(self) -> Array:
        """The weight as [groups, outputs per group, features], float64."""
        w = array_of(self.node.inputs[1]).astype(np.float64)
        kind, g = self.node.op_type, self.groups
        if kind == "BatchNormalization":
            return (w / self._deviation())[:, None, None]
        if kind == "Conv":
            return w.reshape(g, w.shape[0] // g, -1)
        if kind == "ConvTranspose":
            w = w.reshape(g, w.shape[0] // g, w.shape[1], -1)
            return w.transpose(0, 2, 1, 3).reshape(g, w.shape[2], -1)
        if kind == "Gemm":
            w = w * self.node.attributes.get_float("alpha", 1.0)
            return (w if self.out_axis == 0 else w.T)[None]
        return w.T[None]

    def bias(self) -> Array:
        """The bias of each output, float64 (zeros if there is none)."""
        if self.node.op_type == "BatchNormalization":
            gain, shift, mean = (array_of(v).astype(np.float64) for v in self.node.inputs[1:4])
            return shift - mean * gain / self._deviation()
        outputs = self.matrix().shape[0] * self.matrix().shape[1]
        value: ir.Value | None = None
        scale = 1.0
        if self.node.op_type == "MatMul":
            if self.adds is not None:
                value = next(v for v in self.adds.inputs if v is not self.y)
        elif len(self.node.inputs) > 2:
            value = self.node.inputs[2]
            scale = self.node.attributes.get_float("beta", 1.0)
        if value is None:
            return np.zeros(outputs)
        b = array_of(value).astype(np.float64).reshape(-1) * scale
        return np.broadcast_to(b, (outputs,)).copy()

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
        table = taps(self.node, x.shape[2:], y_shape[2:])
        if positions is not None:
            table = table[positions]
        n, c, g = x.shape[0], x.shape[1], self.groups
        flat = x.reshape(n, c, -1)
        flat = np.concatenate([flat, np.zeros((n, c, 1), x.dtype)], axis=2)
        got = flat.reshape(n, g, c // g, -1)[:, :, :, table]  # n, g, c/g, p, t
        return got.transpose(1, 0, 3, 2, 4).reshape(g, n * len(table), -1)

    def positions(self, y_shape: tuple[int, ...]) -> int:
        """How many spatial positions an output of this shape has (1 for Gemm and MatMul)."""
        return int(np.prod(y_shape[2:])) if self.channel_axis == 1 else 1

    def store(self, model: ir.Model, matrix: Array, bias: Array | None) -> None:
        """Put a refitted weight [groups, outputs per group, features] and bias into the node."""
        node, g = self.node, self.groups
        if node.op_type == "BatchNormalization":
            assert bias is not None
            weight, mean = matrix.reshape(-1), array_of(node.inputs[3])
            put(model, node, 1, (weight * self._deviation()).astype(mean.dtype))
            put(model, node, 2, (bias + weight * mean).astype(mean.dtype))
            return
        old = node.inputs[1]
        assert old is not None
        like = array_of(old)
        if node.op_type == "ConvTranspose":
            w = matrix.reshape(g, matrix.shape[1], like.shape[0] // g, -1).transpose(0, 2, 1, 3)
        elif node.op_type == "Conv" or (node.op_type == "Gemm" and self.out_axis == 0):
            w = matrix
        else:
            w = matrix[0].T
        put(model, node, 1, w.reshape(like.shape).astype(like.dtype))
        if node.op_type == "Gemm":
            node.attributes.pop("alpha", None)
            node.attributes.pop("beta", None)
        if bias is None:
            return
        if node.op_type == "MatMul":
            assert self.adds is not None
            k = next(k for k, v in enumerate(self.adds.inputs) if v is not self.y)
            held = array_of(self.adds.inputs[k])
            put(model, self.adds, k, bias.reshape((*held.shape[:-1], -1)).astype(held.dtype))
        else:
            put(model, node, 2, bias.astype(like.dtype))

    def _deviation(self) -> Array:
        """sqrt(var + epsilon) of a batch norm."""
        variance = array_of(self.node.inputs[4]).astype(np.float64)
        return np.sqrt(variance + self.node.attributes.get_float("epsilon", 1e-5))


def linear(node: ir.Node) -> Linear | str:
    """`node` as a linear operator, or why it is none (empty if it is no candidate at all)."""
    if node.domain not in ("", "ai.onnx"):
        return ""
    kind = node.op_type
    if kind == "BatchNormalization" and not node.attributes.get_int("training_mode", 0):
        channels = node.inputs[1].shape if node.inputs[1] is not None else None
        if channels is None or not all(constant(v) for v in node.inputs[1:5]):
            return ""
        return Linear(node, int(channels.numpy()[0]), 0)
    if kind not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return ""
    weight = node.inputs[1]
    assert weight is not None
    if not constant(weight):
        return ""
    if kind in ("Conv", "ConvTranspose"):
        if kind == "ConvTranspose" and (
            "output_shape" in node.attributes
            or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
        ):
            return "its padding depends on the input size"
        if len(node.inputs) > 2 and node.inputs[2] is not None and not constant(node.inputs[2]):
            return "its bias is computed"
        return Linear(node, node.attributes.get_int("group", 1), 0 if kind == "Conv" else 1)
    if weight.shape is not None and len(weight.shape) != 2:
        return "its weight is batched"
    if kind == "Gemm":
        if node.attributes.get_int("transA", 0):
            return "its input is transposed"
        if len(node.inputs) > 2 and node.inputs[2] is not None and not constant(node.inputs[2]):
            return "its bias is computed"
        return Linear(node, 1, 0 if node.attributes.get_int("transB", 0) else 1)
    return Linear(node, 1, 1, _bias_add(node))


def constant(value: ir.Value | None) -> bool:
    """Whether a value is computed from initializers alone."""
    if value is None:
        return False
    if constant_value(value) is not None:
        return True
    node = value.producer()
    return node is not None and bool(node.inputs) and all(constant(v) for v in node.inputs if v)


def array_of(value: ir.Value | None) -> Array:
    """The array of a constant value, computed if nodes stand between it and its initializers."""
    assert value is not None
    known = constant_value(value)
    if known is not None:
        return known.numpy()
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    part = ir.convenience.extract(graph, [], [value])
    (array,) = run(ir.Model(part, ir_version=10), {}).values()
    return array


def taps(node: ir.Node, size_in: tuple[int, ...], size_out: tuple[int, ...]) -> Array:
    """[positions, taps]: the flat input position that each tap reads at each output, or -1.

    Convolution reads i = o * stride - pad + t * dilation; the transpose reads i where
    i * stride = o + pad - t * dilation.
    """
    weight = node.inputs[1]
    assert weight is not None
    rank = len(size_in)
    kernel = array_of(weight).shape[2:]
    a = node.attributes
    strides = a.get_ints("strides", [1] * rank)
    dilations = a.get_ints("dilations", [1] * rank)
    pads = _pads(node, size_in, size_out, kernel, strides, dilations)
    flat = np.zeros((1,) * (2 * rank), np.int64)
    valid = np.ones((1,) * (2 * rank), bool)
    for d in range(rank):
        o = np.arange(size_out[d])[:, None]
        t = np.arange(kernel[d])[None] * dilations[d]
        if node.op_type == "Conv":
            i = o * strides[d] - pads[d] + t
            ok = np.ones_like(i, bool)
        else:
            i, ok = (o + pads[d] - t) // strides[d], (o + pads[d] - t) % strides[d] == 0
        ok &= (i >= 0) & (i < size_in[d])
        shape = [1] * (2 * rank)
        shape[d], shape[rank + d] = i.shape
        flat = flat * size_in[d] + i.reshape(shape)
        valid = valid & ok.reshape(shape)
    return np.where(valid, flat, -1).reshape(int(np.prod(size_out)), int(np.prod(kernel)))


def _pads(
    node: ir.Node,
    size_in: tuple[int, ...],
    size_out: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: Any,
    dilations: Any,
) -> list[int]:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return list(node.attributes.get_ints("pads", [0] * (2 * len(size_in))))
    if mode == "VALID":
        return [0] * len(size_in)
    total = [
        max(0, (o - 1) * s + (k - 1) * d + 1 - i)
        for i, o, k, s, d in zip(size_in, size_out, kernel, strides, dilations, strict=True)
    ]
    return [p // 2 if mode == "SAME_UPPER" else p - p // 2 for p in total]


def _bias_add(node: ir.Node) -> ir.Node | None:
    """The Add right after a MatMul whose other input is one constant per output channel."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    after = uses[0].node
    if after.op_type != "Add" or after.domain not in ("", "ai.onnx"):
        return None
    other = after.inputs[1 - uses[0].idx]
    if not constant(other):
        return None
    shape = array_of(other).shape
    width = array_of(node.inputs[1]).shape[-1]
    return after if shape and shape[-1] == width and int(np.prod(shape)) == width else None


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
