"""Quantized models as input: their form, and back to float with the ranges they carry.

    DequantizeLinear(W, s, z)   ->  (W - z) s                       a constant
    x -> Q(s, z) -> DQ(s, z)    ->  x, known to lie on [(least - z) s, (greatest - z) s]

A quantizer that lets the grid's lower end stand for a Relu has removed it: where the range starts
at zero it is put back.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.writer import Writer

from graphopt.calibration.ranges import Range
from graphopt.graph.building import remove_dead
from graphopt.graph.constants import constant_value, weight_of
from graphopt.target import Int8Scheme

__all__ = ["Form", "form_of", "open_quantized"]

Array = np.ndarray[Any, Any]

#: Operators whose results are never negative.
POSITIVE = frozenset({"Abs", "Relu", "Sigmoid", "Softmax", "HardSigmoid"})
BITS8 = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclasses.dataclass(frozen=True)
class Form:
    """How a model is quantized.

    Attributes:
        activations, weights: the integer types that occur.
        symmetric: every weight has zero point 0.
        pairs: Q/DQ pairs around activations.
    """

    activations: frozenset[str]
    weights: frozenset[str]
    symmetric: bool
    pairs: int

    def suits(self, scheme: Int8Scheme) -> bool:
        """Whether a target with this scheme computes in it at full speed."""
        return (
            self.activations <= {scheme.activation}
            and self.weights <= {scheme.weight}
            and (self.symmetric or scheme.everywhere)  # such devices have zero points
        )

    def __str__(self) -> str:
        kinds = ["/".join(sorted(k)) or "no" for k in (self.activations, self.weights)]
        return f"{self.pairs} Q/DQ pairs, {kinds[0]} activations, {kinds[1]} weights" + (
            "" if self.symmetric else " with zero points"
        )


def form_of(graph: ir.Graph) -> Form | None:
    """The form of the graph's 8-bit Q/DQ pairs; None if it has none, or has what is not known."""
    activations, weights = set(), set()
    symmetric, pairs = True, 0
    for node in graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.domain not in ("", "ai.onnx") or _grid(node) is None:
            return None
        if node.op_type == "QuantizeLinear":
            activations.add(_kind(node).name.lower())
            pairs += bool(_readers(node))
        elif (stored := constant_value(node.inputs[0])) is not None:
            if stored.dtype == ir.DataType.INT32:
                continue
            zero = _grid(node)
            weights.add(stored.dtype.name.lower())
            symmetric = symmetric and zero is not None and not zero[1].any()
    return Form(frozenset(activations), frozenset(weights), symmetric, pairs) if pairs else None


def open_quantized(writer: Writer) -> dict[str, Range]:
    """Back to float; returns the range of each activation that was rounded, by name."""
    graph = writer.model.graph
    found: dict[str, Range] = {}
    dead: list[ir.Node] = []
    for node in list(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "DequantizeLinear" and weight_of(node.inputs[0]) is not None:
            _constant(writer, node)
            dead.append(node)
        elif node.op_type == "QuantizeLinear" and (readers := _readers(node)):
            value, span = _activation(writer, node)
            found[value.name or ""] = span
            for reader in readers:
                _replace(writer, reader.outputs[0], value)
                dead.append(reader)
            dead.append(node)
    remove_dead(dead)
    return found


def _grid(node: ir.Node) -> tuple[Array, Array] | None:
    """Scale and zero point, if both are constant and not by blocks."""
    scale = constant_value(node.inputs[1])
    blocks = node.attributes.get_int("block_size", 0)
    if scale is None or blocks:
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None:
        return scale.numpy(), np.zeros(scale.numpy().shape, np.int64)
    zero = constant_value(given)
    return None if zero is None else (scale.numpy(), zero.numpy().astype(np.int64))


def _kind(quantizer: ir.Node) -> ir.DataType:
    """The integers a QuantizeLinear gives."""
    given = quantizer.inputs[2] if len(quantizer.inputs) > 2 else None
    zero = constant_value(given)
    asked = quantizer.attributes.get_int("output_dtype", 0)
    return zero.dtype if zero is not None else ir.DataType(asked or ir.DataType.UINT8)


def _readers(quantizer: ir.Node) -> list[ir.Node]:
    """The DequantizeLinear nodes after it, if they alone read it and on the same grid."""
    value, grid = quantizer.outputs[0], _grid(quantizer)
    nodes = [use.node for use in value.uses()]
    if grid is None or grid[0].size != 1 or value.is_graph_output() or not nodes:
        return []
    if _kind(quantizer) not in BITS8:
        return []
    for node in nodes:
        own = _grid(node) if node.op_type == "DequantizeLinear" else None
        if (
            own is None
            or own[0].tolist() != grid[0].tolist()
            or own[1].tolist() != grid[1].tolist()
        ):
            return []
    return nodes


def _constant(writer: Writer, node: ir.Node) -> None:
    """A stored constant as float numbers."""
    stored, grid = weight_of(node.inputs[0]), _grid(node)
    assert stored is not None
    assert grid is not None
    scale, zero = grid
    array = stored.array()
    if scale.size > 1:
        axis = node.attributes.get_int("axis", 1) % array.ndim
        shape = [-1 if k == axis else 1 for k in range(array.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    floats = ((array.astype(np.int64) - zero) * scale.astype(np.float64)).astype(scale.dtype)
    name = (stored.root.name or "weight").removesuffix("_quantized").removesuffix("_q")
    made = writer.kept((stored.key, scale.tobytes(), zero.tobytes()), floats, name)
    _replace(writer, node.outputs[0], made)


def _activation(writer: Writer, node: ir.Node) -> tuple[ir.Value, Range]:
    """What stands for the rounded activation, and the range it had."""
    value, grid = node.inputs[0], _grid(node)
    assert value is not None
    assert grid is not None
    step, zero = float(grid[0].reshape(-1)[0]), int(grid[1].reshape(-1)[0])
    info = np.iinfo(_kind(node).numpy())
    span = Range((info.min - zero) * step, (info.max - zero) * step)
    producer = value.producer()
    if span.lo == 0 and producer is not None and producer.op_type not in POSITIVE:
        relu = writer.node("Relu", [value], f"{value.name}_relu", origin=[node], before=node)
        relu.outputs[0].type, relu.outputs[0].shape = value.type, value.shape
        return relu.outputs[0], span
    return value, span


def _replace(writer: Writer, old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand for `old`, also as an output, which keeps its name."""
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    producer = old.producer()
    assert producer is not None
    same = writer.node("Identity", [new], f"{old.name}_same", origin=[producer], before=producer)
    writer.take_over(old, same.outputs[0])
