"""Attention fusion: scaled dot products written out become Attention or MultiHeadAttention.

    softmax(s Q K^T + mask) V        Q: [b, h, s, d]  K: [b, h, t, d]  V: [b, h, t, e]

Nothing is matched by exporter: from the last product the rule walks up to the softmax and the first
product (see `scores`). Layouts are left to `ShortenViews`; shared and packed heads to `heads`,
rotation to `rotary`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.attention.masks import HUGE, Mask, Term, mask_operand, only_masks
from graphopt.passes.fuse.attention.scores import (
    Scores,
    find_scores,
    find_softmax,
    heads_of,
    unscaled,
)
from graphopt.passes.fuse.availability import has, reachable, standard
from graphopt.passes.fuse.layout.views import reshape_target
from graphopt.passes.fuse.weights import FLOATS

from graphopt import Context, Refused, Replacement, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_value, number
from graphopt.rewriting.rules import Found

__all__ = ["ScaledDotProduct"]

Shape = tuple[Dim, ...]
#: The opset of the operators a mask is written with: Shape of some axes, Unsqueeze by an input.
MASKED = 15


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which operator, and the mask it gets.

    Attributes:
        operator: Attention or MultiHeadAttention.
        dims: [b, h, s, d], [b, h, t, d] and [b, h, t, e]; key and value may share one head.
        merged: which of the operands come as [b h, s, d], and whether the result goes so.
        terms: what makes the mask, each with its shape.
        soften: constants equal to the lowest float become the one above it.
        direct: the one condition is the mask as it is.
        causal: the mask is that of a causal model.
        widen: the mask has one row for all queries.
    """

    operator: str
    dims: tuple[Shape, Shape, Shape]
    merged: tuple[bool, bool, bool]
    terms: tuple[tuple[Term, Shape], ...] = ()
    soften: bool = False
    direct: bool = False
    causal: bool = False
    widen: bool = False


class ScaledDotProduct(Walker):
    """softmax(cap(s Q K^T) + mask) V -> Attention(Q, K, V, mask, scale=s, softcap=c)

    with the row of a fully masked query kept as it was (see `masks`), or a refusal.
    """

    roots = ("MatMul",)

    def find(self, node: ir.Node, ctx: Context) -> Found:
        facts = ctx.get(shapes)
        p, v = node.inputs
        if p is None or v is None:
            return None
        found, guarded = find_softmax(p, node, facts)
        if found is None:
            return None
        softmax = found[-1]
        rank = facts.rank(softmax.outputs[0])
        if rank is None or attribute(softmax, "axis") not in (-1, rank - 1):
            return None
        scores = find_scores(softmax, facts)
        if scores.product is None:
            return Refused(scores.reason)
        q, k = scores.product.inputs[0], scores.product.inputs[1]
        dtype = None if q is None else facts.dtype(q)
        if q is None or k is None or dtype not in FLOATS[:3]:
            return None
        sizes = _sizes(scores, (q, k, v), facts)
        if isinstance(sizes, Refused):
            return sizes
        plan = _plan(ctx, facts, scores, guarded, sizes)
        if isinstance(plan, Refused):
            return plan
        if plan.operator == "Attention" and not standard(ctx, "Attention", 23):
            return None
        if plan.terms and not standard(ctx, "Shape", MASKED):
            return None
        q, sq, more_q = unscaled(q)
        k, sk, more_k = unscaled(k)
        scale = scores.scale * (scores.cap or 1.0) * sq * sk
        out = facts.shape(node.outputs[0]) or ()
        build = partial(_write, plan, (q, k, v), scores, scale, out, dtype)
        return Replacement(build, (*found, *scores.nodes, scores.product, *more_q, *more_k))


def _write(
    plan: _Plan,
    operands: tuple[ir.Value, ir.Value, ir.Value],
    scores: Scores,
    scale: float,
    out: Shape,
    dtype: ir.DataType,
    op: Builder,
) -> ir.Value:
    """The fused operator; the key is transposed back, merged heads are parted."""
    (b, h, s, d), (_, _, t, _), (_, _, _, e) = plan.dims
    given = ((b, h, s, d), (b, h, d, t), (b, h, t, e))
    q, k, v = (
        _reshaped(op, x, dims, (b * h, *dims[2:])) if merged else x
        for x, dims, merged in zip(operands, given, plan.merged, strict=True)
    )
    for factor in scores.by_head:
        q = op.Mul(q, factor)
    k = op.Transpose(k, perm=[0, 1, 3, 2])
    mask = mask_operand(
        op,
        plan.terms,
        q,
        (b, h, s, t),
        dtype=dtype,
        softly=plan.soften,
        widen=plan.widen,
        direct=plan.direct,
    )
    if plan.operator == "Attention":
        result = op.Attention(
            q,
            k,
            v,
            *([mask] if mask is not None else []),
            scale=scale,
            softcap=scores.cap or None,
            is_causal=1 if plan.causal else None,
        )
    else:
        rank = 4 if plan.widen or any(t.merged for t, _ in plan.terms) else 0
        rank = rank or max((len(dims) for _, dims in plan.terms), default=4)
        result = _multi_head(op, (q, k, v), mask, rank, scale, h)
    return _reshaped(op, result, out, (b, h, s, e)) if len(out) == 3 else result


def _sizes(
    scores: Scores, operands: tuple[ir.Value, ir.Value, ir.Value], facts: Shapes
) -> tuple[tuple[Shape, Shape, Shape], tuple[bool, bool, bool]] | Refused:
    """[b, h, s, d], [b, h, t, d], [b, h, t, e] and which operands have b and h merged."""
    given = [facts.shape(x) for x in operands]
    heads = scores.heads
    for x in operands:
        heads = heads or heads_of(x, facts)
    dims: list[Shape] = []
    for d in given:
        if d is None or len(d) not in (3, 4):
            return Refused("an operand does not have the axes batch, head, position and channel")
        if len(d) == 3:
            b, h = heads or (d[0], 1)
            if d[0] != b * h:
                return Refused("an operand's first axis is not batch and heads")
            d = (b, h, *d[1:])
        dims.append(d)
    q, kt, v = dims
    shared = kt[1] == 1 and all(d is not None and len(d) == 4 for d in given)
    if q[0] != kt[0] or kt[:2] != v[:2] or (q[1] != kt[1] and not shared):
        return Refused("query, key and value differ in batch or heads")
    if q[3] != kt[2] or kt[3] != v[2]:
        return Refused("the lengths of query, key and value are not known to agree")
    merged = tuple(d is not None and len(d) == 3 for d in given)
    for d, was in zip(dims, merged, strict=True):
        if was and reshape_target(d, (d[0] * d[1], *d[2:])) is None:
            return Refused("the sizes that part batch and heads are not known")
    return (q, (*kt[:2], kt[3], kt[2]), v), (merged[0], merged[1], merged[2])


def _plan(
    ctx: Context,
    facts: Shapes,
    scores: Scores,
    guarded: bool,
    sizes: tuple[tuple[Shape, Shape, Shape], tuple[bool, bool, bool]],
) -> _Plan | Refused:
    """The operator to write and its mask, or the reason for none."""
    q, k, _ = sizes[0]
    grid = (*q[:3], k[2])
    exact = reachable(ctx, "Attention", 23)
    contrib = has(ctx, "com.microsoft:MultiHeadAttention")
    contrib = contrib and isinstance(q[1], int) and q[1] == k[1] and not scores.cap
    if not (exact or contrib):
        return Refused("the target has no fused attention at this opset")
    wide = [_wide(t, facts, grid) for t in scores.terms]
    if any(w is None or any(x not in (1, y) for x, y in zip(w, grid, strict=True)) for w in wide):
        return Refused("the mask does not broadcast to batch, heads and positions")
    if wide and not any(w is not None and w[3] == grid[3] for w in wide):
        return Refused("the mask does not give every key a value")
    rows = bool(wide) and grid[2] != 1 and all(w is not None and w[2] == 1 for w in wide)
    shaped = tuple((t, facts.shape(t.tensor) or ()) for t in scores.terms)
    base = _Plan("Attention", *sizes, terms=shaped, widen=rows)
    dtype = facts.dtype(scores.nodes[-1].outputs[0]) if scores.terms else ir.DataType.FLOAT
    judged = [t.judge(facts, dtype or ir.DataType.FLOAT) for t in scores.terms]
    if exact:
        plan = _standard_plan(base, judged, guarded, facts, grid)
        if not isinstance(plan, Refused) or not contrib:
            return plan
    if guarded and not all(j.known and not j.neg_inf for j in judged):
        return Refused("MultiHeadAttention makes a fully masked row NaN, the guard made it 0")
    return dataclasses.replace(base, operator="MultiHeadAttention")


def _wide(term: Term, facts: Shapes, grid: Shape) -> Shape | None:
    """The shape of a mask with four axes."""
    dims = facts.shape(term.tensor)
    if dims is None or len(dims) > (3 if term.merged else 4):
        return None
    if term.merged and len(dims) == 3 and dims[0] != 1:
        parted = (*grid[:2], *dims[1:])
        unknown = sum(not isinstance(d, int) for d in parted)  # one Reshape can find one of them
        return parted if dims[0] == grid[0] * grid[1] and unknown < 2 else None
    return (1,) * (4 - len(dims)) + dims


def _standard_plan(
    base: _Plan, judged: list[Mask], guarded: bool, facts: Shapes, grid: Shape
) -> _Plan | Refused:
    if not all(j.known for j in judged):
        return Refused("the mask may hold anything: a fully masked row is 0 in Attention")
    if sum(bool(j.neg_inf or j.lowest) for j in judged) > 1:
        return Refused("the sum of two masks may hold -Inf")
    neg_inf = any(j.neg_inf for j in judged)
    if neg_inf and not guarded:
        return Refused("a fully masked row is NaN here and 0 in Attention")
    lowest = any(j.lowest_rows for j in judged)
    if neg_inf and lowest:
        return Refused("masked positions hold both -Inf and the lowest float")
    values = [t.value for t, _ in base.terms if t.value is not None]
    if lowest and not all(constant_value(m) is not None or only_masks(m) for m in values):
        return Refused("the mask is read elsewhere too")
    plan = dataclasses.replace(base, soften=lowest)
    if len(base.terms) != 1:
        return plan
    ((term, _),) = base.terms
    full = _wide(term, facts, grid)
    if term.value is None:
        is_bool = term.keeps and neg_inf and not term.merged and full is not None
        return dataclasses.replace(plan, direct=is_bool)
    if constant_value(term.value) is not None:
        a = array_of(term.value)
        if _is_causal(a, grid):
            return dataclasses.replace(base, terms=(), causal=True, widen=False)
        return plan if a.any() else dataclasses.replace(base, terms=(), widen=False)
    node = term.value.producer()
    if not neg_inf or node is None or node.op_type != "Where" or term.merged:
        return plan
    allowed, zero, fill = node.inputs
    if number(zero) != 0.0 or number(fill) != -np.inf or allowed is None:
        return plan
    if facts.shape(allowed) != facts.shape(term.value):
        return plan
    condition = (Term(None, allowed, -np.inf), facts.shape(allowed) or ())
    return dataclasses.replace(plan, terms=(condition,), direct=True)


def _is_causal(a: Any, grid: Shape) -> bool:
    """Whether the mask lets position i see positions 0 to i and no other."""
    s, t = (1, *a.shape)[-2:]
    if s != t or s == 1 or (s, t) != grid[2:]:
        return False
    seen = np.tril(np.ones((s, t), bool))
    return bool((a[..., seen] == 0).all() and (a[..., ~seen] <= max(HUGE, -6e4)).all())


def _reshaped(op: Builder, x: ir.Value, dims: Shape, source: Shape) -> ir.Value:
    target = reshape_target(dims, source)
    assert target is not None
    return op.Reshape(x, op.constant(np.array(target, np.int64), "shape"))


def _multi_head(
    op: Builder,
    operands: tuple[ir.Value, ir.Value, ir.Value],
    mask: ir.Value | None,
    rank: int,
    scale: float,
    heads: Dim,
) -> ir.Value:
    """MultiHeadAttention: operands and result are [b, s, h d], the mask has four axes."""
    packed = []
    for x in operands:
        turned = op.Transpose(x, perm=[0, 2, 1, 3])
        packed.append(op.Reshape(turned, op.constant(np.array([0, 0, -1]), "shape")))
    tail: list[ir.Value | None] = []
    if mask is not None:
        if rank < 4:
            mask = op.Unsqueeze(mask, op.constant(np.arange(4 - rank), "axes"))
        tail = [None, None, mask]
    out = op.MultiHeadAttention(
        *packed, *tail, num_heads=heads, scale=scale, domain_="com.microsoft"
    )
    apart = op.Reshape(out, op.constant(np.array([0, 0, heads, -1]), "shape"))
    return op.Transpose(apart, perm=[0, 2, 1, 3])
