"""Weights that a model computes from constants become constants, so that they can be rounded.

Exporters reorder the gates of an LSTM, or normalize a convolution's weight, inside the graph.
`fold` leaves what would make the file grow; here the integers that replace it are smaller.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.plan import CORE, RECURRENT

from graphopt.context import Context
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import constant_array, weight_of

__all__ = ["settle_weights"]


def settle_weights(model: ir.Model, ctx: Context) -> int:
    """Evaluate the constant inputs of nodes with weights; returns the edits made."""
    names: Names | None = None
    made: dict[ir.Value, ir.Value] = {}
    edits = 0
    for node in list(model.graph):
        if node.op_type not in CORE | RECURRENT:
            continue
        inputs = list(node.inputs)
        wanted = [
            (k, v, array)
            for k, v in enumerate(inputs)
            if k > 0 and weight_of(v) is None and (array := constant_array(v)) is not None
        ]
        if not wanted or not ctx.edit("SettleWeights", node):
            continue
        names = names or Names(model)
        builder = Builder(model, node, names)
        for k, value, array in wanted:
            assert value is not None
            if value not in made:
                made[value] = builder.constant(np.ascontiguousarray(array), f"{value.name}_folded")
            node.replace_input_with(k, made[value])
        remove_dead(p for v in inputs if v is not None and (p := v.producer()) is not None)
        edits += 1
    if edits:
        ctx.invalidate()
    return edits
