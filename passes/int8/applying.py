"""Integers in place of floats: what a plan makes of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.dynamic import multiply, quantize_at_run_time
from graphopt.passes.int8.embeddings import quantize_table, tie
from graphopt.passes.int8.insert import insert, integers_of
from graphopt.passes.int8.plan import BLOCK, Plan
from graphopt.passes.int8.plan_grids import make_grids, make_weights
from graphopt.passes.int8.recurrent import quantize_lstm
from graphopt.passes.int8.rounding import Refined
from graphopt.passes.int8.stored import store
from graphopt.passes.int8.unfolding import unfold, unfolds
from graphopt.passes.int8.writer import Writer
from graphopt.passes.weight_only.blocks import Form
from graphopt.passes.weight_only.writer import BlockWriter

from graphopt.analyses.linear import linear_of
from graphopt.calibration.ranges import Range
from graphopt.context import Context
from graphopt.graph.building import remove_dead
from graphopt.graph.traverse import all_graphs, all_nodes
from graphopt.target import Int8Scheme

__all__ = ["apply", "drop_unused"]

#: What exporters note on nodes (stack traces and the like). A node made integer loses it: it would
#: be 2 % of a small integer file, and the source's node, which `graphopt.from` names, has it.
EXPORTER = ("pkg.torch.onnx.", "pkg.onnxscript.", "namespace")


def apply(
    model: ir.Model,
    ctx: Context,
    plan: Plan,
    ranges: Mapping[str, Range],
    refined: Mapping[str, Refined],
    scheme: Int8Scheme,
) -> None:
    """Make the nodes of `plan` integer and drop what they leave behind."""
    bits = 7 if scheme.reduce_range else 8
    grids = make_grids(plan, ranges, scheme)
    weights = make_weights(plan, grids, scheme)
    shifts: dict[ir.Node, np.ndarray[Any, Any]] = {}
    for node, (_, scales) in list(weights.items()):
        better = refined.get(node.name or "")
        if better is not None and np.array_equal(better.scales, scales):
            weights[node], shifts[node] = (better.integers, scales), better.shift
    writer = Writer(model, ctx)
    tie(writer, plan.tables, plan.dynamic, weights)
    insert(writer, plan, grids, weights, scheme, shifts)
    quantized: dict[ir.Value, list[ir.Value]] = {}
    dead = [*plan.tables, *plan.recurrent]
    for node, kind in plan.dynamic.items():
        x = node.inputs[0]
        assert x is not None
        if x not in quantized:
            quantized[x] = quantize_at_run_time(writer, x, node)
        dead.append(multiply(writer, node, kind, weights[node], quantized[x]))
    for node in plan.joined:
        dead.append(multiply(writer, node, plan.nodes[node], weights[node], integers_of(node)))
    dead += _in_blocks(model, ctx, plan.blocks)
    for node in plan.tables:
        quantize_table(writer, node)
    for node in plan.recurrent:
        quantize_lstm(writer, node, bits=bits)
    for node, (positions, width) in plan.stored.items():
        known = refined.get(node.name or "") if width == 8 else None
        rounded = None if known is None else (known.integers, known.scales)
        store(writer, node, positions, width, rounded)
    remove_dead(dead)
    drop_unused(model)
    for node in (*plan.nodes, *plan.clamps.values()):
        for key in [k for k in node.metadata_props if k.startswith(EXPORTER)]:
            del node.metadata_props[key]
    ctx.invalidate()


def _in_blocks(model: ir.Model, ctx: Context, nodes: Sequence[ir.Node]) -> Sequence[ir.Node]:
    """Let products and unfolded convolutions read blocks; returns what they leave behind."""
    blocks = BlockWriter(model, ctx)
    for node in nodes:
        conv = unfolds(node)
        op = linear_of(node if conv is None else unfold(model, conv, blocks.names))
        assert not isinstance(op, str)
        blocks.replace(op, Form(8, BLOCK), None)
    return nodes


def drop_unused(model: ir.Model) -> None:
    """Remove constants nothing reads any more: no dead float copies."""
    held = ("Constant", "Identity", "Transpose")
    remove_dead(n for n in list(all_nodes(model.graph)) if n.op_type in held)
    for graph in all_graphs(model.graph):
        for name in [n for n, v in graph.initializers.items() if not _read(v)]:
            del graph.initializers[name]


def _read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_input() or value.is_graph_output()
