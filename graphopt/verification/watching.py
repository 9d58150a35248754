"""Branch coverage counters: how often each condition of a model was true, and how often false.

An If counts [1, 0] or [0, 1] where it stands. What counts inside of a branch becomes an output of
it, [0, 0] of the other branch; what counts inside of a loop is stacked by it, and the turns summed.
Only what the conditions need is left to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.building import Builder, Names
from graphopt.graph.traverse import STANDARD, subgraphs

__all__ = ["counted", "is_if"]

#: Since this opset ReduceSum has its axes as an input.
AXES_ARE_INPUTS = 13


def is_if(node: ir.Node) -> bool:
    """Whether a node is the standard's If, with a condition."""
    return node.op_type == "If" and node.domain in STANDARD and bool(node.inputs and node.inputs[0])


def counted(model: ir.Model) -> tuple[ir.Model, dict[str, str], list[str]]:
    """A clone whose outputs are the counts of its Ifs.

    Returns:
        The clone; the name of each If to that of its output, int64 [times true, times false]; and
        the names of the Ifs inside of operators whose runs cannot be counted.
    """
    clone = model.clone()
    counter = _Counter(clone)
    outputs: dict[str, ir.Value] = {}
    hidden: list[str] = []
    for node, around in list(_ifs(clone.graph, ())):
        if any(outer.op_type not in ("If", "Loop", "Scan") for outer in around):
            hidden.append(node.name or "")
            continue
        value, graph = counter.of(node), node.graph
        for outer in reversed(around):
            value, graph = counter.lifted(value, graph, outer), outer.graph
        outputs[node.name or ""] = value
    clone.graph.outputs[:] = list(outputs.values())
    for node in reversed(list(clone.graph)):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            clone.graph.remove(node, safe=True)
    return clone, {name: value.name or "" for name, value in outputs.items()}, hidden


def _ifs(
    graph: ir.Graph, around: tuple[ir.Node, ...]
) -> Iterator[tuple[ir.Node, tuple[ir.Node, ...]]]:
    """Each If, and the nodes that it is inside of, the outermost first."""
    for node in graph:
        if is_if(node):
            yield node, around
        for inner in subgraphs(node):
            yield from _ifs(inner, (*around, node))


class _Counter:
    """Adds what counts to a model."""

    def __init__(self, model: ir.Model) -> None:
        self._model, self._names = model, Names(model)

    def of(self, node: ir.Node) -> ir.Value:
        """[condition, not condition] as integers, before an If."""
        op = Builder(self._model, node, self._names)
        flat = op.Reshape(node.inputs[0], op.constant(np.array([1]), "counted"))
        return op.Cast(op.Concat(flat, op.Not(flat), axis=0), to=ir.DataType.INT64)

    def lifted(self, value: ir.Value, graph: Any, outer: ir.Node) -> ir.Value:
        """The counts of a value inside of one of a node's graphs, outside of it."""
        if outer.op_type == "If":
            for inner in subgraphs(outer):
                inner.outputs.append(value if inner is graph else self._nothing(inner))
        else:
            graph.outputs.append(value)
            self._listed(outer)
        outer.resize_outputs(len(outer.outputs) + 1)
        made = outer.outputs[-1]
        made.name, made.type = self._names.fresh("counts"), ir.TensorType(ir.DataType.INT64)
        if outer.op_type == "If":
            made.shape = ir.Shape((2,))
            return made
        made.shape = ir.Shape((None, 2))
        if (self._model.opset_imports.get("") or 1) < AXES_ARE_INPUTS:
            summed = self._node("ReduceSum", [made], axes=[0], keepdims=0)
        else:
            axes = Builder(self._model, outer, self._names).constant(np.array([0]), "counted")
            summed = self._node("ReduceSum", [made, axes], keepdims=0)
        assert outer.graph is not None
        outer.graph.insert_after(outer, [summed])
        return summed.outputs[0]

    def _nothing(self, graph: ir.Graph) -> ir.Value:
        """[0, 0], made inside of a graph."""
        node = self._node("Constant", (), value=ir.tensor(np.zeros(2, np.int64)))
        graph.append(node)
        return node.outputs[0]

    def _listed(self, scan: ir.Node) -> None:
        """One more scanned output in the attributes of a Scan that says how each is stacked."""
        for name in ("scan_output_axes", "scan_output_directions"):
            if name in scan.attributes:
                listed = [*scan.attributes[name].as_ints(), 0]
                scan.attributes[name] = ir.AttrInt64s(name, listed)

    def _node(self, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Node:
        """A node to be put behind another, or into a graph without any."""
        node = ir.node(op, inputs, attributes, name=self._names.fresh(f"counted/{op}"))
        node.outputs[0].name = self._names.fresh("counts")
        return node
