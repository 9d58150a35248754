"""Attention masks: what one does to a row it masks fully, and how to keep that.

    softmax, additive -Inf           the row is NaN (an exporter's guard makes it 0)
    softmax, additive lowest float   every score is absorbed: the row is uniform
    Attention                        the row is 0, for -Inf and for the lowest float alike

So a guarded -Inf mask is Attention's own behaviour; the lowest float becomes the next one above it,
which absorbs scores just as well and is no mask to Attention; an unguarded -Inf is refused unless
no row can be fully masked. Scores are taken to be finite and below 1e30.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.layout.slices import place_after
from graphopt.passes.fuse.weights import Array

from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, constant_value

__all__ = ["HUGE", "Mask", "Term", "judge", "mask_operand", "nudged", "only_masks", "soften"]

#: A masked score below this is absorbed: any finite score added to it leaves it as it is.
HUGE = -1e30
#: Constant masks up to this many elements are read.
LARGEST = 1 << 24

_MOVES = ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Identity", "Tile")


@dataclasses.dataclass(frozen=True)
class Mask:
    """What is known of an additive mask.

    Attributes:
        neg_inf: it may hold -Inf in a whole row.
        lowest: it may hold the lowest float.
        lowest_rows: a whole row may hold the lowest float.
        known: False if it may hold anything.
    """

    neg_inf: bool = False
    lowest: bool = False
    lowest_rows: bool = False
    known: bool = True


UNKNOWN = Mask(known=False)
Shape = tuple[Dim, ...]


@dataclasses.dataclass(frozen=True)
class Term:
    """What is added to the scores, or put in their stead where a condition says so.

    Attributes:
        value: the summand, or None.
        condition: the boolean tensor, or None.
        fill: what stands where the score is masked.
        keeps: the condition is true where the score stays.
        merged: it meets scores of the axes [b h, s, t].
    """

    value: ir.Value | None = None
    condition: ir.Value | None = None
    fill: float = 0.0
    keeps: bool = True
    merged: bool = False

    @property
    def tensor(self) -> ir.Value:
        """The tensor that broadcasts to the scores."""
        given = self.condition if self.value is None else self.value
        assert given is not None
        return given

    def judge(self, facts: Shapes, dtype: ir.DataType) -> Mask:
        """What it may do to a row."""
        if self.value is not None:
            return judge(self.value, facts)
        low = float(np.finfo(dtype.numpy()).min)
        return Mask(
            neg_inf=self.fill == -np.inf, lowest=self.fill == low, lowest_rows=self.fill == low
        )


def nudged(a: Array) -> Array:
    """`a` with the lowest float replaced by the one above it."""
    low = np.finfo(a.dtype).min
    return np.where(a == low, np.nextafter(low, a.dtype.type(0)), a)


def judge(value: ir.Value, facts: Shapes) -> Mask:
    """What the additive mask `value` may hold."""
    if constant_value(value) is not None:
        return _constant(value)
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return UNKNOWN
    if node.op_type in _MOVES and node.inputs[0] is not None:
        return judge(node.inputs[0], facts)
    if node.op_type == "Where":
        a, b = node.inputs[1], node.inputs[2]
        assert a is not None
        assert b is not None
        return _either(judge(a, facts), judge(b, facts))
    if node.op_type == "Mul":
        return _product(node, facts)
    return UNKNOWN


def _constant(value: ir.Value) -> Mask:
    shape = constant_shape(value)
    if shape is None or int(np.prod(shape)) > LARGEST:
        return UNKNOWN
    a = array_of(value)
    if a.dtype.kind != "f":
        return UNKNOWN
    if np.isnan(a).any() or (a == np.inf).any():
        return UNKNOWN
    low = np.finfo(a.dtype).min
    top = a.max(axis=-1) if a.ndim else a
    return Mask(
        neg_inf=bool((top == -np.inf).any()),
        lowest=bool((a == low).any()),
        lowest_rows=bool((top == low).any()),
    )


def _either(a: Mask, b: Mask) -> Mask:
    return Mask(
        a.neg_inf or b.neg_inf,
        a.lowest or b.lowest,
        a.lowest_rows or b.lowest_rows,
        a.known and b.known,
    )


def _product(node: ir.Node, facts: Shapes) -> Mask:
    """(1 - m) * c for a mask m of zeros and ones that came from integers or booleans."""
    for side in (0, 1):
        c, other = node.inputs[side], node.inputs[1 - side]
        if c is None or other is None or constant_value(c) is None:
            continue
        minus = other.producer()
        if minus is None or minus.op_type != "Sub" or minus.inputs[1] is None:
            return UNKNOWN
        cast = minus.inputs[1].producer()
        while cast is not None and cast.op_type in _MOVES and cast.inputs[0] is not None:
            cast = cast.inputs[0].producer()
        if cast is None or cast.op_type != "Cast":
            return UNKNOWN
        source = facts.dtype(cast.inputs[0]) if cast.inputs[0] is not None else None
        if source is None or not (source.is_integer() or source == ir.DataType.BOOL):
            return UNKNOWN
        mask = _constant(c)
        return UNKNOWN if mask.neg_inf else mask
    return UNKNOWN


def soften(value: ir.Value, op: Builder) -> None:
    """Replace the lowest float by the one above it in the constants `value` is made of."""
    node = value.producer()
    if node is None:
        return
    for index, old in enumerate(node.inputs):
        if old is None:
            continue
        if constant_value(old) is None:
            soften(old, op)
        elif _constant(old).lowest:
            node.replace_input_with(index, op.constant(nudged(array_of(old)), old.name))


def only_masks(value: ir.Value) -> bool:
    """Whether all that reads the mask `value`, or what it is moved from, adds it to scores."""
    node = value.producer()
    if value.is_graph_output() or not all(_adds_to_scores(u.node, u.idx) for u in value.uses()):
        return False
    if node is None or node.op_type not in (*_MOVES, "Where"):
        return True
    return all(
        only_masks(v)
        for v in node.inputs
        if v is not None and constant_value(v) is None and v.producer() is not None
        if node.op_type != "Where" or v is not node.inputs[0]
    )


def _adds_to_scores(node: ir.Node, index: int) -> bool:
    if node.op_type in ("Attention", "MultiHeadAttention"):
        return index == (3 if node.op_type == "Attention" else 5)
    out = node.outputs[0]
    if node.op_type in (*_MOVES, "Where"):
        return not out.is_graph_output() and all(_adds_to_scores(u.node, u.idx) for u in out.uses())
    if node.op_type != "Add" or len(out.uses()) != 1:
        return False
    return out.consumers()[0].op_type in ("Softmax", "Add")


def mask_operand(
    op: Builder,
    terms: Sequence[tuple[Term, Shape]],
    q: ir.Value,
    grid: Shape,
    *,
    dtype: ir.DataType,
    softly: bool,
    widen: bool,
    direct: bool,
) -> ir.Value | None:
    """The sum of the terms (each with its shape), as a mask for scores of the shape `grid`.

    `softly`: without the lowest float. `widen`: with a row for every query. `direct`: the one
    term's condition is the mask.
    """
    mask: ir.Value | None = None
    for term, dims in terms:
        one = term.tensor if direct else _summand(op, term, dtype, softly)
        if term.merged and len(dims) == 3 and dims[0] != 1:
            target = [*grid[:2], *dims[1:]]
            fixed = [d if isinstance(d, int) else -1 for d in target]
            one = op.Reshape(one, op.constant(np.array(fixed, np.int64), "shape"))
        mask = one if mask is None else op.Add(mask, one)
    return _widened(op, mask, q, grid[2]) if mask is not None and widen else mask


def _summand(op: Builder, term: Term, dtype: ir.DataType, softly: bool) -> ir.Value:
    if term.value is None:
        fill = op.constant(nudged(np.array(term.fill, dtype.numpy())), "masked")
        zero = op.constant(np.array(0.0, dtype.numpy()), "kept")
        chosen = (zero, fill) if term.keeps else (fill, zero)
        return op.Where(term.condition, *chosen)
    if softly and constant_value(term.value) is not None:
        return op.constant(nudged(array_of(term.value)), term.value.name)
    if softly:
        soften(term.value, op)
    return term.value


def _widened(op: Builder, mask: ir.Value, q: ir.Value, rows: Dim) -> ir.Value:
    """The mask with a row for every query: implementations of Attention do not broadcast there.

    It stands right after the mask, so that every layer that needs the same one finds it.
    """
    if isinstance(rows, int):
        for use in mask.uses():
            shape = use.node.inputs[1] if use.node.op_type == "Expand" else None
            if shape is None or not shape.is_initializer() or use.node.graph is not op.at.graph:
                continue
            if constant_value(shape) is not None and array_of(shape).tolist() == [1, 1, rows, 1]:
                place_after(use.node, mask)
                return use.node.outputs[0]
        wide = op.Expand(mask, op.constant(np.array([1, 1, rows, 1]), "mask_shape"))
        node = wide.producer()
        assert node is not None
        if constant_value(mask) is None:
            place_after(node, mask)
        return wide
    one = op.constant(np.array([1]), "one")
    target = op.Concat(one, one, op.Shape(q, start=2, end=3), one, axis=0)
    return op.Expand(mask, target)
