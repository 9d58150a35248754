"""Constant nodes become initializers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import onnx_ir as ir

from graphopt import Context
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import Names, remove_dead
from graphopt.graph.constants import constant_value
from graphopt.graph.traverse import all_nodes

__all__ = ["lift_constants"]

#: Constants up to this many elements are compared as they are lifted.
SMALL = 1024


def lift_constants(model: ir.Model, ctx: Context) -> int:
    """Constant nodes, those in subgraphs too -> initializers of the main graph.

    Small ones that hold the same bytes become one.
    """
    nodes = [n for n in all_nodes(model.graph) if n.op_type == "Constant"]
    if not nodes:
        return 0
    names = Names(model)
    edits = 0
    known: dict[Any, ir.Value] = {}
    for node in nodes:
        old = node.outputs[0]
        tensor = constant_value(old)
        if tensor is None or old.is_graph_output() or not old.uses():
            continue
        if not ctx.edit("LiftConstants", node):
            continue
        sizes = tensor.shape.numpy()
        key = _content(tensor, sizes)
        value = None if key is None else known.get(key)
        if value is None:
            name = old.name or "constant"
            if node.graph is not model.graph:
                name = names.fresh(name)
            value = ir.Value(name=name, shape=ir.Shape(sizes), type=ir.TensorType(tensor.dtype))
            value.const_value = tensor
            if key is not None:
                known[key] = value
        old.replace_all_uses_with(value)
        remove_dead([node])
        if not value.is_initializer():
            model.graph.register_initializer(value)
        edits += 1
    if edits:
        ctx.invalidate(preserves=(shapes,))
    return edits


def _content(tensor: ir.TensorProtocol, sizes: Sequence[int]) -> Any:
    """Equal for tensors of the same type, shape and bytes; None for those too large to say."""
    if prod(sizes) > SMALL or tensor.dtype is ir.DataType.STRING:
        return None
    return tensor.dtype, tuple(sizes), tensor.tobytes()
