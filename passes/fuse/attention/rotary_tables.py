"""Rotary embedding caches: tables of cosines and sines that are computed while the model runs.

    freqs = positions x inverse frequencies          [b or 1, s, d / 2]
    cos   = Cos(Concat(freqs, freqs)) * scaling      [b or 1, s, d]

or rows of a constant table, chosen by position. Both halves of such a table are equal by the way it
is made, so the half table is made the same way from one half of what it is made of. It is made once
for all layers: nodes go right after what they read, and one that is there already is used.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.layout.slices import place_after
from graphopt.passes.fuse.layout.views import is_view

from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, number

__all__ = ["HalfTable", "batch_source", "half_table"]

#: No exporter takes more steps from the frequencies to the table.
LONGEST = 8


@dataclasses.dataclass(frozen=True)
class HalfTable:
    """How a table comes about.

    Attributes:
        base: [..., d / 2] frequencies, or a constant [..., d] of which a half is taken.
        steps: the nodes from `base` to the table, in order.
        dims: the shape of the half table: [s, d / 2] or [b or 1, s, d / 2].
    """

    base: ir.Value
    steps: tuple[ir.Node, ...]
    dims: tuple[Dim, ...]

    def write(self, op: Builder, b: Dim, source: tuple[ir.Value, int] | None) -> ir.Value:
        """The half table as [b, s, d / 2]; `source` is an input and its axis of size `b`."""
        value = self.base
        if constant_shape(value) is not None:
            value = _half(op, value)
        for step in self.steps:
            value = _again(op, step, value)
        if len(self.dims) == 3 and self.dims[0] == b:
            return value
        return _for_each_row(op, value, b, source)


def half_table(value: ir.Value, heads: int, facts: Shapes) -> HalfTable | None:
    """How half of the table `value` is made, which has an axis of size 1 for the heads."""
    dims = facts.shape(value)
    if dims is None or len(dims) < 3 or dims[heads - 4 + len(dims)] != 1:
        return None
    node = value.producer()
    while node is not None and is_view(node) and node.op_type != "Transpose":
        if node.inputs[0] is None:
            return None
        value = node.inputs[0]
        node = value.producer()
    known = facts.shape(value)
    squeezed = tuple(d for k, d in enumerate(dims) if k != heads - 4 + len(dims))
    if known is None or len(known) not in (2, 3):
        return None
    if (1,) * (3 - len(known)) + known != (1,) * (3 - len(squeezed)) + squeezed:
        return None
    steps: list[ir.Node] = []
    while (node := value.producer()) is not None and node.op_type != "Concat":
        source = _through(node, facts)
        if source is None or len(steps) > LONGEST:
            return None
        steps.append(node)
        value = source
    width = known[-1]
    if not isinstance(width, int) or width % 2:
        return None
    base = _base(value, facts)
    return None if base is None else HalfTable(base, tuple(steps[::-1]), (*known[:-1], width // 2))


def _through(node: ir.Node, facts: Shapes) -> ir.Value | None:
    """What a node reads that treats both halves of the last axis alike."""
    first = node.inputs[0] if node.inputs else None
    if sum(constant_shape(v) is None for v in node.inputs if v is not None) != 1:
        return None
    if node.op_type in ("Cast", "Cos", "Identity", "Sin"):
        return first
    if node.op_type == "Mul":
        for x, c in (node.inputs, node.inputs[::-1]):
            if number(c) is not None:
                return x
    if node.op_type == "Gather" and attribute(node, "axis") == 0:
        return first if first is not None and facts.rank(first) == 2 else None
    if node.op_type == "Slice" and len(node.inputs) > 3 and first is not None:
        axes = facts.fact(node.inputs[3]).concrete
        rank = facts.rank(first)
        if axes is not None and rank and rank - 1 not in [int(a) % rank for a in axes.ravel()]:
            return first
    return None


def _base(value: ir.Value, facts: Shapes) -> ir.Value | None:
    """One half of a value whose halves are equal: the frequencies, or the constant itself."""
    node, shape = value.producer(), constant_shape(value)
    if node is not None and node.op_type == "Concat":
        rank = facts.rank(value)
        twice = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        last = rank is not None and attribute(node, "axis") in (-1, rank - 1)
        return node.inputs[0] if twice and last else None
    if shape is None or len(shape) < 2 or shape[-1] % 2 or int(np.prod(shape)) > 1 << 24:
        return None
    table = array_of(value)
    half = shape[-1] // 2
    return value if np.array_equal(table[..., :half], table[..., half:]) else None


def batch_source(b: Dim, model: ir.Model, facts: Shapes) -> tuple[ir.Value, int] | None:
    """An input of the model, and its axis of size `b`."""
    for value in model.graph.inputs:
        dims = facts.shape(value) or ()
        if b in dims:
            return value, dims.index(b)
    return None


def _known(value: ir.Value, key: str, op: Builder) -> ir.Value | None:
    """What was made of `value` in this model before."""
    known: ir.Value | None = value.meta.get(key)
    if known is None:
        return None
    node = known.producer()
    graph = known.graph if node is None else node.graph
    return known if graph is op.model.graph else None


def _half(op: Builder, value: ir.Value) -> ir.Value:
    """The first half of a constant along its last axis."""
    half = _known(value, "graphopt.half", op)
    if half is None:
        table = array_of(value)
        first = np.ascontiguousarray(table[..., : table.shape[-1] // 2])
        half = op.constant(first, f"{value.name}_half")
        value.meta["graphopt.half"] = half
    return half


def _again(op: Builder, step: ir.Node, source: ir.Value) -> ir.Value:
    """`step` on the half `source`, right after the one value it reads that is no constant."""
    inputs = list(step.inputs)
    inputs[_place(step)] = source
    (read,) = (v for v in inputs if v is not None and constant_shape(v) is None)
    wanted = {k: a.value for k, a in step.attributes.items()}
    for use in read.uses():
        node = use.node
        if (
            node.op_type == step.op_type
            and node.graph is op.at.graph
            and list(node.inputs) == inputs
            and {k: a.value for k, a in node.attributes.items()} == wanted
        ):
            break
    else:
        node = op.node(step.op_type, inputs, dict(step.attributes))
    place_after(node, read)
    return node.outputs[0]


def _place(step: ir.Node) -> int:
    """Which input of a step is the table."""
    return next(k for k, v in enumerate(step.inputs) if number(v) is None)


def _for_each_row(
    op: Builder, value: ir.Value, b: Dim, source: tuple[ir.Value, int] | None
) -> ir.Value:
    """The table once for every row of the batch."""
    key = f"graphopt.rows {b}"
    wide = _known(value, key, op)
    if wide is not None:
        return wide
    if isinstance(b, int):
        target = op.constant(np.array([b, 1, 1], np.int64), "rows")
    else:
        assert source is not None
        one = op.constant(np.array([1], np.int64), "one")
        start = {"start": source[1], "end": source[1] + 1}
        size = op.node("Shape", [source[0]], start)
        joined = op.node("Concat", [size.outputs[0], one, one], {"axis": 0})
        place_after(joined, source[0])
        place_after(size, source[0])
        target = joined.outputs[0]
    node = op.node("Expand", [value, target])
    place_after(node, value if value.producer() is not None else target)
    value.meta[key] = node.outputs[0]
    return node.outputs[0]
