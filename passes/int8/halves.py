"""Models in half precision on targets without it: computed in float32, as the runtime does there.

    op(x16, W16)  ->  op(x32, Cast(W16))        inputs and outputs of the model keep their types

ONNX Runtime wraps each operator of the CPU in casts and drops those between two operators, so that
nothing is rounded to halves on the way. Written out, the operators are those that integers replace.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.context import Context
from graphopt.graph.building import Builder, Names
from graphopt.graph.traverse import all_graphs, all_nodes

__all__ = ["close_halves", "open_halves"]

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
#: Attributes that name an element type.
TYPES = frozenset({"to", "dtype", "output_dtype"})
#: Tensors of fewer elements are not worth a Cast.
SMALLEST = 256


def open_halves(model: ir.Model, ctx: Context) -> set[str] | None:
    """Compute in float32 what `model` computes in halves; the names of weights that were halves.

    None where there are none, the target computes in halves itself, or they stand in sequences.
    """
    if "float16" in ctx.target.precisions or not any(_halves(model)):
        return None
    if any(not isinstance(v.type, ir.TensorType) for v in _values(model) if v.type is not None):
        return None
    if not ctx.edit("OpenHalves", "model"):
        return None
    names, first = Names(model), model.graph[0]
    inputs = [v for v in model.graph.inputs if v.dtype == HALF]
    outputs = [v for v in model.graph.outputs if v.dtype == HALF]
    for value in _values(model):
        if value.dtype == HALF and value not in inputs:
            value.type = ir.TensorType(FLOAT)
    weights: set[str] = set()
    for graph in all_graphs(model.graph):
        for name, value in graph.initializers.items():
            if value.const_value is not None and value.const_value.dtype == HALF:
                value.const_value = ir.Tensor(
                    value.const_value.numpy().astype(np.float32), name=name
                )
                weights.add(name)
    for node in list(all_nodes(model.graph)):
        _retype(node)
    for value in inputs:
        builder = Builder(model, first, names)
        users = list(value.uses())
        wide = builder.Cast(value, to=FLOAT)
        wide.type, wide.shape = ir.TensorType(FLOAT), value.shape
        for use in users:
            use.node.replace_input_with(use.idx, wide)
    for value in outputs:
        _narrow(model, value, names)
    ctx.invalidate()
    return weights


def close_halves(model: ir.Model, weights: set[str]) -> None:
    """Store as halves again the weights that are still floats, with a Cast where they are read."""
    names = Names(model)
    for name in sorted(weights & set(model.graph.initializers)):
        value = model.graph.initializers[name]
        tensor = value.const_value
        if tensor is None or tensor.dtype != FLOAT or tensor.size < SMALLEST:
            continue
        builder = Builder(model, model.graph[0], names)
        kept = builder.constant(tensor.numpy().astype(np.float16), f"{name}_half")
        wide = builder.Cast(kept, to=FLOAT)
        wide.type, wide.shape = ir.TensorType(FLOAT), value.shape
        value.replace_all_uses_with(wide)
        del model.graph.initializers[name]


def _retype(node: ir.Node) -> None:
    """Let a node make floats where it made halves."""
    for name, held in list(node.attributes.items()):
        if held.is_ref():
            continue
        if held.type == ir.AttributeType.INT and name in TYPES and held.value == HALF:
            node.attributes[name] = ir.AttrInt64(name, FLOAT)
        elif held.type == ir.AttributeType.TENSOR and held.as_tensor().dtype == HALF:
            array = held.as_tensor().numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.Tensor(array))


def _narrow(model: ir.Model, value: ir.Value, names: Names) -> None:
    """Let an output of the model be halves again."""
    node = value.producer()
    if node is None:
        return
    name = value.name
    value.name = names.fresh(f"{name}_float")
    builder = Builder(model, node, names)
    made = builder.Cast(value, to=HALF)
    made.type, made.shape, made.name = ir.TensorType(HALF), value.shape, name
    cast = builder.nodes[-1]
    model.graph.remove(cast)
    model.graph.append(cast)
    model.graph.outputs[list(model.graph.outputs).index(value)] = made


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in all_graphs(model.graph):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _halves(model: ir.Model) -> Iterator[bool]:
    """Whether weights, values or constants are halves."""
    for value in _values(model):
        held = value.const_value
        yield value.dtype == HALF or (held is not None and held.dtype == HALF)
    for node in all_nodes(model.graph):
        for held_ in node.attributes.values():
            if not held_.is_ref() and held_.type == ir.AttributeType.TENSOR:
                yield held_.as_tensor().dtype == HALF
