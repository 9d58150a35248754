"""Operation: one node as the tables of equations see it, and what they may say about it.

A table entry is a function of an `Operation`. It states equations between the axes of the node's
tensors, which of them it reads (contracts, reduces) and writes, and which of its integers are
sizes, so that the cut can write them anew:

    def my_norm(op):                       # y = x / sum(x, -1) * w
        x, w, y = op.x(0), op.x(1), op.y(0)
        op.elementwise()                   # same axes, broadcast
        op.reads(x, -1)
    operators["my.domain:Norm"] = my_norm
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims.axes import Axes, Count, Derived, Pin, Role, Tensor
from graphopt.analyses.dims.system import ONE, UNKNOWN, Array
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value

__all__ = ["Operation", "Unsupported"]


class Unsupported(Exception):
    """This node cannot be understood, for this reason: everything it touches is frozen."""


class Operation:
    """A node: its tensors, its attributes, and what a table entry may state about them."""

    def __init__(self, node: ir.Node, axes: Axes) -> None:
        self.node = node
        self.axes = axes
        self.system = axes.system

    # --- what there is ----------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def made(self, index: int) -> bool:
        """Whether output `index` is there (and, if its rank is unknown, used)."""
        if index >= len(self.node.outputs) or not self.node.outputs[index].name:
            return False
        value = self.node.outputs[index]
        used = bool(value.uses()) or value.is_graph_output()
        return used or self.axes.at.rank(value) is not None

    def x(self, index: int) -> Tensor:
        """Input `index`."""
        return self._tensor(False, index)

    def y(self, index: int = 0) -> Tensor:
        """Output `index`."""
        return self._tensor(True, index)

    def inputs(self) -> list[Tensor]:
        """All inputs that are given."""
        return [self.x(k) for k in range(len(self.node.inputs)) if self.has(k)]

    def outputs(self) -> list[Tensor]:
        """All outputs that are there."""
        return [self.y(k) for k in range(len(self.node.outputs)) if self.made(k)]

    def _tensor(self, output: bool, index: int) -> Tensor:
        found = self.axes.tensor(self.node, output, index)
        if found is None:
            value = (self.node.outputs if output else self.node.inputs)[index]
            name = value.name if value else "?"
            raise Unsupported(f"the rank of '{name}' is not known, or an axis is too long")
        return found

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or the operator's default, or `default`."""
        standard = self.node.domain in ("", "ai.onnx")
        return attribute(self.node, name, default, opset=self.opset() if standard else None)

    def opset(self) -> int:
        """Version of the default domain."""
        graph = self.axes.shapes.model.graph
        return graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))

    def array(self, index: int) -> Array | None:
        """The elements of an input, if it is constant or all of them are known."""
        if not self.has(index):
            return None
        value = self.node.inputs[index]
        tensor = constant_value(value)
        if tensor is not None:
            return tensor.numpy()
        data = self.axes.shapes.data(value) if value is not None else None
        return data if data is not None and data.dtype != object else None

    def integers(self, index: int, attribute: str | None = None) -> list[int] | None:
        """The integers of an input, or of the attribute that held them in older opsets."""
        if attribute is not None and attribute in self.node.attributes:
            return [int(k) for k in self.node.attributes[attribute].value]
        data = self.array(index)
        return None if data is None else [int(k) for k in data.ravel()]

    def elements(self, index: int) -> list[int | None] | None:
        """As `integers`, with None for those that are not numbers."""
        known = self.integers(index)
        if known is not None:
            return list(known)
        value = self.node.inputs[index] if self.has(index) else None
        data = self.axes.shapes.data(value) if value is not None else None
        if data is None:
            return None
        return [int(e) if isinstance(e, (int, np.integer)) else None for e in data.ravel()]

    # --- equations --------------------------------------------------------------------------

    def virtual(self, size: int, frozen: str = "") -> int:
        """An axis of no tensor (a group count, a factor), frozen for a reason if one is given."""
        axis = self.system.axis(size)
        if frozen:
            self.system.freeze(axis, frozen)
        return axis

    def same(self, a: int, b: int) -> None:
        """Position p of `a` is position p of `b`."""
        self.system.same(a, b)

    def all_same(self, a: Tensor, b: Tensor) -> None:
        """Two tensors of one shape, axis by axis."""
        for p, q in zip(a.axes, b.axes, strict=True):
            self.system.same(p, q)

    def part(self, part: int, whole: int, whole_at: Array, at: Array | None = None) -> None:
        """Position `at[k]` of `part` is position `whole_at[k]` of `whole`."""
        self.system.part(part, whole, whole_at, at)

    def merge(self, whole: int, factors: Sequence[int]) -> None:
        """`whole` is the row-major product of `factors`."""
        self.system.merge(whole, factors)

    def freeze(self, axes: int | Sequence[int] | Tensor, reason: str) -> None:
        """These axes must stay as they are."""
        listed = (
            [axes] if isinstance(axes, int) else axes.axes if isinstance(axes, Tensor) else axes
        )
        for axis in listed:
            self.system.freeze(axis, reason)

    def freeze_all(self, reason: str) -> None:
        """Everything this node touches must stay as it is, what its subgraphs return too."""
        for held in self.node.attributes.values():
            if held.type == ir.AttributeType.GRAPH:
                graph = held.as_graph()
                for inner in (*graph.inputs, *graph.outputs):
                    self.freeze((self.axes.of(inner) or ((), ()))[0], reason)
        for output, values in ((False, self.node.inputs), (True, self.node.outputs)):
            for k, value in enumerate(values):
                tensor = self.axes.tensor(self.node, output, k) if value is not None else None
                if tensor is not None:
                    self.freeze(tensor, reason)

    def broadcast(self, inputs: Sequence[Tensor], output: Tensor) -> None:
        """NumPy broadcasting: axes are equal from the right, size 1 goes with anything."""
        for x in inputs:
            for k in range(1, min(x.rank, output.rank) + 1):
                a, b = x[-k], output[-k]
                if a != ONE and not (a == UNKNOWN and b < 0):
                    self.system.same(a, b)

    def elementwise(self) -> None:
        """All inputs broadcast to every output."""
        for y in self.outputs():
            self.broadcast(self.inputs(), y)

    # --- roles and integers -----------------------------------------------------------------

    def reads(self, tensor: Tensor, axis: int, via: int | None = None) -> None:
        """The node contracts or reduces this axis (as far as its dimension is that of `via`)."""
        self._role(tensor, axis, "reads", via)

    def writes(self, tensor: Tensor, axis: int, via: int | None = None) -> None:
        """The node makes this axis (as far as its dimension is that of `via`)."""
        self._role(tensor, axis, "writes", via)

    def _role(self, tensor: Tensor, axis: int, role: Role, via: int | None) -> None:
        key = (self.node, tensor.output, tensor.index)
        self.axes.roles.setdefault(key, []).append((axis % tensor.rank, role, via))

    def means(self, kind: str, *axes: int, via: int | None = None) -> None:
        """Say what kind of dimension axes are (see `Dimension.kind`), given `via` is a product."""
        self.axes.kinds.extend((axis, kind, via) for axis in axes)

    def derive(self, derived: Derived) -> None:
        """State that an integer of this node comes from sizes of axes."""
        self.axes.derived.setdefault(self.node, []).append(derived)

    def count(
        self,
        axis: int,
        *,
        operand: int | None = None,
        attribute: str | None = None,
        element: int | None = None,
        start: int = 0,
        stop: int | None = None,
        always: bool = False,
    ) -> None:
        """State that an integer is the number of positions of `axis` in [start, stop)."""
        if axis >= 0:
            end = self.system.sizes[axis] if stop is None else stop
            self.derive(Count(axis, start, end, operand, attribute, element, always))

    def pin(self, attribute: str, value: int | float, axis: int) -> None:
        """Write `attribute` out if the size of `axis`, which its default comes from, changes."""
        if axis >= 0:
            self.derive(Pin(attribute, value, axis))
