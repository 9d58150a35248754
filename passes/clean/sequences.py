"""Sequence elimination: sequences that are taken apart as soon as they are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import Builder
from graphopt.graph.constants import constant_value
from graphopt.rewriting.rules import Verdict

__all__ = ["RULES"]


class ElementOfParts(Rule):
    """SequenceAt(SplitToSequence(x, sizes, axis), i) -> Split(x, sizes, axis)[i]

    Every reader of the sequence gets its own Split; equal ones are merged as duplicates.
    """

    shared = True

    def pattern(self, op: Any, x: Any, i: Any) -> Any:
        return op.SequenceAt(op.SplitToSequence(x, ..., as_="split"), i)

    def check(self, ctx: Context, split: ir.Node, i: ir.Value) -> Verdict:
        if ctx.get(shapes).opsets.get("", 0) < 13:
            return Refused("Split takes its sizes as an input from opset 13 on")
        sizes, position = _sizes(ctx, split), _index(i)
        if sizes is None or position is None:
            return Refused("the parts or the position are not constant")
        in_range = -len(sizes) <= position < len(sizes)
        return Bind(sizes=sizes, position=position) if in_range else None

    def rewrite(
        self, op: Builder, split: ir.Node, x: ir.Value, sizes: list[int], position: int
    ) -> ir.Value:
        given = op.constant(np.array(sizes, np.int64), f"{split.name or 'split'}_sizes")
        parts = op.node("Split", [x, given], {"axis": _axis(split)}, outputs=len(sizes))
        return parts.outputs[position]


class ElementOfUnbound(Rule):
    """SequenceAt(SplitToSequence(x, keepdims=0, axis), i) -> Gather(x, i, axis)"""

    shared = True

    def pattern(self, op: Any, x: Any, i: Any) -> Any:
        return op.SequenceAt(op.SplitToSequence(x, keepdims=0, as_="split"), i)

    def rewrite(self, op: Builder, split: ir.Node, x: ir.Value, i: ir.Value) -> ir.Value:
        return op.Gather(x, i, axis=_axis(split))


class ElementOfList(Rule):
    """SequenceAt(SequenceConstruct(a, b, ...), i) -> the i-th of a, b, ..."""

    shared = True

    def pattern(self, op: Any, i: Any) -> Any:
        return op.SequenceAt(op.SequenceConstruct(..., as_="made"), i)

    def check(self, made: ir.Node, i: ir.Value) -> Bind | None:
        position = _index(i, len(made.inputs))
        return None if position is None else Bind(element=made.inputs[position])

    def rewrite(self, op: Builder, element: ir.Value) -> ir.Value:
        return element


class JoinedList(Rule):
    """ConcatFromSequence(SequenceConstruct(a, b, ...), axis) -> Concat(a, b, ..., axis)"""

    shared = True

    def pattern(self, op: Any) -> Any:
        made = op.SequenceConstruct(..., as_="made")
        return op.ConcatFromSequence(made, new_axis=0, as_="joined")

    def rewrite(self, op: Builder, made: ir.Node, joined: ir.Node) -> ir.Value:
        return op.Concat(*made.inputs, axis=joined.attributes["axis"].value)


def _index(value: ir.Value | None, count: int | None = None) -> int | None:
    """A constant position; None if it is not constant, or not one of `count`."""
    tensor = constant_value(value)
    if tensor is None or tensor.size != 1:
        return None
    position = int(tensor.numpy().ravel()[0])
    return position if count is None or -count <= position < count else None


def _axis(node: ir.Node) -> int:
    have = node.attributes.get("axis")
    return 0 if have is None else int(have.value)


def _sizes(ctx: Context, split: ir.Node) -> list[int] | None:
    facts = ctx.get(shapes)
    x = split.inputs[0]
    assert x is not None
    dims = facts.shape(x)
    axis = _axis(split)
    given = split.inputs[1] if len(split.inputs) > 1 else None
    size = None if dims is None else dims[axis]
    if given is None:
        keep = "keepdims" not in split.attributes or split.attributes["keepdims"].value
        return [1] * size if isinstance(size, int) and size <= 64 and keep else None
    tensor = constant_value(given)
    if tensor is None or tensor.size > 64:
        return None
    array = tensor.numpy()
    if array.ndim == 1:
        return [int(s) for s in array]
    if not isinstance(size, int) or not int(array) or size > 64 * int(array):
        return None
    step = int(array)
    return [min(step, size - k) for k in range(0, size, step)]


RULES = (ElementOfParts, ElementOfUnbound, ElementOfList, JoinedList)
