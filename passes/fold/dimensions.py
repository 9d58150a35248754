"""Symbolic shape folding: targets of Reshape and Expand, and sizes computed in many steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Bind, Context, Refused, Replacement, Rule, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Fact, Shapes
from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import constant_value
from graphopt.rewriting.driver import apply_rules
from graphopt.rewriting.patterns import Match
from graphopt.rewriting.rules import Verdict

__all__ = ["fold_dimensions"]


class ReshapeTarget(Rule):
    """Reshape(x, computed) -> Reshape(x, [constants, 0 where x's own size stays, one -1])"""

    def pattern(self, op: Any, x: Any, shape: Any) -> Any:
        return op.Reshape(x, shape)

    def check(self, ctx: Context, match: Match, x: ir.Value, shape: ir.Value) -> Verdict:
        if constant_value(shape) is not None:
            return None
        target = _reshape_target(ctx.get(shapes), x, match.root)
        why_not = "the shape depends on the input in more than one place"
        return Bind(target=target) if target is not None else Refused(why_not)

    def rewrite(self, op: Builder, x: ir.Value, shape: ir.Value, target: list[int]) -> ir.Value:
        return op.Reshape(x, op.constant(np.array(target, np.int64), f"{shape.name}_folded"))


def _reshape_target(facts: Shapes, x: ir.Value, node: ir.Node) -> list[int] | None:
    """Sizes for Reshape: 0 copies x's size at that place, -1 is what is left over.

    -1 cannot be told where another size is 0, so beside a -1 every size is a number above 0.
    """
    zero_is_zero = node.attributes.get("allowzero")
    have, want = facts.shape(x), facts.shape(node.outputs[0])
    if have is None or want is None or (zero_is_zero is not None and zero_is_zero.value):
        return None
    target: list[int] = []
    for k, d in enumerate(want):
        if isinstance(d, int):
            if d == 0:
                return None
            target.append(d)
        elif k < len(have) and have[k] == d:
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1 or (-1 in target and 0 in target):
        return None
    return target


class ExpandTarget(Rule):
    """Expand(x, computed) -> Expand(x, [constants, 1 where x has that size already])"""

    def pattern(self, op: Any, x: Any, shape: Any) -> Any:
        return op.Expand(x, shape)

    def check(self, ctx: Context, match: Match, x: ir.Value, shape: ir.Value) -> Verdict:
        if constant_value(shape) is not None:
            return None
        target = _expand_target(ctx.get(shapes), x, match.root)
        return Refused("the shape depends on the input") if target is None else Bind(target=target)

    def rewrite(self, op: Builder, x: ir.Value, shape: ir.Value, target: list[int]) -> ir.Value:
        return op.Expand(x, op.constant(np.array(target, np.int64), f"{shape.name}_folded"))


def _expand_target(facts: Shapes, x: ir.Value, node: ir.Node) -> list[int] | None:
    have, want = facts.shape(x), facts.shape(node.outputs[0])
    if have is None or want is None:
        return None
    padded = (1,) * (len(want) - len(have)) + have
    target = []
    for h, w in zip(padded, want, strict=True):
        if isinstance(w, int):
            target.append(w)
        elif h == w:
            target.append(1)
        else:
            return None
    return target


class JoinedSizes(Walker):
    """Concat(..., Shape(x, a, b), Shape(x, b, c), ...) -> Concat(..., Shape(x, a, c), ...)"""

    roots = ("Concat",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        joins = any(_together(a, b) for a, b in pairwise(node.inputs))
        return Replacement(partial(_joined, node.inputs)) if joins else None


def _joined(inputs: Sequence[ir.Value | None], op: Builder) -> ir.Value:
    parts = [inputs[0]]
    for value in inputs[1:]:
        both = _together(parts[-1], value)
        if both is None:
            parts.append(value)
        else:
            x, start, end = both
            parts[-1] = op.Shape(x, start=start, end=end)
    whole = parts[0]
    return op.Concat(*parts, axis=0) if len(parts) > 1 or whole is None else whole


def _part(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """(x, a, b) of a Shape(x, a, b) with both ends given from the front."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Shape" or node.inputs[0] is None:
        return None
    ends = [node.attributes[k].value for k in ("start", "end") if k in node.attributes]
    return (node.inputs[0], *ends) if len(ends) == 2 and min(ends) >= 0 else None


def _together(a: ir.Value | None, b: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """(x, a, c) where the one is Shape(x, a, b) and the other Shape(x, b, c)."""
    first, second = _part(a), _part(b)
    if first is None or second is None or first[0] is not second[0] or first[2] != second[1]:
        return None
    return first[0], first[1], second[2]


def fold_dimensions(model: ir.Model, ctx: Context) -> int:
    """Write known targets down, then compute every remaining size once and in few steps."""
    edits = apply_rules(model, ctx, (ReshapeTarget, ExpandTarget))
    edits += _share_sizes(model, ctx)
    edits += _read_sizes_directly(model, ctx)
    edits += apply_rules(model, ctx, (JoinedSizes,))
    return edits


def _key(fact: Fact) -> Any:
    """Equal keys, equal values: symbolic elements with the type and shape they are stored in."""
    data = fact.data
    if data is None or data.dtype != object or fact.dtype is None:
        return None
    return fact.dtype, data.shape, tuple(data.ravel().tolist())


def _share_sizes(model: ir.Model, ctx: Context) -> int:
    """Two small values made of the same sizes -> the first of them."""
    facts = ctx.get(shapes)
    first: dict[Any, ir.Value] = {}
    edits = 0
    names: Names | None = None
    for node in list(model.graph):
        if node.graph is None or len(node.outputs) != 1:
            continue
        value = node.outputs[0]
        key = _key(facts.fact(value))
        if key is None:
            continue
        known = first.setdefault(key, value)
        maker = known.producer()
        if maker is None or maker.graph is None:  # it died with its last reader
            known = first[key] = value
        if known is value or value.is_graph_output() or not ctx.edit("ShareSizes", node):
            continue
        names = names or Names(model)
        Builder(model, node, names).take_over(value, known)
        remove_dead([node])
        edits += 1
    if edits:
        ctx.invalidate(preserves=(shapes,))
    return edits


def _read_sizes_directly(model: ir.Model, ctx: Context) -> int:
    """A computed [d_i, ..., d_j] that is a run of some value's shape -> Shape(value, i, j + 1).

    From opset 15 on Shape can read a part. Only chains of more than one node are replaced.
    """
    if model.graph.opset_imports.get("", 0) < 15:
        return 0
    facts = ctx.get(shapes)
    edits = 0
    names: Names | None = None
    for node in list(model.graph):
        if node.graph is None or len(node.outputs) != 1 or node.op_type in ("Shape", "Identity"):
            continue
        value = node.outputs[0]
        fact = facts.fact(value)
        data = fact.data
        if data is None or data.dtype != object or data.ndim != 1:
            continue
        if fact.dtype is not ir.DataType.INT64 or value.is_graph_output():
            continue
        source = _source_of(node, data.tolist(), facts)
        if source is None or not ctx.edit("ReadSizes", node):
            continue
        names = names or Names(model)
        builder = Builder(model, node, names)
        whole, start, end = source
        read = builder.node("Shape", [whole], {"start": start, "end": end}).outputs[0]
        builder.take_over(value, read)
        remove_dead([node])
        edits += 1
    if edits:
        ctx.invalidate(preserves=(shapes,))
    return edits


def _source_of(
    node: ir.Node, elements: Sequence[Dim], facts: Shapes
) -> tuple[ir.Value, int, int] | None:
    """A value, found among what the chain before `node` measures, whose shape holds `elements`."""
    stack, met = [node], {node}
    while stack and len(met) < 32:
        top = stack.pop()
        for value in top.inputs:
            producer = None if value is None else value.producer()
            if producer is None or producer in met:
                continue
            if producer.op_type == "Shape":
                whole = producer.inputs[0]
                dims = None if whole is None else facts.shape(whole)
                start = None if dims is None else _run(dims, elements)
                if whole is not None and start is not None:
                    return whole, start, start + len(elements)
            elif isinstance(facts.data(value), np.ndarray):  # type: ignore[arg-type]
                met.add(producer)
                stack.append(producer)
    return None


def _run(dims: Sequence[Dim], elements: Sequence[Dim]) -> int | None:
    """Where `elements` lie in `dims` without a gap."""
    size = len(elements)
    if not any(isinstance(e, Expr) for e in elements):
        return None
    for start in range(len(dims) - size + 1):
        if list(dims[start : start + size]) == list(elements):
            return start
    return None
