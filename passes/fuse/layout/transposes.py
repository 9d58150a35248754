"""Transpose elimination: pushed through operators that do not care, until two meet and cancel.

A region is a set of nodes that compute the same in either layout (see `layouts`). Computed on what
is before its Transposes, it needs none of them; a value that leaves it needs the Transpose, unless
what reads it is the inverse one:

    T'(relu(T(x)) + T(y))  ->  relu(x) + y          T(x) + T(y)  ->  T(x + y)

A region is turned if that leaves fewer Transposes, so every edit makes the graph shorter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.layout.operators import Perm, drops_axes, operands, restated
from graphopt.passes.fuse.layout.slices import place_after

from graphopt import Context
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph import provenance
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import array_of, constant_shape
from graphopt.graph.traverse import all_nodes

__all__ = ["meet_transposes"]

#: Nodes in a region: no exporter writes more between two Transposes, and a bound keeps the cost
#: linear.
LARGEST = 64
#: Regions up to this many nodes are tried without each of them.
TRIMMED = 16
#: Constants up to this many elements are stored again in the other layout.
MOVED = 1 << 16


def meet_transposes(model: ir.Model, ctx: Context) -> int:
    """Turn every region that then needs fewer Transposes; returns how many were turned."""
    edits = 0
    names = Names(model)
    for node in [n for n in all_nodes(model.graph) if n.op_type == "Transpose"]:
        if node.graph is None:
            continue
        region = _Region(node, ctx.get(shapes))
        if region.gain() > 0 and ctx.edit("MeetTransposes", node):
            region.turn(model, names, ctx)
            edits += 1
            ctx.invalidate(preserves=(shapes,))
    return edits


def _perm(node: ir.Node | None, graph: Any) -> Perm | None:
    """The permutation of a Transpose in `graph`."""
    if node is None or node.op_type != "Transpose" or node.graph is not graph:
        return None
    perm = attribute(node, "perm")
    return None if perm is None else tuple(perm)


class _Region:
    """The nodes around a Transpose that compute the same in the layout before it."""

    def __init__(self, seed: ir.Node, facts: Shapes) -> None:
        self.facts = facts
        self.graph: Any = seed.graph
        self.perm = _perm(seed, seed.graph) or ()
        self.back = tuple(int(k) for k in np.argsort(self.perm))
        self.nodes: dict[ir.Node, None] = {}
        waiting = [use.node for use in seed.outputs[0].uses()] if self.perm else []
        while waiting and len(self.nodes) <= LARGEST:
            node = waiting.pop()
            if node in self.nodes or not self._joins(node):
                continue
            self.nodes[node] = None
            if not drops_axes(node):
                waiting += [use.node for out in node.outputs for use in out.uses()]
            makers = [v.producer() for v in operands(node)]
            waiting += [m for m in makers if m is not None and not drops_axes(m)]
        if len(self.nodes) > LARGEST:
            self.nodes.clear()
        if self.nodes and len(self.nodes) <= TRIMMED and self.gain() <= 0:
            self._trim()

    def _trim(self) -> None:
        """Leave out nodes without which more Transposes would go."""
        best = self.gain()
        for node in list(self.nodes):
            del self.nodes[node]
            gain = self.gain()
            if gain > best:
                best = gain
            else:
                self.nodes[node] = None

    def _joins(self, node: ir.Node) -> bool:
        """Whether the node can be computed in the other layout."""
        read = operands(node)
        if not read or node.graph is not self.graph or not all(self._fits(v) for v in read):
            return False
        rank = len(self.perm)
        if not drops_axes(node) and any(self.facts.rank(o) != rank for o in node.outputs if o.name):
            return False
        if not any(self.facts.rank(v) == rank for v in read):
            return False
        return restated(node, self.perm, self.facts) is not None

    def _fits(self, value: ir.Value) -> bool:
        """Whether an operand can be had in the other layout."""
        rank, shape = self.facts.rank(value), constant_shape(value)
        if shape is not None:
            return len(shape) <= len(self.perm) and int(np.prod(shape)) <= MOVED
        return rank == len(self.perm) or self._free(value)

    def _free(self, value: ir.Value) -> bool:
        """Whether the value is the same in both layouts, or a constant."""
        dims = self.facts.shape(value)
        return constant_shape(value) is not None or (
            dims is not None and len(dims) <= len(self.perm) and all(d == 1 for d in dims)
        )

    def _at_hand(self, value: ir.Value) -> ir.Node | None:
        """A Transpose that makes the other layout of `value` already."""
        readers = (u.node for u in value.uses())
        return next((n for n in readers if _perm(n, self.graph) == self.back), None)

    def gain(self) -> int:
        """Transposes that go, less those that come."""
        gone = come = 0
        read = dict.fromkeys(v for node in self.nodes for v in operands(node))
        for value in read:
            maker = value.producer()
            if maker in self.nodes:
                continue
            if _perm(maker, self.graph) == self.perm:
                alone = all(u.node in self.nodes for u in value.uses())
                gone += alone and not value.is_graph_output()
            elif not self._free(value) and self._at_hand(value) is None:
                come += 1
        for node in self.nodes:
            for out in [] if drops_axes(node) else node.outputs:
                outside = [u.node for u in out.uses() if u.node not in self.nodes]
                inverse = [n for n in outside if _perm(n, self.graph) == self.back]
                gone += sum(not n.outputs[0].is_graph_output() for n in inverse)
                come += len(inverse) < len(outside) or out.is_graph_output()
        return gone - come

    def turn(self, model: ir.Model, names: Names, ctx: Context) -> None:
        """Compute the region on what is before its Transposes."""
        order = self._ordered()
        turned: dict[ir.Value, ir.Value] = {}
        made: list[ir.Node] = []
        for node in order:
            op = Builder(model, node, names)
            for value in operands(node):
                if value not in turned:
                    turned[value] = self._entering(value, op)
            self._write(node, op, turned)
            made += op.nodes
        for node in order:
            op = Builder(model, node, names)
            for out in node.outputs:
                if out.name:
                    self._leave(out, turned[out], op, drops_axes(node))
            made += op.nodes
        provenance.derive(made, order, ctx.pass_name)
        remove_dead(order[::-1])

    def _ordered(self) -> list[ir.Node]:
        """The nodes, each after those of the region that it reads."""
        order: dict[ir.Node, None] = {}
        waiting = list(self.nodes)
        while waiting:
            node = waiting[-1]
            makers = [m for v in operands(node) if (m := v.producer()) in self.nodes]
            missing = [m for m in makers if m is not None and m not in order]
            if missing:
                waiting += missing
            else:
                order[waiting.pop()] = None
        return list(order)

    def _entering(self, value: ir.Value, op: Builder) -> ir.Value:
        """An operand from outside, in the layout before the Transpose."""
        maker, shape = value.producer(), constant_shape(value)
        if maker is not None and _perm(maker, self.graph) == self.perm:
            source = maker.inputs[0]
            assert source is not None
            return source
        if shape is not None and int(np.prod(shape)) != 1:
            wide = array_of(value).reshape((1,) * (len(self.perm) - len(shape)) + shape)
            return op.constant(np.ascontiguousarray(wide.transpose(self.back)), f"{value.name}_t")
        if self._free(value):
            return value
        known = self._at_hand(value)
        if known is not None:
            place_after(known, value)
            return known.outputs[0]
        return op.node("Transpose", [value], {"perm": list(self.back)}).outputs[0]

    def _write(self, node: ir.Node, op: Builder, turned: dict[ir.Value, ir.Value]) -> None:
        """The node again, on operands in the other layout."""
        said = restated(node, self.perm, self.facts)
        assert said is not None
        attributes, constants = said
        read = operands(node)
        inputs = [turned[v] if v is not None and v in read else v for v in node.inputs]
        for k, numbers in constants.items():
            inputs[k] = op.constant(numbers, f"{node.op_type.lower()}_t")
        new = op.node(
            node.op_type,
            inputs,
            {**node.attributes, **attributes},
            domain=node.domain,
            outputs=len(node.outputs),
        )
        for old, value in zip(node.outputs, new.outputs, strict=True):
            if not old.name:
                value.name = ""
            value.type = old.type
            if old.shape is not None and len(old.shape) == len(self.back):
                value.shape = ir.Shape([old.shape[k] for k in self.back])
            turned[old] = value

    def _leave(self, out: ir.Value, new: ir.Value, op: Builder, flat: bool) -> None:
        """Give what is outside of the region what it read from `out`."""
        if flat:
            new.shape = out.shape
            op.take_over(out, new)
            return
        outside = [u.node for u in out.uses() if u.node not in self.nodes]
        for node in dict.fromkeys(n for n in outside if _perm(n, self.graph) == self.back):
            op.take_over(node.outputs[0], new)
            remove_dead([node])
        if out.is_graph_output() or any(u.node not in self.nodes for u in out.uses()):
            back = op.node("Transpose", [new], {"perm": list(self.perm)}).outputs[0]
            op.take_over(out, back)
