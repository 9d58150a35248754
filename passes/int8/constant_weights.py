"""Weights that a model computes from constants become constants, so that they can be rounded.

Exporters reorder the gates of an LSTM, or normalize a convolution's weight, inside the graph.
`fold` leaves what would make the file grow; here the integers that replace it are smaller. What
is larger even so (a Fourier transform computed from a few numbers) is put back where it stays
float, and is left alone where it would take more than the other weights' integers save.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.plan import CORE

from graphopt.context import Context
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import constant_array, constant_value, weight_of
from graphopt.graph.traverse import RECURRENT

__all__ = ["Settled", "settle_weights"]

Array = np.ndarray[Any, Any]


class Settled:
    """Weights that were computed, and what they were computed by.

    Attributes:
        edits: how many nodes were given a constant.
        larger: names of those whose integers still take more than what they are computed from.
    """

    def __init__(self) -> None:
        self.edits = 0
        self.larger: set[str] = set()
        self._computed: dict[ir.Node, list[tuple[int, ir.Value]]] = {}

    def add(self, node: ir.Node, position: int, computed: ir.Value, larger: bool) -> None:
        """Remember what `node` read before."""
        self._computed.setdefault(node, []).append((position, computed))
        if larger:
            self.larger.add(node.name or "")

    def finish(self, integer: Container[ir.Node]) -> None:
        """Put back what only takes space, and remove what computed the rest."""
        for node, inputs in self._computed.items():
            if node.name in self.larger and node not in integer:
                for position, computed in inputs:
                    node.replace_input_with(position, computed)
        every = [v for inputs in self._computed.values() for _, v in inputs]
        remove_dead(p for v in every if (p := v.producer()) is not None)


def settle_weights(model: ir.Model, ctx: Context) -> Settled:
    """Evaluate the constant inputs of nodes with weights; what computed them still stands."""
    found = {node: _computed(node) for node in model.graph if node.op_type in CORE | RECURRENT}
    grown = {
        value: array.size - _held(value)
        for computed in found.values()
        for _, value, array in computed
    }
    too_much = sum(n for n in grown.values() if n > 0) > _spared(found)
    names: Names | None = None
    made: dict[ir.Value, ir.Value] = {}
    settled = Settled()
    for node, computed in found.items():
        larger = [value for _, value, _ in computed if grown[value] > 0]
        if not computed or (larger and too_much) or not ctx.edit("SettleWeights", node):
            continue
        names = names or Names(model)
        builder = Builder(model, node, names)
        for k, value, array in computed:
            if value not in made:
                made[value] = builder.constant(np.ascontiguousarray(array), f"{value.name}_folded")
            node.replace_input_with(k, made[value])
            settled.add(node, k, value, value in larger)
        settled.edits += 1
    if settled.edits:
        ctx.invalidate()
    return settled


def _computed(node: ir.Node) -> list[tuple[int, ir.Value, Array]]:
    """Inputs of a node with weights that are always the same but not held, and what they are."""
    return [
        (k, v, array)
        for k, v in enumerate(node.inputs)
        if k > 0 and v is not None and weight_of(v) is None
        if (array := constant_array(v)) is not None
    ]


def _spared(nodes: Iterable[ir.Node]) -> int:
    """Bytes that these nodes' held matrices lose when each element takes one."""
    held = {w.root: w.root.const_value for n in nodes for v in n.inputs[1:] if (w := weight_of(v))}
    return sum(t.nbytes - t.size for t in held.values() if t is not None)


def _held(value: ir.Value) -> int:
    """Bytes of the constants that a value is computed from."""
    found: dict[ir.Value, int] = {}
    stack, seen = [value], set[ir.Value]()
    while stack:
        one = stack.pop()
        if one in seen:
            continue
        seen.add(one)
        tensor, node = constant_value(one), one.producer()
        if tensor is not None:
            found[one] = tensor.nbytes
        elif node is not None:
            stack.extend(v for v in node.inputs if v is not None)
    return sum(found.values())
