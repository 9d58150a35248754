"""Residual streams: widths whose values are read, worked on, and added to what was read.

x + f(x)            a stream: f reads x and writes what is added to it
f(x) + g(x)         parallel branches: nothing of the sum's width is read on the way to it
x * g(x) + x        a gate: what is added carries x itself
x2 + f(x1)          parts of one tensor: f reads others of its positions than it adds to
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, permutations

import onnx_ir as ir

from graphopt.analyses.dims.axes import Role, Tensor

__all__ = ["Place", "is_residual"]

SUMS = frozenset({"Add", "Sum", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
#: The nodes that wrote what a value carries of a dimension.
Writers = frozenset[ir.Node]


class Place:
    """One axis of one tensor at one node."""

    __slots__ = ("axis", "constant", "key", "name", "node", "order", "tensor")

    def __init__(self, order: int, node: ir.Node, tensor: Tensor, axis: int, constant: bool):
        self.order, self.node, self.tensor, self.axis = order, node, tensor, axis
        self.constant, self.name = constant, _name(node)
        self.key = (order, tensor.output, tensor.index, axis)


def is_residual(
    places: Sequence[Place], roles: Sequence[Role], order: Mapping[ir.Node, int]
) -> bool:
    """Whether a sum adds to a dimension what was made from its own values.

    Args:
        places: every axis that carries the dimension, in graph order.
        roles: the role of each.
        order: position in the graph of every node.
    """
    written: dict[ir.Value, Writers] = {}
    read: dict[ir.Node, Writers] = {}  # by node that reads the dimension: what wrote it there
    starts = [k for k, p in enumerate(places) if k == 0 or p.node is not places[k - 1].node]
    for start, end in pairwise([*starts, len(places)]):
        node = places[start].node
        mine = range(start, end)
        inputs = [k for k in mine if not places[k].tensor.output and not places[k].constant]
        sources = {k: written.get(places[k].tensor.value, frozenset()) for k in inputs}
        if node.op_type in SUMS and any(
            a and b and a.isdisjoint(b) and _follows(a, frozenset(_readers(read, b)), order)
            for a, b in permutations(sources.values(), 2)
        ):
            return True
        taken = [s for k, s in sources.items() if roles[k] == "reads"]
        if taken:
            read[node] = frozenset[ir.Node]().union(*taken)
        through = frozenset[ir.Node]().union(
            *(s for k, s in sources.items() if roles[k] != "reads")
        )
        for k in mine:
            if places[k].tensor.output:
                written[places[k].tensor.value] = (
                    frozenset({node}) if roles[k] == "writes" else through
                )
    return False


def _readers(read: Mapping[ir.Node, Writers], writers: Writers) -> Iterator[ir.Node]:
    """The nodes that read what one of `writers` has written."""
    return (node for node, sources in read.items() if not sources.isdisjoint(writers))


def _follows(later: Writers, earlier: Writers, order: Mapping[ir.Node, int]) -> bool:
    """Whether a node of `later` is one of `earlier`, or computed from one."""
    if not later.isdisjoint(earlier):
        return True
    first = min((order[node] for node in earlier), default=len(order))
    seen: set[ir.Node] = set()
    ahead = list(later)
    while ahead:
        node = ahead.pop()
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is None or maker in seen or order.get(maker, -1) < first:
                continue
            if maker in earlier:
                return True
            seen.add(maker)
            ahead.append(maker)
    return False


def _name(node: ir.Node) -> str:
    return node.name or (node.outputs[0].name if node.outputs else "") or node.op_type
