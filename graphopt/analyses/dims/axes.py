"""Axes of every value of a model, and which integers of its nodes follow from their sizes.

What tables of equations state (`operation`) is kept here: the axes that are one, who reads and
writes them, and what the cut has to write anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import onnx_ir as ir

from graphopt.analyses.dims.fills import fill
from graphopt.analyses.dims.instance import free_size
from graphopt.analyses.dims.system import UNKNOWN, Array, System
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.constants import constant_value

__all__ = ["Axes", "Count", "Derived", "Pin", "Remap", "Role", "Sizes", "Tensor"]

Role = Literal["reads", "writes", "carries"]


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
