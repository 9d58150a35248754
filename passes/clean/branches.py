"""Control flow simplification: If with a constant condition, loop unrolling."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import constant_value
from graphopt.graph.provenance import derive
from graphopt.graph.traverse import all_nodes, passed_on

__all__ = ["resolve_branches", "unroll_loops"]

#: A loop is unrolled up to this many turns, and this many nodes in all.
TURNS, NODES = 16, 64


def resolve_branches(model: ir.Model, ctx: Context) -> int:
    """If(constant) -> the nodes of the branch that is always taken."""
    edits = 0
    waiting = [n for n in all_nodes(model.graph) if n.op_type == "If" and n.domain == ""]
    names = Names(model) if waiting else None
    for node in waiting:
        condition = _truth(node.inputs[0], ctx)
        if node.graph is None or condition is None or not ctx.edit("ConstantIf", node):
            continue
        assert names is not None
        branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
        builder = Builder(model, node, names)
        outputs = _inline(branch, node, builder, names)
        for old, new in zip(node.outputs, outputs, strict=True):
            builder.take_over(old, new)
        remove_dead([node])
        ctx.invalidate(preserves=(shapes,))
        edits += 1
    return edits


def unroll_loops(model: ir.Model, ctx: Context) -> int:
    """Loop with a constant trip count and a condition that stays true -> its turns in a row."""
    edits = 0
    waiting = [n for n in all_nodes(model.graph) if n.op_type == "Loop" and n.domain == ""]
    names = Names(model) if waiting else None
    for node in waiting:
        if node.graph is None:
            continue
        turns = _turns(node, ctx)
        body = node.attributes["body"].as_graph()
        if turns is None:
            continue
        if any(v is not None and not isinstance(v.type, ir.TensorType) for v in node.inputs[2:]):
            continue
        scans = len(body.outputs) - 1 - len(node.inputs[2:])
        if scans and model.graph.opset_imports.get("", 0) < 13:
            ctx.refuse("UnrollLoop", node, "Unsqueeze takes its axes as an input from opset 13 on")
            continue
        if not 0 < turns <= TURNS or turns * sum(1 for _ in all_nodes(body)) > NODES:
            ctx.refuse("UnrollLoop", node, f"{turns} turns would make too many nodes")
            continue
        if not ctx.edit("UnrollLoop", node):
            continue
        assert names is not None
        _unroll(node, body, turns, model, names)
        ctx.invalidate(preserves=(shapes,))
        edits += 1
    return edits


def _truth(value: ir.Value | None, ctx: Context) -> bool | None:
    """The truth value that a condition always has."""
    if value is None:
        return None
    tensor = constant_value(value)
    data = tensor.numpy() if tensor is not None else ctx.get(shapes).data(value)
    if data is None or data.dtype == object or data.size != 1:
        return None
    return bool(data.ravel()[0])


def _turns(node: ir.Node, ctx: Context) -> int | None:
    """How often the body runs, if that is the same on every run."""
    limit, start = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    data = None if limit is None else ctx.get(shapes).data(limit)
    if data is None or data.dtype == object or (start is not None and not _truth(start, ctx)):
        return None
    body = node.attributes["body"].as_graph()
    goes_on = passed_on(body.outputs[0])
    stays = goes_on is body.inputs[1] or goes_on is start or _truth(goes_on, ctx)
    return int(data.ravel()[0]) if stays else None


def _unroll(node: ir.Node, body: ir.Graph, turns: int, model: ir.Model, names: Names) -> None:
    builder = Builder(model, node, names)
    carried = [v for v in node.inputs[2:] if v is not None]
    scans: list[list[ir.Value]] = [[] for _ in body.outputs[1 + len(carried) :]]
    go = builder.constant(np.array(True), "loop_condition")
    for turn in range(turns):
        copy = body.clone(allow_outer_scope_values=True)
        given = [builder.constant(np.array(turn, np.int64), "loop_turn"), go, *carried]
        for inside, outside in zip(copy.inputs, given, strict=True):
            for use in tuple(inside.uses()):  # an output of the body may be an input of it
                use.node.replace_input_with(use.idx, outside)
        renamed = {id(a): b for a, b in zip(copy.inputs, given, strict=True)}
        outputs = [renamed.get(id(v), v) for v in _inline(copy, node, builder, names)]
        carried = outputs[1 : 1 + len(carried)]
        for scan, value in zip(scans, outputs[1 + len(carried) :], strict=True):
            scan.append(value)
    axis = builder.constant(np.array([0], np.int64), "loop_axis") if scans else None
    joined = [
        builder.node(
            "Concat",
            [builder.node("Unsqueeze", [v, axis]).outputs[0] for v in scan],
            {"axis": 0},
        ).outputs[0]
        for scan in scans
    ]
    derive(builder.nodes, [node], "")
    for old, new in zip(node.outputs, [*carried, *joined], strict=True):
        builder.take_over(old, new)
    remove_dead([node])


def _inline(graph: ir.Graph, at: ir.Node, builder: Builder, names: Names) -> list[ir.Value]:
    """Move a subgraph's nodes and initializers before `at`, under fresh names; its outputs."""
    outputs = list(graph.outputs)
    graph.outputs.clear()
    outer: Any = at.graph
    inside = list(graph)
    for value in list(graph.initializers.values()):
        del graph.initializers[value.name or ""]
        value.name = names.fresh(value.name or "constant")
        if value.const_value is not None:
            builder.model.graph.register_initializer(value)
    for node in inside:
        graph.remove(node)
        node.name = names.fresh(node.name or node.op_type)
        for value in node.outputs:
            if value.name:
                value.name = names.fresh(value.name)
        outer.insert_before(at, node)
    return outputs
