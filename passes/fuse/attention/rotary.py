"""Rotary position embedding (RoPE) fusion: written out, it becomes RotaryEmbedding (opset 23)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.attention.rotary_tables import batch_source, half_table
from graphopt.passes.fuse.availability import available, reachable
from graphopt.passes.fuse.layout.views import is_view
from graphopt.passes.fuse.weights import Array

from graphopt import Bind, Context, Refused, Replacement, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape
from graphopt.rewriting.rules import Found

__all__ = ["Rotary", "taken"]

#: Tables up to this many elements are read.
LARGEST = 1 << 24

Shape = tuple[Dim, ...]


def taken(value: ir.Value, facts: Shapes) -> tuple[ir.Value, int, int] | None:
    """(x, begin, step) if `value` is a part of x along its last axis: a Slice or of a Split."""
    node = value.producer()
    dims = facts.shape(value)
    if node is None or dims is None or node.inputs[0] is None:
        return None
    if node.op_type == "Split" and attribute(node, "axis") in (-1, len(dims) - 1):
        before = [facts.shape(o) for o in node.outputs[: value.index() or 0]]
        widths = [d[-1] if d is not None else None for d in before]
        if all(isinstance(w, int) for w in widths):
            return node.inputs[0], sum(w for w in widths if isinstance(w, int)), 1
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    data = [facts.fact(v).concrete for v in node.inputs[1:]]
    if any(d is None for d in data) or data[2].reshape(-1).tolist() not in (  # type: ignore[union-attr]
        [len(dims) - 1],
        [-1],
    ):
        return None
    size = facts.shape(node.inputs[0])
    step = int(data[3].reshape(-1)[0]) if len(data) > 3 and data[3] is not None else 1
    if size is None or not isinstance(size[-1], int) or step < 1:
        return None
    assert data[0] is not None
    begin = int(data[0].reshape(-1)[0])
    return node.inputs[0], begin + (size[-1] if begin < 0 else 0), step


def _is_part(value: ir.Value | None, x: ir.Value, begin: int, step: int, facts: Shapes) -> bool:
    """Whether `value` is x[begin::step] along the last axis, half of it long."""
    dims = facts.shape(x)
    if value is None or dims is None or not isinstance(dims[-1], int):
        return False
    return taken(value, facts) == (x, begin, step) and facts.shape(value) == (
        *dims[:-1],
        dims[-1] // 2,
    )


def _negated(value: ir.Value | None) -> ir.Value | None:
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == "Neg" else None


def _rotation(rotated: ir.Value, x: ir.Value, facts: Shapes) -> str:
    """ "halves" for (-x2, x1), "pairs" for (-x1, x0, -x3, x2, ...), else empty."""
    node, dims = rotated.producer(), facts.shape(x)
    if node is None or dims is None or len(dims) != 4 or not isinstance(dims[3], int):
        return ""
    half = dims[3] // 2
    if dims[3] % 2 or facts.shape(rotated) != dims:
        return ""
    if node.op_type == "Concat" and len(node.inputs) == 2:
        first, second = _negated(node.inputs[0]), node.inputs[1]
        last = attribute(node, "axis") in (-1, 3)
        right = _is_part(first, x, half, 1, facts) and _is_part(second, x, 0, 1, facts)
        return "halves" if last and right else ""
    stack = node.inputs[0].producer() if is_view(node) and node.inputs[0] is not None else None
    if stack is None or stack.op_type != "Concat" or len(stack.inputs) != 2:
        return ""
    if facts.shape(stack.outputs[0]) != (*dims[:3], half, 2):
        return ""
    sides = []
    for value in stack.inputs:
        view = value.producer() if value is not None else None
        if view is None or not is_view(view) or view.op_type == "Transpose":
            return ""
        sides.append(view.inputs[0])
    odd = _negated(sides[0])
    right = _is_part(odd, x, 1, 2, facts) and _is_part(sides[1], x, 0, 2, facts)
    return "pairs" if right else ""


def _tables(
    cos: ir.Value, sin: ir.Value, dims: Shape, pairs: bool
) -> tuple[list[Array], bool] | Refused:
    """Half tables [s, d / 2], and whether positions are the second axis; or why there are none."""
    tables: list[Array] = []
    early = False
    for value in (cos, sin):
        shape = constant_shape(value)
        if shape is None or int(np.prod(shape)) > LARGEST:
            return Refused("the tables of cosines and sines are not constant")
        wide = (1,) * (4 - len(shape)) + shape
        early = wide == (1, dims[1], 1, dims[3]) and wide != (1, 1, dims[2], dims[3])
        if wide != (1, 1, dims[2], dims[3]) and not early:
            return Refused("the tables do not run along positions and channels alone")
        table = array_of(value).reshape(-1, wide[3])
        half = wide[3] // 2
        a, b = (table[:, 0::2], table[:, 1::2]) if pairs else (table[:, :half], table[:, half:])
        if not np.array_equal(a, b):
            return Refused("the halves of the tables differ")
        tables.append(np.ascontiguousarray(a))
    return tables, early


class Rotary(Walker):
    """x * cos + rotate(x) * sin -> RotaryEmbedding(x, cos', sin', positions)

    with rotate(x1, x2) = (-x2, x1) of the halves, or of every pair, of the channels of
    x: [b, h, s, d] or [b, s, h, d], and constant tables cos and sin whose two halves are equal
    (Su et al., arXiv:2104.09864); cos' and sin' are the half tables. Tables that are computed while
    the model runs go without positions (see `rotary_tables`).
    """

    shared = True

    roots = ("Add",)

    def find(self, node: ir.Node, ctx: Context) -> Found:
        facts = ctx.get(shapes)
        one, other = (None if v is None else v.producer() for v in node.inputs)
        if one is None or other is None:
            return None
        found = _parts(one, other, facts) or _parts(other, one, facts)
        if found is None:
            return None
        x, cos, sin, pairs = found
        dims = facts.shape(x)
        assert dims is not None
        tables = _tables(cos, sin, dims, pairs)
        if isinstance(tables, Refused):
            build = None if pairs else _by_computed(ctx, node, x, (cos, sin), dims)
            if build is None:
                return tables
        else:
            if not isinstance(dims[0], int):
                return Refused("the batch size is not known")
            if tables[1] and not all(isinstance(d, int) for d in dims):
                return Refused("the sizes are not known")
            build = partial(_by_constants, x, tables, dims, (cos.name, sin.name), pairs)
        verdict = available(ctx, "RotaryEmbedding", 23)
        return Replacement(build, (one, other)) if isinstance(verdict, Bind) else verdict


def _parts(
    straight: ir.Node, turned: ir.Node, facts: Shapes
) -> tuple[ir.Value, ir.Value, ir.Value, bool] | None:
    """x, cos, sin, and whether pairs are rotated, of the products of x and of x rotated."""
    if any(n.op_type != "Mul" or len(n.outputs[0].uses()) != 1 for n in (straight, turned)):
        return None
    for x, cos in (straight.inputs, straight.inputs[::-1]):
        for rotated, sin in (turned.inputs, turned.inputs[::-1]):
            if x is None or cos is None or rotated is None or sin is None:
                continue
            kind = _rotation(rotated, x, facts)
            if kind:
                return x, cos, sin, kind == "pairs"
    return None


def _by_constants(
    x: ir.Value,
    tables: tuple[list[Array], bool],
    dims: tuple[Any, ...],
    names: tuple[str | None, str | None],
    pairs: bool,
    op: Builder,
) -> ir.Value:
    """RotaryEmbedding with constant half tables, one row a position."""
    (cos, sin), early = tables
    b, h, s, d = dims
    positions = np.tile(np.arange(cos.shape[0], dtype=np.int64), (b, 1))
    if early:
        x = op.Reshape(x, op.constant(np.array([b, h, s * d]), "shape"))
    out = op.RotaryEmbedding(
        x,
        op.constant(cos, names[0]),
        op.constant(sin, names[1]),
        op.constant(positions, "positions"),
        interleaved=1 if pairs else None,
        num_heads=s if early else None,
    )
    return op.Reshape(out, op.constant(np.array(dims), "shape")) if early else out


def _by_computed(
    ctx: Context, node: ir.Node, x: ir.Value, tables: tuple[ir.Value, ir.Value], dims: Shape
) -> Callable[[Builder], ir.Value] | None:
    """RotaryEmbedding with half tables that are computed while the model runs."""
    facts = ctx.get(shapes)
    if node.graph is not ctx.model.graph or not reachable(ctx, "RotaryEmbedding", 23):
        return None
    for heads in (1, 2):
        found = [half_table(t, heads, facts) for t in tables]
        made = [t for t in found if t is not None]
        rows = (dims[3 - heads], int(str(dims[3])) // 2)
        if len(made) < 2 or not isinstance(dims[heads], int):
            continue
        if all(t.dims[-2:] == rows and t.dims[:-2] in ((), (1,), (dims[0],)) for t in made):
            source = batch_source(dims[0], ctx.model, facts)
            if source is None and not isinstance(dims[0], int):
                return None
            return lambda op: _rotated(
                op, x, [t.write(op, dims[0], source) for t in made], dims, early=heads == 2
            )
    return None


def _rotated(
    op: Builder, x: ir.Value, tables: list[ir.Value], dims: Shape, early: bool
) -> ir.Value:
    """RotaryEmbedding with tables [b, s, d / 2] of x: [b, h, s, d], or `early` [b, s, h, d]."""
    if not early:
        return op.RotaryEmbedding(x, *tables)
    packed = op.Reshape(x, op.constant(np.array([0, 0, -1]), "shape"))
    turned = op.RotaryEmbedding(packed, *tables, num_heads=dims[2])
    return op.Reshape(turned, op.constant(np.array([0, 0, dims[2], dims[3]]), "shape"))
