"""Axes of size 1 that are dropped before operators and put back behind them.

Exporters of layouts without a batch write both around every operator that needs one; others work
on either, and what is in between keeps Transposes from meeting and scales from their convolution:

    unsqueeze(relu(squeeze(x) * c))  ->  relu(x * c')          c' is c along the same axes of x
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.layout.operators import (
    Restated,
    drops_axes,
    is_elementwise,
    operands,
    restated,
)
from graphopt.passes.fuse.layout.views import VIEWS, is_view

from graphopt import Context, Replacement, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape

__all__ = ["KeepOnes"]

#: Nodes between the two views: no exporter writes more, and a bound keeps the cost linear.
LARGEST = 16
#: Constants up to this many elements are stored again with other axes.
MOVED = 1 << 16

Dims = tuple[Dim, ...]
#: Makes a value as it is with all axes.
Make = Callable[[Builder], ir.Value]


class KeepOnes(Walker):
    """V'(f(V(x))) -> f(x), of operators f and views V, V' that drop and add axes of size 1"""

    roots = VIEWS

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        facts = ctx.get(shapes)
        wide = facts.shape(node.outputs[0])
        narrow = None if node.inputs[0] is None else facts.shape(node.inputs[0])
        if wide is None or narrow is None or node.inputs[0] is None:
            return None
        if wide == narrow or _long(wide) != _long(narrow) or node.op_type == "Transpose":
            return None
        region = _Region(node, wide, narrow, facts)
        make = region.made(node.inputs[0])
        if make is None or not region.nodes or not region.closed():
            return None
        return Replacement(make, tuple(region.nodes))


class _Region:
    """The operators between views of `wide` values as `narrow` ones, and one back."""

    def __init__(self, root: ir.Node, wide: Dims, narrow: Dims, facts: Shapes) -> None:
        self.root, self.facts = root, facts
        self.ones = [d == 1 for d in narrow]
        places = iter(k for k, one in enumerate(self.ones) if not one)
        #: Of each axis with all of them, which it is of those that are left; None: of none.
        self.axes = [None if d == 1 else next(places) for d in wide]
        self.nodes: dict[ir.Node, Make] = {}

    def made(self, value: ir.Value) -> Make | None:
        """How to make a value with all axes; None if it cannot be."""
        held = constant_shape(value)
        if held is not None:
            return self._constant(value, held)
        node, dims = value.producer(), self.facts.shape(value)
        if dims == ():
            return lambda op: value
        if node is None or dims is None or node.graph is not self.root.graph:
            return None
        if [d == 1 for d in dims] != self.ones:
            return None
        source = node.inputs[0] if node.inputs else None
        if is_view(node) and node.op_type != "Transpose":
            wide = tuple(1 if k is None else dims[k] for k in self.axes)
            if source is None or self.facts.shape(source) != wide:
                return None
            return lambda op: source
        return self._again(node, value, dims)

    def _again(self, node: ir.Node, value: ir.Value, dims: Dims) -> Make | None:
        """An operator on operands with all axes, made once however often it is read."""
        if node in self.nodes:
            return self.nodes[node]
        read = operands(node)
        said = self._said(node, read, dims)
        if said is None or len(self.nodes) == LARGEST:
            return None
        makes = {v: self.made(v) for v in read}
        if any(m is None for m in makes.values()):
            return None
        attributes, constants = said
        done: list[ir.Value] = []

        def make(op: Builder) -> ir.Value:
            if not done:
                new = {v: m(op) for v, m in makes.items() if m is not None}
                inputs = [new.get(v, v) if v else v for v in node.inputs]
                for k, numbers in constants.items():
                    inputs[k] = op.constant(numbers, f"{node.op_type.lower()}_w")
                done.append(op.again(node, inputs, **attributes))
                done[0].type = value.type
            return done[0]

        self.nodes[node] = make
        return make

    def _said(self, node: ir.Node, read: list[ir.Value], dims: Dims) -> Restated | None:
        """What the operator must be told of its axes."""
        if not read or len(node.outputs) > 1 or drops_axes(node):
            return None
        if is_elementwise(node):
            shapes = [self.facts.shape(v) for v in read if constant_shape(v) is None]
            return ({}, {}) if all(s in ((), dims) for s in shapes) else None
        if any(self.ones) or any(constant_shape(v) is not None for v in read):
            return None
        at = tuple(self.axes.index(k) for k in range(len(self.ones)))
        return restated(node, at, self.facts, len(self.axes))

    def _constant(self, value: ir.Value, held: tuple[int, ...]) -> Make | None:
        """A constant along the same axes, where it is no wider than what it is broadcast to."""
        if len(held) > len(self.ones) or int(np.prod(held)) > MOVED:
            return None
        full = (1,) * (len(self.ones) - len(held)) + tuple(held)
        if any(h != 1 and one for h, one in zip(full, self.ones, strict=True)):
            return None
        shape = [1 if k is None else full[k] for k in self.axes]
        while shape and shape[0] == 1:
            shape.pop(0)
        scalar = int(np.prod(held)) == 1 and len(held) <= len(self.axes)
        if scalar or tuple(shape) == tuple(held):
            return lambda op: value
        return lambda op: op.constant(array_of(value).reshape(shape), f"{value.name}_w")

    def closed(self) -> bool:
        """Whether nothing else reads what is in the region."""
        inside = {*self.nodes, self.root}
        made = [o for n in self.nodes for o in n.outputs]
        return not any(
            o.is_graph_output() or any(u.node not in inside for u in o.uses()) for o in made
        )


def _long(dims: Dims) -> list[Dim]:
    return [d for d in dims if d != 1]
