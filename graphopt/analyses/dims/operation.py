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

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims.fills import fill
from graphopt.analyses.dims.instance import free_size
from graphopt.analyses.dims.system import ONE, UNKNOWN, Array, System
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value

__all__ = ["Axes", "Count", "Operation", "Pin", "Remap", "Role", "Sizes", "Tensor", "Unsupported"]

Role = Literal["reads", "writes", "carries"]


class Unsupported(Exception):
    """This node cannot be understood, for this reason: everything it touches is frozen."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One input or output of a node: its axes, their sizes, and where it is seen."""

    value: ir.Value
    axes: tuple[int, ...]
    sizes: tuple[Dim, ...]
    index: int
    output: bool

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.axes)

    def __getitem__(self, k: int) -> int:
        return self.axes[k]

    @property
    def slot(self) -> tuple[bool, int]:
        """Key of the slot within the node."""
        return (self.output, self.index)


@dataclasses.dataclass(frozen=True, slots=True)
class Count:
    """An integer of a node that is the number of positions in [start, stop) of an axis.

    It is element `element` of operand `operand`, or of attribute `attribute` (element None: the
    attribute is the integer). A value that is not that number (0, -1, 1 and the like have meanings
    of their own) is left alone unless `always`.
    """

    axis: int
    start: int
    stop: int
    operand: int | None = None
    attribute: str | None = None
    element: int | None = None
    always: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Operand `operand` lists the sizes of `axes`; attributes that stood for it are dropped.

    With `bounds`, element k is the number of positions of axes[k] in [start, stop) = bounds[k].
    """

    operand: int
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    drop: tuple[str, ...] = ()
    bounds: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Remap:
    """The elements of constant operand `operand` are positions of `axis`."""

    operand: int
    axis: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pin:
    """Attribute `attribute` has an implicit value that comes from the size of `axis`."""

    attribute: str
    value: int | float
    axis: int


Derived = Count | Sizes | Remap | Pin


#: Positions of an axis that dimensions are followed along, at most.
LONGEST = 1 << 20


class Axes:
    """Axes of every value of a model; a constant or a fill has axes of its own at each use.

    Elements of values are those of `shapes`; sizes of axes are those at one instance, `at`.
    """

    def __init__(self, shapes: Shapes, at: Shapes | None = None) -> None:
        self.shapes = shapes
        self.at = shapes if at is None else at
        self.system = System()
        self.tensors: dict[ir.Node, dict[tuple[bool, int], Tensor]] = {}
        self.roles: dict[tuple[ir.Node, bool, int], list[tuple[int, Role, int | None]]] = {}
        self.derived: dict[ir.Node, list[Derived]] = {}
        self.uses: dict[ir.Value, list[Tensor]] = {}
        self.kinds: list[tuple[int, str, int | None]] = []
        self.fills: dict[ir.Value, Array | None] = {}
        self._fixed: dict[ir.Value, bool] = {}
        self._of: dict[ir.Value, tuple[tuple[int, ...], tuple[Dim, ...]] | None] = {}

    def fixed(self, value: ir.Value) -> bool:
        """Whether a value is a constant, or computed from constants alone (a weight transposed)."""
        stack = [value]
        while stack:
            top = stack[-1]
            node = top.producer()
            if top in self._fixed:
                stack.pop()
            elif constant_value(top) is not None or node is None:
                self._fixed[top] = node is not None or constant_value(top) is not None
            else:
                given = [v for v in node.inputs if v is not None]
                waiting = [v for v in given if v not in self._fixed]
                if waiting:
                    stack.extend(waiting)
                else:
                    self._fixed[top] = bool(given) and all(self._fixed[v] for v in given)
        return self._fixed[value]

    def filled(self, value: ir.Value) -> bool:
        """Whether a node makes this value with one and the same number everywhere."""
        if value not in self.fills:
            self.fills[value] = fill(value)
        return self.fills[value] is not None

    def values(self) -> Iterator[tuple[ir.Value, tuple[int, ...]]]:
        """Every value that is no constant, with its axes."""
        for value, found in self._of.items():
            if found is not None:
                yield value, found[0]

    def of(self, value: ir.Value) -> tuple[tuple[int, ...], tuple[Dim, ...]] | None:
        """Axes and sizes of a value that is no constant; None if its rank is unknown."""
        if value not in self._of:
            self._of[value] = self.new(value)
        return self._of[value]

    def new(self, value: ir.Value) -> tuple[tuple[int, ...], tuple[Dim, ...]] | None:
        """New axes for a value, at the instance's sizes; those of unknown size are frozen.

        None if its rank is unknown, or an axis too long to say something of each position.
        """
        sizes = self.at.shape(value)
        if sizes is None or any(isinstance(s, int) and s > LONGEST for s in sizes):
            return None
        axes = tuple(self.axis(s) for s in sizes)
        if self.at is not self.shapes:
            for axis, size in zip(axes, self.shapes.shape(value) or (), strict=False):
                if not free_size(size):
                    self.system.freeze(axis, "its size is not fixed")
        return axes, sizes

    def axis(self, size: Dim) -> int:
        """A new axis."""
        return self.system.axis(size) if isinstance(size, int) else UNKNOWN

    def tensor(self, node: ir.Node, output: bool, index: int) -> Tensor | None:
        """The tensor in a slot of a node; None if its rank is unknown."""
        slots = self.tensors.setdefault(node, {})
        key = (output, index)
        if key in slots:
            return slots[key]
        value = node.outputs[index] if output else node.inputs[index]
        assert value is not None
        constant = constant_value(value) is not None
        alone = constant or (not output and self.filled(value))
        found = self.new(value) if alone else self.of(value)
        if found is None:
            return None
        made = slots[key] = Tensor(value, found[0], found[1], index, output)
        if constant and not output:
            self.uses.setdefault(value, []).append(made)
        return made


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
