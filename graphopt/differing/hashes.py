"""Merkle hashes of a graph's nodes, from its inputs down and from its outputs up.

Keys are interned in one table that both graphs share, so equal numbers mean equal subgraphs and no
hash can collide (hash consing).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import onnx_ir as ir

from graphopt.differing.flow import Flow, attributes_of

__all__ = ["Detail", "Table"]

#: What of a constant and of a node counts: all; its type and shape; operators alone.
Detail = Literal["exact", "shapes", "operators"]


class Table:
    """Numbers for keys."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._labels: dict[ir.Node, Hashable] = {}

    def number(self, key: Hashable) -> int:
        """The same number for equal keys."""
        return self._numbers.setdefault(key, len(self._numbers))

    def label(self, flow: Flow, k: int, detail: Detail) -> Hashable:
        """What a node does, apart from what it reads."""
        node = flow.nodes[k]
        domain = "" if node.domain == "ai.onnx" else node.domain
        if detail != "exact":
            return domain, node.op_type
        if node not in self._labels:
            found = attributes_of(node, flow.digests)
            self._labels[node] = (domain, node.op_type, *sorted(found.items()))
        return self._labels[node]

    def from_inputs(self, flow: Flow, detail: Detail, inputs: dict[str, int]) -> list[int]:
        """Per node the number of all that it computes; `inputs` are those of the model, by name."""
        numbers: dict[ir.Value, int] = {}
        found: list[int] = []
        for k, node in enumerate(flow.nodes):
            read = []
            for value in flow.reads[k]:
                if value is None:
                    read.append(-1)
                    continue
                if value not in numbers:
                    numbers[value] = self._leaf(flow, value, detail, inputs)
                read.append(numbers[value])
            own = self.number(("down", self.label(flow, k, detail), *read))
            found.append(own)
            for j, value in enumerate(node.outputs):
                numbers.setdefault(value, self.number(("out", own, j)))
        return found

    def from_outputs(self, flow: Flow, detail: Detail) -> list[int]:
        """Per node the number of all that is computed from it."""
        found = [0] * len(flow.nodes)
        for k in range(len(flow.nodes) - 1, -1, -1):
            node = flow.nodes[k]
            uses: list[Hashable] = []
            for j, value in enumerate(node.outputs):
                uses += [("output", j, name) for name in flow.outputs.get(value, ())]
                uses += [
                    ("use", j, found[r], s) for r, s in sorted(flow.readers.get(value, ())) if r > k
                ]
            held = [
                (s, self._constant(flow, v, detail))
                for s, v in enumerate(flow.reads[k])
                if v is not None and flow.constant(v) is not None
            ]
            key = ("up", self.label(flow, k, detail), tuple(held), frozenset(uses), len(uses))
            found[k] = self.number(key)
        return found

    def by_weights(self, flow: Flow, least: int) -> list[int | None]:
        """Per node the number of its operator and of the constants of `least` elements it reads."""
        found: list[int | None] = []
        for k in range(len(flow.nodes)):
            held = self._held(flow, k, least)
            own = self.label(flow, k, "operators")
            found.append(self.number(("weights", own, *held)) if held else None)
        return found

    def alone(self, flow: Flow) -> list[int]:
        """Per node the number of its operator, attributes and constants, whatever else it reads."""
        return [
            self.number(("alone", self.label(flow, k, "exact"), *self._held(flow, k, 0)))
            for k in range(len(flow.nodes))
        ]

    def _held(self, flow: Flow, k: int, least: int) -> list[tuple[int, bytes]]:
        """Slot and digest of the constants of so many elements that a node reads."""
        tensors = ((slot, flow.constant(v)) for slot, v in enumerate(flow.reads[k]))
        return [(slot, flow.digests(t)) for slot, t in tensors if t is not None and t.size >= least]

    def _leaf(self, flow: Flow, value: ir.Value, detail: Detail, inputs: dict[str, int]) -> int:
        if flow.constant(value) is not None:
            return self._constant(flow, value, detail)
        return self.number(("input", inputs.get(value.name or "", value.name)))

    def _constant(self, flow: Flow, value: ir.Value, detail: Detail) -> int:
        tensor = flow.constant(value)
        if tensor is None or detail == "operators":
            return self.number("constant")
        if detail == "shapes":
            return self.number(("constant", tensor.dtype, tuple(tensor.shape.numpy())))
        return self.number(("constant", flow.digests(tensor)))
