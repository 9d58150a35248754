"""Quantized layers for converters that know no Q/DQ: the model in floats, and each layer's grids.

    x -> Q -> DQ -> Conv(., DQ(w)) -> Relu -> Q -> DQ -> y

is Conv and Relu on floats, and a `QuantizedLayer` that says how the device is to round x, w and y.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.context import Context
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import QUANTIZATION, constant_value
from graphopt.rewriting.driver import apply_rules
from graphopt.rewriting.rules import Replacement, Walker
from graphopt.target import Int8Scheme

__all__ = [
    "SYMMETRIC",
    "Grid",
    "QuantizedLayer",
    "in_floats",
    "in_pairs",
    "is_quantized",
    "rounding_data_alone",
]

Array = np.ndarray[Any, Any]

#: Data int8 without zero point, weights int8 a scale per channel; what is no layer is floats.
SYMMETRIC = Int8Scheme(
    activation="int8",
    weight="int8",
    symmetric_activation=True,
    bias="float32",
    operators=frozenset({"Conv", "Gemm", "MatMul"}),
)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Integers of 8 bits for reals: x = scale * (q - zero), q from -128 to 127."""

    scale: float
    zero: int


@dataclasses.dataclass(frozen=True)
class QuantizedLayer:
    """A convolution or product that a device computes in integers.

    Attributes:
        names: of the node, and of its result, as it is, with a bias added and activated.
        weight: in floats, output channels first; each is a multiple of its scale.
        scales: of the weight, one for each output channel.
        data: the grid of what it reads.
        result: the grid of what it gives (behind the activation), if that is rounded.
    """

    names: tuple[str, ...]
    weight: Array
    scales: Array
    data: Grid
    result: Grid | None


def is_quantized(model: ir.Model) -> bool:
    """Whether the model has integers of its own."""
    return any(n.op_type in QUANTIZATION for n in model.graph.all_nodes())


def in_floats(model: ir.Model) -> tuple[ir.Model, list[QuantizedLayer]]:
    """A clone without Q/DQ (it shares the weights), and its layers that are between such pairs."""
    clone = model.clone()
    layers = [layer for node in clone.graph if (layer := _layer(node)) is not None]
    names = Names(clone)
    dead = []
    for node in list(clone.graph):
        if node.op_type != "DequantizeLinear":
            continue
        source = node.inputs[0]
        assert source is not None
        there = source.producer()
        if constant_value(source) is not None:
            real = Builder(clone, node, names).constant(_reals(node), f"{source.name}_real")
        elif there is not None and there.op_type == "QuantizeLinear" and there.inputs[0]:
            real = there.inputs[0]
        else:
            continue
        if node.outputs[0].is_graph_output():
            node.replace_input_with(0, real)
            node.resize_inputs(1)
            node.op_type = "Identity"
            node.attributes.clear()
        else:
            node.outputs[0].replace_all_uses_with(real)
        dead.append(node)
    remove_dead(dead)
    return clone, layers


def rounding_data_alone(model: ir.Model) -> ir.Model:
    """A clone (it shares the weights) that rounds what layers read, and nothing else.

    That is what devices compute whose layers give floats.
    """
    clone = model.clone()
    dead = []
    for node in list(clone.graph):
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        there = None if source is None else source.producer()
        if there is None or there.op_type != "QuantizeLinear":
            continue
        for use in list(node.outputs[0].uses()):
            if use.idx or _layer(use.node) is None:
                use.node.replace_input_with(use.idx, there.inputs[0])
        dead.append(node)
    remove_dead(dead)
    return clone


def _float_biases(clone: ir.Model) -> None:
    """Let constants of 32 bits be floats."""
    names = Names(clone)
    dead = []
    for node in list(clone.graph):
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        tensor = constant_value(source)
        if source is not None and tensor is not None and tensor.dtype is ir.DataType.INT32:
            held = Builder(clone, node, names).constant(_reals(node), f"{source.name}_real")
            node.outputs[0].replace_all_uses_with(held)
            dead.append(node)
    remove_dead(dead)


class RowsFirst(Walker):
    """DQ(w[in, out], axis 1) -> Transpose(DQ(w[out, in], axis 0)), read by products"""

    roots = ("DequantizeLinear",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        """The weight turned, if only products read it."""
        tensor, scale = constant_value(node.inputs[0]), node.inputs[1]
        products = [use.node for use in node.outputs[0].uses() if use.idx == 1]
        if tensor is None or len(tensor.shape) != 2 or attribute(node, "block_size", 0):
            return None
        if len(products) != len(node.outputs[0].uses()):
            return None
        if any(p.op_type not in ("Gemm", "MatMul") or attribute(p, "transB", 0) for p in products):
            return None

        def build(op: Any) -> Any:
            rows = op.constant(np.ascontiguousarray(tensor.numpy().T), "rows")
            return op.Transpose(op.DequantizeLinear(rows, scale, *node.inputs[2:], axis=0))

        return Replacement(build)


def in_pairs(model: ir.Model) -> ir.Model:
    """A clone (it shares the weights) whose Q/DQ stand as compilers of PyTorch's look for them.

    Each reader has a DQ of its own, biases are floats, and products read their weights with output
    channels first, as linear layers do.
    """
    clone = model.clone()
    _float_biases(clone)
    apply_rules(clone, Context(clone), (RowsFirst,))
    names = Names(clone)
    for node in list(clone.graph):
        for use in list(node.outputs[0].uses())[1:] if node.op_type == "DequantizeLinear" else ():
            made = names.fresh(node.outputs[0].name or "dq")
            again = ir.node(
                node.op_type,
                node.inputs,
                {a.name: a.value for a in node.attributes.values()},
                num_outputs=1,
                name=made,
            )
            again.outputs[0].name = made
            again.outputs[0].type, again.outputs[0].shape = (
                node.outputs[0].type,
                node.outputs[0].shape,
            )
            node.append(again)
            use.node.replace_input_with(use.idx, again.outputs[0])
    return clone


def _layer(node: ir.Node) -> QuantizedLayer | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or attribute(node, "transA", 0):
        return None
    back, weight = (None if v is None else v.producer() for v in node.inputs[:2])
    if back is None or weight is None or weight.op_type != "DequantizeLinear":
        return None
    data = _grid(back)
    blocked = attribute(weight, "block_size", 0)
    if constant_value(weight.inputs[0]) is None or data is None or blocked:
        return None
    reals = _reals(weight)
    scales = _array(weight, 1).reshape(-1)
    if node.op_type != "Conv":
        if reals.ndim != 2:
            return None
        reals = reals if attribute(node, "transB", 0) else reals.T
    result = node.outputs[0]
    names = [node.name or "", result.name or ""]
    while (after := _fused(result, len(reals))) is not None:
        result = after.outputs[0]
        names.append(result.name or "")
    users = [use.node for use in result.uses()]
    rounded = len(users) == 1 and users[0].op_type == "QuantizeLinear"
    return QuantizedLayer(
        tuple(dict.fromkeys(names)),
        np.ascontiguousarray(reals),
        np.broadcast_to(scales, len(reals)),
        data,
        _grid(users[0]) if rounded else None,
    )


def _fused(result: ir.Value, channels: int) -> ir.Node | None:
    """The Add of a bias, or the activation, that alone reads what a layer gives."""
    users = [use.node for use in result.uses()]
    if len(users) != 1 or result.is_graph_output():
        return None
    (node,) = users
    if node.op_type in ("Clip", "Relu"):
        return node
    held = [t.size for v in node.inputs if (t := constant_value(v)) is not None]
    return node if node.op_type == "Add" and held == [channels] else None


def _grid(node: ir.Node) -> Grid | None:
    """The grid of a Q or DQ node, if it is one for the whole tensor; of unsigned ones moved."""
    if node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
        return None
    scale, zero = constant_value(node.inputs[1]), None
    if len(node.inputs) > 2:
        zero = constant_value(node.inputs[2])
    if scale is None or scale.size != 1:
        return None
    at = 0 if zero is None else int(zero.numpy().reshape(()))
    unsigned = zero is None or zero.dtype is ir.DataType.UINT8
    return Grid(float(scale.numpy().reshape(())), at - 128 if unsigned else at)


def _reals(node: ir.Node) -> Array:
    """(q - z) s of constant integers, also of fewer than 8 bits, which `evaluate` leaves alone."""
    q, scale = _array(node, 0), _array(node, 1)
    zero = _array(node, 2) if len(node.inputs) > 2 else np.zeros(scale.shape, q.dtype)
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    if block:
        k = q.shape[axis]
        scale, zero = (np.repeat(a, block, axis).take(range(k), axis) for a in (scale, zero))
    elif scale.size > 1:
        axis %= q.ndim
        shape = [-1 if k == axis else 1 for k in range(q.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    made = (q.astype(np.int64) - zero.astype(np.int64)) * scale.astype(np.float64)
    return np.asarray(made, np.float32)


def _array(node: ir.Node, k: int) -> Array:
    tensor = constant_value(node.inputs[k])
    assert tensor is not None
    return tensor.numpy()
