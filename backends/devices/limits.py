"""Limits: what a device that cannot be run here leaves to the CPU, node by node, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.analyses.shapes.analysis import infer
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value
from graphopt.graph.traverse import all_nodes

__all__ = [
    "Broken",
    "Fall",
    "Limit",
    "constant_inputs",
    "dynamic",
    "falls_off",
    "rank_above",
    "unequal",
]

Broken = Callable[[ir.Node, Shapes], bool]


@dataclasses.dataclass(frozen=True)
class Limit:
    """A form of operators that the device does not take.

    Attributes:
        reason: what is wrong with the node, and what to do where something can be done.
        broken: whether a node has this form.
        operators: those it is about; empty for all.
    """

    reason: str
    broken: Broken
    operators: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Fall:
    """A node that falls off the device, and why."""

    node: str
    operator: str
    reason: str


def falls_off(
    model: ir.Model, operators: frozenset[str], limits: Sequence[Limit], device: str
) -> list[Fall]:
    """The nodes of `model` that are not among `operators` or break a limit, in order.

    Constants, and what is computed from them, are no nodes to the device.
    """
    shapes = infer(model)
    found = []
    for node in all_nodes(model.graph):
        if node.op_type == "Constant":
            continue
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
        reasons = [
            limit.reason
            for limit in limits
            if (not limit.operators or name in limit.operators) and limit.broken(node, shapes)
        ]
        if name not in operators:
            reasons = [f"{device} has no such operator"]
        found += [Fall(node.name or "", name, "; ".join(reasons))] if reasons else []
    return found


def dynamic(node: ir.Node, shapes: Shapes) -> bool:
    """Whether a shape of the node is not known before it runs."""
    values = (*node.inputs, *node.outputs)
    return any(v is not None and v.name and shapes.static(v) is None for v in values)


def rank_above(most: int) -> Broken:
    """Whether a value of the node has more axes than `most`."""

    def broken(node: ir.Node, shapes: Shapes) -> bool:
        values = (*node.inputs, *node.outputs)
        return any(v is not None and (shapes.rank(v) or 0) > most for v in values)

    return broken


def constant_inputs(*places: int) -> Broken:
    """Whether one of these inputs is there and computed at run time."""

    def broken(node: ir.Node, shapes: Shapes) -> bool:
        given = [node.inputs[k] for k in places if k < len(node.inputs)]
        return any(v is not None and constant_value(v) is None for v in given)

    return broken


def unequal(name: str, *allowed: object) -> Broken:
    """Whether an attribute has another value than these."""

    def broken(node: ir.Node, shapes: Shapes) -> bool:
        opset = shapes.opsets.get(node.domain, 1)
        return attribute(node, name, opset=opset) not in (None, *allowed)

    return broken
