"""Slices that part a value between them become one Split."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.rewriting.patterns import Match

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


class SlicesToSplit(Rule):
    """Slice(x, 0:a), Slice(x, a:b), ..., Slice(x, z:) -> Split(x, [a, b - a, ...])

    along one axis of known size, each part once and nothing left out.
    """

    shared = True

    def pattern(self, op: Any, x: Any) -> Any:
        """One of the slices."""
        return op.Slice(x, ...)

    def check(self, ctx: Context, match: Match, x: ir.Value) -> bool | dict[str, Any]:
        """The other slices of the same value make it whole."""
        facts = ctx.get(shapes)
        mine = _part(match.root, facts)
        if mine is None or facts.opsets.get("", 1) < 13:  # Split's sizes were an attribute before
            return False
        parts: dict[int, tuple[int, ir.Node]] = {}
        for use in x.uses():
            node = use.node
            if node.op_type != "Slice" or use.idx != 0 or node.graph is not match.root.graph:
                continue
            part = _part(node, facts)
            if part is None or part[0] != mine[0]:
                continue
            if part[1] in parts or node.outputs[0].is_graph_output():
                return False
            parts[part[1]] = (part[2], node)
        at, order = 0, []
        while at in parts:
            at, node = parts[at]
            order.append(node)
        dims = facts.shape(x)
        if dims is None or at != dims[mine[0]] or len(order) < 2 or len(order) != len(parts):
            return False
        return {"axis": mine[0], "order": order, "nodes": order}

    def rewrite(
        self, op: Any, match: Match, x: ir.Value, axis: int, order: list[ir.Node], ctx: Context
    ) -> ir.Value:
        """One Split; the other slices' readers read it too."""
        facts = ctx.get(shapes)
        sizes = [int(str(facts.shape(n.outputs[0])[axis])) for n in order]  # type: ignore[index]
        node = op.node(
            "Split",
            [x, op.constant(np.array(sizes, np.int64), "split")],
            {"axis": axis},
            outputs=len(order),
        )
        place_after(node, x)
        for old, new in zip(order, node.outputs, strict=True):
            if old is not match.root:
                op.take_over(old.outputs[0], new)
        result: ir.Value = node.outputs[order.index(match.root)]
        return result


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
