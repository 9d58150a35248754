"""Sequences that are taken apart as soon as they are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.constants import constant_value
from graphopt.rewriting.patterns import Match

__all__ = ["RULES"]


def _index(value: ir.Value | None) -> int | None:
    tensor = constant_value(value)
    return None if tensor is None or tensor.size != 1 else int(tensor.numpy().ravel()[0])


class ElementOfParts(Rule):
    """SequenceAt(SplitToSequence(x, sizes, axis), i) -> Split(x, sizes, axis)[i]

    Every reader of the sequence gets its own Split; equal ones are merged as duplicates.
    """

    shared = True

    def pattern(self, op: Any, x: Any, i: Any) -> Any:
        """Match an element of a split value."""
        return op.SequenceAt(op.SplitToSequence(x, ...), i)

    def check(self, ctx: Context, match: Match, x: ir.Value, i: ir.Value) -> bool | str | None:
        """Sizes and position are constants, the rank is kept."""
        if ctx.get(shapes).opsets.get("", 0) < 13:
            return "Split takes its sizes as an input from opset 13 on"
        sizes = _sizes(ctx, match.nodes[1])
        position = _index(i)
        if sizes is None or position is None:
            return "the parts or the position are not constant"
        return -len(sizes) <= position < len(sizes)

    def rewrite(self, op: Any, ctx: Context, match: Match, x: ir.Value, i: ir.Value) -> ir.Value:
        """One Split with as many outputs as the sequence has elements."""
        split = match.nodes[1]
        sizes = _sizes(ctx, split)
        position = _index(i)
        assert sizes is not None
        assert position is not None
        axis = _axis(split)
        given = op.constant(np.array(sizes, np.int64), f"{split.name or 'split'}_sizes")
        parts = op.Split(x, given, axis=axis, outputs_=len(sizes))
        result: ir.Value = parts if len(sizes) == 1 else parts[position]
        return result


class ElementOfUnbound(Rule):
    """SequenceAt(SplitToSequence(x, keepdims=0, axis), i) -> Gather(x, i, axis)"""

    shared = True

    def pattern(self, op: Any, x: Any, i: Any) -> Any:
        """Match an element of a value taken apart along an axis that goes."""
        return op.SequenceAt(op.SplitToSequence(x, keepdims=0), i)

    def rewrite(self, op: Any, match: Match, x: ir.Value, i: ir.Value) -> ir.Value:
        """The slice at that position."""
        result: ir.Value = op.Gather(x, i, axis=_axis(match.nodes[1]))
        return result


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


class ElementOfList(Rule):
    """SequenceAt(SequenceConstruct(a, b, ...), i) -> the i-th of a, b, ..."""

    shared = True

    def pattern(self, op: Any, i: Any) -> Any:
        """Match an element of a list written out."""
        return op.SequenceAt(op.SequenceConstruct(...), i)

    def check(self, match: Match, i: ir.Value) -> bool | str | None:
        """The position is constant and in range."""
        position, count = _index(i), len(match.nodes[1].inputs)
        return position is not None and -count <= position < count

    def rewrite(self, op: Any, match: Match, i: ir.Value) -> ir.Value:
        """The element itself."""
        position = _index(i)
        assert position is not None
        element = match.nodes[1].inputs[position]
        assert element is not None
        return element


class JoinedList(Rule):
    """ConcatFromSequence(SequenceConstruct(a, b, ...)) -> Concat(a, b, ...)"""

    shared = True

    def pattern(self, op: Any) -> Any:
        """Match a list joined along an axis it has."""
        return op.ConcatFromSequence(op.SequenceConstruct(...), new_axis=0)

    def rewrite(self, op: Any, match: Match) -> ir.Value:
        """Joined at once."""
        axis = match.root.attributes["axis"].value
        result: ir.Value = op.Concat(*match.nodes[1].inputs, axis=axis)
        return result


RULES: tuple[type[Rule], ...] = (ElementOfParts, ElementOfUnbound, ElementOfList, JoinedList)
