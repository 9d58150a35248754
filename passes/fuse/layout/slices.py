"""Slice to Split: slices that part a value between them become one Split."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt import Context, Replacement, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.building import Builder

__all__ = ["SlicesToSplit", "place_after"]


def place_after(node: ir.Node, value: ir.Value) -> None:
    """Move `node`, which reads `value` and constants, right after what makes `value`.

    There it comes before everything else that may read its outputs.
    """
    graph, maker = node.graph, value.producer()
    assert isinstance(graph, ir.Graph)
    graph.remove(node)
    if maker is not None and maker.graph is graph:
        graph.insert_after(maker, node)
    else:
        graph.insert_before(graph[0], node)


class SlicesToSplit(Walker):
    """Slice(x, 0:a), Slice(x, a:b), ..., Slice(x, z:) -> Split(x, [a, b - a, ...])

    along one axis of known size, each part once and nothing left out.
    """

    shared = True
    roots = ("Slice",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        facts, x = ctx.get(shapes), node.inputs[0]
        mine = _part(node, facts)
        if x is None or mine is None:
            return None
        if facts.opsets.get("", 1) < 13:  # Split's sizes were an attribute before
            return None
        parts: dict[int, tuple[int, ir.Node]] = {}
        for use in x.uses():
            other = use.node
            if other.op_type != "Slice" or use.idx != 0 or other.graph is not node.graph:
                continue
            part = _part(other, facts)
            if part is None or part[0] != mine[0]:
                continue
            if part[1] in parts or other.outputs[0].is_graph_output():
                return None
            parts[part[1]] = (part[2], other)
        at, order, sizes = 0, [], []
        while at in parts:
            end, other = parts[at]
            order.append(other)
            sizes.append(end - at)
            at = end
        dims = facts.shape(x)
        if dims is None or at != dims[mine[0]] or len(order) < 2 or len(order) != len(parts):
            return None
        return Replacement(partial(_split, x, mine[0], order, sizes, node), tuple(order))


def _split(
    x: ir.Value, axis: int, slices: list[ir.Node], sizes: list[int], root: ir.Node, op: Builder
) -> ir.Value:
    """One Split; the readers of the slices but `root` read it too."""
    given = op.constant(np.array(sizes, np.int64), "split")
    node = op.node("Split", [x, given], {"axis": axis}, outputs=len(slices))
    place_after(node, x)
    for old, new in zip(slices, node.outputs, strict=True):
        if old is not root:
            op.take_over(old.outputs[0], new)
    return node.outputs[slices.index(root)]


def _part(node: ir.Node, facts: Shapes) -> tuple[int, int, int] | None:
    """Axis, begin and end of a Slice by step 1 along one axis of known size."""
    inputs = [*node.inputs[1:], None, None, None, None][:4]
    if node.inputs[0] is None or any(v is None for v in inputs[:3]):
        return None
    data = [None if v is None else facts.fact(v).concrete for v in inputs]
    begin, end, axes, steps = (None if d is None else d.reshape(-1) for d in data)
    if begin is None or end is None or axes is None or len(axes) != 1:
        return None
    if inputs[3] is not None and (steps is None or steps[0] != 1):
        return None
    dims = facts.shape(node.inputs[0])
    axis = int(axes[0]) + (len(dims) if dims is not None and axes[0] < 0 else 0)
    size = dims[axis] if dims is not None else None
    if not isinstance(size, int):
        return None
    low, high, _ = slice(int(begin[0]), int(end[0])).indices(size)
    return (axis, low, high) if low < high else None
