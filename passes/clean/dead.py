"""Dead code elimination: nodes, optional outputs, initializers and functions that nothing uses."""

from __future__ import annotations

from functools import cache

import onnx
import onnx_ir as ir

from graphopt import Context
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import remove_dead
from graphopt.graph.traverse import all_graphs, all_nodes

__all__ = ["remove_unused"]


def remove_unused(model: ir.Model, ctx: Context) -> int:
    """Remove what nothing uses; returns the number of edits."""
    edits = 0
    edits += _drop_nodes(model.graph, ctx)
    for graph in all_graphs(model.graph)[1:]:
        edits += _drop_nodes(graph, ctx)
    for graph in all_graphs(model.graph):
        edits += _drop_outputs(model, graph, ctx)
        edits += _drop_initializers(graph, ctx)
    edits += _drop_functions(model, ctx)
    if edits:
        ctx.invalidate(preserves=(shapes,))
    return edits


def _drop_nodes(graph: ir.Graph, ctx: Context) -> int:
    removed = 0
    for node in [n for n in reversed(graph) if not _used(n)]:
        if node.graph is not None and ctx.edit("DeadNode", node):
            removed += remove_dead([node])
    return removed


def _used(node: ir.Node) -> bool:
    return any(o.uses() or o.is_graph_output() for o in node.outputs)


def _drop_initializers(graph: ir.Graph, ctx: Context) -> int:
    unused = [
        v
        for v in graph.initializers.values()
        if not (v.uses() or v.is_graph_input() or v.is_graph_output())
    ]
    dropped = [v for v in unused if ctx.edit("UnusedInitializer", v)]
    for value in dropped:
        del graph.initializers[value.name or ""]
    return len(dropped)


def _drop_outputs(model: ir.Model, graph: ir.Graph, ctx: Context) -> int:
    """Optional outputs that nothing reads are left out: kernels then need not compute them."""
    edits = 0
    for node in graph:
        if len(node.outputs) < 2:
            continue
        unused = [
            k
            for k, o in enumerate(node.outputs)
            if o.name and not (o.uses() or o.is_graph_output()) and _optional(model, node, k)
        ]
        if not unused or not ctx.edit("DeadOutput", node):
            continue
        for k in unused:
            node.outputs[k].name = ""
        count = len(node.outputs)
        while count > 1 and node.outputs[count - 1].name == "":
            count -= 1
        node.resize_outputs(count)
        edits += 1
    return edits


def _optional(model: ir.Model, node: ir.Node, k: int) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = model.graph.opset_imports.get(domain, 1)
    return k in _optional_outputs(domain, node.op_type, version)


@cache
def _optional_outputs(domain: str, op_type: str, version: int) -> frozenset[int]:
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return frozenset()
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return frozenset(k for k, o in enumerate(schema.outputs) if o.option == optional)


def _drop_functions(model: ir.Model, ctx: Context) -> int:
    """Functions that no node calls, directly or from another function."""
    if not model.functions:
        return 0
    called: set[ir.OperatorIdentifier] = set()
    waiting = [n.op_identifier() for n in all_nodes(model.graph)]
    while waiting:
        name = waiting.pop()
        if name in model.functions and name not in called:
            called.add(name)
            waiting += [n.op_identifier() for n in model.functions[name].all_nodes()]
    unused = [k for k in model.functions if k not in called and ctx.edit("UnusedFunction", k[1])]
    for name in unused:
        del model.functions[name]
    return len(unused)
