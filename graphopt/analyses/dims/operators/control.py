"""Control flow: what goes into and comes out of a subgraph is the same as what is inside."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analyses.dims.operation import Operation, Unsupported
from graphopt.graph.constants import constant_value

__all__ = ["OPERATORS"]


def inside(op: Operation, value: ir.Value) -> tuple[int, ...]:
    """Axes of a value of a subgraph. A constant that leaves a subgraph stays as it is."""
    found = op.axes.of(value)
    if found is None:
        raise Unsupported(f"the rank of '{value.name}' is not known")
    if constant_value(value) is not None:
        op.freeze(found[0], "a constant that a subgraph returns")
    return found[0]


def equal(op: Operation, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Two values of one rank."""
    if len(a) != len(b):
        op.freeze((*a, *b), "its rank is not the same everywhere")
        return
    for p, q in zip(a, b, strict=True):
        op.same(p, q)


def branches(op: Operation) -> None:
    """If: an output is that of either branch."""
    for attribute in op.node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for k, value in enumerate(attribute.as_graph().outputs):
                if op.made(k):
                    equal(op, inside(op, value), op.y(k).axes)


def loop(op: Operation) -> None:
    """Loop: carried values are the same before, inside and after; scanned ones are stacked."""
    body = op.node.attributes["body"].as_graph()
    carried = len(op.node.inputs) - 2
    for k in range(carried):
        before = op.x(k + 2).axes
        equal(op, before, inside(op, body.inputs[k + 2]))
        equal(op, before, inside(op, body.outputs[k + 1]))
        if op.made(k):
            equal(op, before, op.y(k).axes)
    for k in range(carried, len(op.node.outputs)):
        if op.made(k):
            equal(op, inside(op, body.outputs[k + 1]), op.y(k).axes[1:])
            op.freeze(op.y(k)[0], "steps of a loop")


def scan(op: Operation) -> None:
    """Scan: states are carried; slices of inputs go in, slices of outputs come out."""
    body = op.node.attributes["body"].as_graph()
    scanned = int(op.attribute("num_scan_inputs"))
    states = len(op.node.inputs) - scanned
    ins = list(op.attribute("scan_input_axes") or [0] * scanned)
    outs = list(op.attribute("scan_output_axes") or [0] * (len(op.node.outputs) - states))
    for k in range(states):
        before = op.x(k).axes
        equal(op, before, inside(op, body.inputs[k]))
        equal(op, before, inside(op, body.outputs[k]))
        if op.made(k):
            equal(op, before, op.y(k).axes)
    sides = [(op.x(states + k), body.inputs[states + k], a) for k, a in enumerate(ins)]
    sides += [
        (op.y(states + k), body.outputs[states + k], a)
        for k, a in enumerate(outs)
        if op.made(states + k)
    ]
    for tensor, value, axis in sides:
        at = int(axis) % tensor.rank
        rest = tuple(a for k, a in enumerate(tensor.axes) if k != at)
        equal(op, inside(op, value), rest)
        op.freeze(tensor[at], "steps of a loop")


OPERATORS = {"If": branches, "Loop": loop, "Scan": scan}
