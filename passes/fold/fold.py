"""Constant folding: what is constant is evaluated, and stored where the file does not grow.

Two walks. Forwards, every node whose inputs are constant is evaluated (a large result is only
described: it is computed when it is read). Backwards, from the values that other nodes read, each
result becomes an initializer if it may, else its node stays and its own inputs are asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import onnx_ir as ir
from graphopt.passes.clean.clean import tidy
from graphopt.passes.fold.dimensions import fold_dimensions
from graphopt.passes.fold.evaluated import Allowance, Evaluated

from graphopt import Context, Pass
from graphopt.analyses.shapes.analysis import renew, shapes
from graphopt.analyses.shapes.facts import DATA_LIMIT
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.collector import resting_collector
from graphopt.graph.traverse import all_graphs, all_nodes

__all__ = ["Fold"]


@dataclasses.dataclass(frozen=True)
class Fold(Pass):
    """Compute what is constant."""

    speeds_up: ClassVar[bool] = False
    preserves: ClassVar[tuple[Callable[[Any], Any], ...]] = (shapes,)

    @resting_collector()
    def run(self, model: ir.Model, ctx: Context) -> int:
        """Fold constants and shapes, in every graph, until none is left."""
        edits = 0
        allowance = Allowance(model)
        renew(ctx)
        while True:
            made = fold_constants(model, ctx, allowance)
            made += fold_dimensions(model, ctx)
            made += tidy(model, ctx)
            edits += made
            if not made:
                return edits
            renew(ctx)


def fold_constants(model: ir.Model, ctx: Context, allowance: Allowance) -> int:
    """Constant values -> initializers; returns how many were made."""
    facts = ctx.get(shapes)
    found = Evaluated(model, facts, allowance)
    for node in all_nodes(model.graph):
        found.visit(node)
    if not found.values:
        return 0
    found.settle()
    names: Names | None = None
    edits = 0
    learned = False
    for graph in reversed(all_graphs(model.graph)):
        for node in [n for n in reversed(graph) if any(o in found.values for o in n.outputs)]:
            if node.graph is None:
                continue
            wanted = [o for o in node.outputs if o in found.values and found.read_elsewhere(o)]
            if not wanted:
                continue
            if not all(found.may_store(o) for o in wanted):
                found.keep(node)
                continue
            if not ctx.edit("FoldConstant", node):
                found.keep(node)
                continue
            names = names or Names(model)
            builder = Builder(model, node, names)
            for old in wanted:
                tensor = found.tensor(old)
                learned = learned or (tensor.size <= DATA_LIMIT and facts.data(old) is None)
                _store(old, tensor, builder)
            remove_dead([node])
            edits += 1
    if edits:
        ctx.invalidate(preserves=() if learned else (shapes,))
    return edits


def _store(old: ir.Value, tensor: ir.TensorProtocol, builder: Builder) -> None:
    """An initializer in the place of `old` (behind an Identity if that is a graph output)."""
    value = builder.constant(tensor, f"{old.name}_folded")
    tensor.name = value.name
    builder.take_over(old, value)
