"""The plan: which nodes become integer, grown outward from those that compute with weights.

core      Conv, MatMul, Gemm with a constant weight, where the target gains from them
followers nodes all of whose activations already are integers: they join at no cost, since
          a float follower would need each of them dequantized
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir
from graphopt.passes.int8.operators import CORE, Operator, clamp_after, describe
from graphopt.passes.int8.weights import weight_of

__all__ = ["Plan", "make_plan"]


@dataclasses.dataclass
class Plan:
    """What to make integer.

    Attributes:
        nodes: the integer nodes in graph order, and what each operator is.
        clamps: Relu and Clip nodes that belong to the integer node before them, by that node.
        left: nodes with weights that stay float, and why.
    """

    nodes: dict[ir.Node, Operator] = dataclasses.field(default_factory=dict)
    clamps: dict[ir.Node, ir.Node] = dataclasses.field(default_factory=dict)
    left: dict[ir.Node, str] = dataclasses.field(default_factory=dict)

    def output(self, node: ir.Node) -> ir.Value:
        """The value that carries the result of integer node `node`."""
        return self.clamps.get(node, node).outputs[0]

    def made_by(self) -> dict[ir.Value, ir.Node]:
        """Integer node by the values that carry its results."""
        found: dict[ir.Value, ir.Node] = {}
        for node in self.nodes:
            for value in node.outputs:
                found[value] = node
            found[self.output(node)] = node
        return found


def make_plan(
    graph: ir.Graph, operators: frozenset[str], allowed: Callable[[ir.Node], str | None]
) -> Plan:
    """The integer nodes of `graph`.

    Args:
        graph: the main graph.
        operators: operator types the target gains from.
        allowed: the reason why a node must stay float, or None.
    """
    plan = Plan()
    integer: set[ir.Value] = set()
    for node in graph:
        kind = describe(node)
        if kind is None:
            continue
        weighty = node.op_type in CORE
        if isinstance(kind, str):
            if weighty:
                plan.left[node] = kind
            continue
        if node.op_type not in operators:
            if kind.weight is not None:
                plan.left[node] = f"integer {node.op_type} is not faster on this target"
            continue
        reason = allowed(node)
        if reason is not None:
            if weighty:
                plan.left[node] = reason
            continue
        if not weighty and not _follows(node, kind, integer):
            continue
        plan.nodes[node] = kind
        clamp = clamp_after(node)
        if clamp is not None:
            plan.clamps[node] = clamp
        if kind.output == "integer" or kind.output == "same":
            integer.update(node.outputs)
            integer.add(plan.output(node))
    return plan


def _follows(node: ir.Node, kind: Operator, integer: set[ir.Value]) -> bool:
    data = [node.inputs[i] for i in kind.data]
    return any(v in integer for v in data) and all(
        v in integer or weight_of(v) is not None for v in data
    )
