"""Weights that a model computes from constants become constants, so that they can be rounded.

Exporters reorder the gates of an LSTM, or normalize a convolution's weight, inside the graph.
`fold` leaves what would make the file grow; here the integers that replace it are smaller.
"""

from __future__ import annotations

import onnx_ir as ir
from graphopt.passes.fold.evaluated import Evaluated
from graphopt.passes.int8.plan import CORE, RECURRENT
from graphopt.passes.int8.weights import weight_of

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.graph.building import Builder, Names, remove_dead

__all__ = ["settle_weights"]


def settle_weights(model: ir.Model, ctx: Context) -> int:
    """Evaluate the constant inputs of nodes with weights; returns the edits made."""
    computed = _computed(model)
    if not computed:
        return 0
    found = Evaluated(model, ctx.get(shapes))
    for node in model.graph:
        found.visit(node)
    names = Names(model)
    made: dict[ir.Value, ir.Value] = {}
    edits = 0
    for node in computed:
        builder = Builder(model, node, names)
        inputs = list(node.inputs)
        wanted = [
            (k, v)
            for k, v in enumerate(inputs)
            if v is not None and v in found.values and weight_of(v) is None
        ]
        if not wanted or not ctx.edit("SettleWeights", node):
            continue
        for k, value in wanted:
            if value not in made:
                tensor = ir.tensor(found.values[value].read())
                made[value] = builder.constant(tensor, f"{value.name}_folded")
            node.replace_input_with(k, made[value])
        remove_dead(p for v in inputs if v is not None and (p := v.producer()) is not None)
        edits += 1
    if edits:
        ctx.invalidate()
    return edits


def _computed(model: ir.Model) -> list[ir.Node]:
    """Nodes with weights of which some input comes from constants through other nodes."""
    constant = set(model.graph.initializers.values()) - set(model.graph.inputs)
    found = []
    for node in model.graph:
        given = all(v is None or v in constant for v in node.inputs)
        if (node.inputs and given) or node.op_type == "Constant":
            constant.update(node.outputs)
        elif node.op_type in CORE | RECURRENT and any(
            v is not None and v in constant and weight_of(v) is None for v in node.inputs[1:]
        ):
            found.append(node)
    return found
