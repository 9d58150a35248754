"""Trees: ensembles without what no row reaches, nothing tells apart, or is there twice.

Decision trees and gradient boosting in the operators of ai.onnx.ml. Every change is exact; each is
proved for all inputs by the numbers that thresholds tell apart (graphopt/proving/ensembles.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from graphopt.passes.trees.reductions import REDUCTIONS

from graphopt import Context, Pass
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph import provenance
from graphopt.graph.building import Builder, remove_dead
from graphopt.graph.ensemble_attributes import attributes_of
from graphopt.graph.ensembles import DOMAIN, ENSEMBLES, Ensemble, Split, Unreadable
from graphopt.graph.traverse import all_nodes
from graphopt.io.reading import declare_tensor

__all__ = ["Trees"]

#: The version of ai.onnx.ml that has numbers in float64.
TENSORS = 3


@dataclass(frozen=True)
class Trees(Pass):
    """Reduce tree ensembles: fewer splits, leaves and trees, numbers in the smallest exact type.

    Attributes:
        zipmap: keep outputs that are a list of dictionaries, one for each row; False makes each the
            tensor of probabilities that it was made of, which is another interface.
    """

    zipmap: bool = True

    speeds_up: ClassVar[bool] = False
    preserves: ClassVar[tuple[Callable[[Any], Any], ...]] = (shapes,)

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Apply every reduction to every ensemble until none changes it."""
        nodes = [n for n in all_nodes(model.graph) if n.domain == DOMAIN]
        ensembles = [n for n in nodes if n.op_type in ENSEMBLES]
        if not ensembles:
            return ctx.nothing("it has no tree ensembles")
        edits = sum(_reduce(node, model, ctx) for node in ensembles)
        maps = [n for n in nodes if n.op_type == "ZipMap"]
        if maps and self.zipmap:
            ctx.note(
                f"{len(maps)} ZipMap make a dictionary for every row, which takes longer than most "
                "trees do: trees(zipmap=False) gives probabilities as one tensor."
            )
        for node in [] if self.zipmap else maps:
            edits += _without_map(node, model, ctx)
        if edits:
            ctx.invalidate(preserves=(shapes,))
        return edits


def _reduce(node: ir.Node, model: ir.Model, ctx: Context) -> int:
    given = {a.name: a.value for a in node.attributes.values()}
    try:
        trees = Ensemble.read(node.op_type, given)
    except Unreadable as error:
        ctx.refuse("Trees", node, str(error))
        return 0
    x = ctx.get(shapes).dtype(node.inputs[0]) if node.inputs[0] is not None else None
    dtype = np.float32 if x is ir.DataType.FLOAT else np.float64
    had, edits = trees, 0
    denied: set[str] = set()
    while True:
        before = edits
        for name, reduction in REDUCTIONS.items():
            new = reduction(trees, dtype)
            if new == trees or name in denied or not _same_votes(new, had):
                continue
            if ctx.edit(name, node):
                trees, edits = new, edits + 1
            else:
                denied.add(name)
        if edits == before:
            break
    wide = x is ir.DataType.DOUBLE and model.graph.opset_imports.get(DOMAIN, 1) >= TENSORS
    made = ir.convenience.convert_attributes(attributes_of(trees, wide))
    smaller = _bytes(made) < _bytes(node.attributes.values())
    if not edits and not (smaller and ctx.edit("SmallestAttributes", node)):
        return 0
    node.attributes.clear()
    node.attributes.update({a.name: a for a in made})
    provenance.derive([node], [node], ctx.pass_name)
    if edits:
        was, now = (
            "{} trees, {} splits and {} votes".format(len(e.roots), *_counts(e))
            for e in (had, trees)
        )
        ctx.note(f"{node.name or node.op_type}: {was} became {now}.")
    return edits or 1


def _without_map(node: ir.Node, model: ir.Model, ctx: Context) -> int:
    """ZipMap(p) -> p"""
    (made,), (p,) = node.outputs, node.inputs
    if p is None or not ctx.edit("ZipMap", node):
        return 0
    labels = next((a.value for a in node.attributes.values()), ())
    p.type, p.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, len(labels)])
    if made.is_graph_output():
        declare_tensor(model, made.name or "")
    Builder(model, node).take_over(made, p)
    remove_dead([node])
    return 1


def _same_votes(new: Ensemble, old: Ensemble) -> bool:
    """Whether a score of two classes becomes probabilities the same way."""
    if old.votes is None or old.outputs > 2:
        return True
    voted = [pair for leaf in new.table.leaves(new.roots) for pair in leaf.weights]
    return old.votes == (frozenset(o for o, _ in voted), any(w < 0 for _, w in voted))


def _counts(trees: Ensemble) -> tuple[int, int]:
    """Splits, and weights of leaves, of all trees; equal subtrees of two are two."""
    rows, splits, votes, stack = trees.table.rows, 0, 0, list(trees.roots)
    while stack:
        row = rows[stack.pop()]
        if isinstance(row, Split):
            splits += len(row.members) if row.mode == "EQ" and row.members else 1
            stack += [row.yes, row.no]
        else:
            votes += len(row.weights)
    return splits, votes


def _bytes(attributes: Iterable[ir.Attr]) -> int:
    return sum(ir.serde.serialize_attribute(a).ByteSize() for a in attributes)
