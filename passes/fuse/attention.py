"""Scaled dot product attention written out becomes Attention (opset 23) or MultiHeadAttention.

    softmax(s Q K^T + mask) V        Q: [b, h, s, d]  K, V: [b, h, t, d]

Nothing is matched by exporter: from the last product the rule walks up to the softmax and the first
product, through guards, masks and scalar factors in whatever order they come. Layouts are left to
`ShortenViews`; heads, packing and rotation to the rules in `heads` and `rotary`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine import attribute
from graphopt.passes.fuse.masks import HUGE, Mask, judge, nudged, only_masks, soften
from graphopt.passes.fuse.operators import has, reachable, standard
from graphopt.passes.fuse.weights import FLOATS, array, number

from graphopt import Context, Rule
from graphopt.analyses.shapes import Shapes, shapes
from graphopt.analyses.symbolic import Dim
from graphopt.pattern import Match, constant_value

__all__ = ["ScaledDotProduct"]


@dataclasses.dataclass
class _Scores:
    """What the walk from the softmax up to the first product found."""

    nodes: list[ir.Node]
    scale: float = 1.0
    masks: list[ir.Value] = dataclasses.field(default_factory=list)
    product: ir.Node | None = None
    reason: str = ""


class ScaledDotProduct(Rule):
    """softmax(s Q K^T + mask) V -> Attention(Q, K, V, mask, scale=s)

    with the row of a fully masked query kept as it was (see `masks`), or a refusal.
    """

    def pattern(self, op: Any, p: Any, v: Any) -> Any:
        """The second product."""
        return op.MatMul(p, v)

    def check(self, p: ir.Value, v: ir.Value, match: Match, ctx: Context) -> Any:
        """Find the parts; judge the mask."""
        root = match.root
        found, guarded = _softmax(p, root)
        if found is None:
            return False
        softmax = found[-1]
        facts = ctx.get(shapes)
        rank = facts.rank(softmax.outputs[0])
        if rank is None or attribute(softmax, "axis") not in (-1, rank - 1):
            return False
        scores = _scores(softmax)
        if scores.product is None:
            return scores.reason or "no product of a query and a key leads to the softmax"
        q, k = scores.product.inputs[0], scores.product.inputs[1]
        if q is None or k is None or facts.dtype(q) not in FLOATS:
            return False
        dims = [facts.shape(x) for x in (q, k, v)]
        problem = _sizes(dims)
        if problem:
            return problem
        q, sq, more_q = _unscaled(q)
        k, sk, more_k = _unscaled(k)
        plan = _plan(ctx, facts, scores, guarded, dims)
        if isinstance(plan, (str, bool)):
            return plan
        if plan.operator == "Attention" and not standard(ctx, "Attention", 23):
            return False
        return {
            "nodes": [*found, *scores.nodes, scores.product, *more_q, *more_k],
            "q": q,
            "k": k,
            "v": v,
            "scale": scores.scale * sq * sk,
            "plan": plan,
        }

    def rewrite(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, scale: float, plan: _Plan
    ) -> ir.Value:
        """The fused operator; the key is transposed back."""
        key = op.Transpose(k, perm=[0, 1, 3, 2])
        mask: ir.Value | None = None
        for one in plan.masks:
            term = one
            if constant_value(one) is not None and plan.soften:
                term = op.constant(nudged(array(one)), one.name)
            elif plan.soften:
                soften(one, op)
            mask = term if mask is None else op.Add(mask, term)
        if mask is not None and plan.widen:
            mask = _widened(op, mask, q, plan.dims[0][2])
        if plan.operator == "Attention":
            out: ir.Value = op.Attention(
                q,
                key,
                v,
                *([mask] if mask is not None else []),
                scale=scale,
                is_causal=1 if plan.causal else None,
            )
            return out
        return _multi_head(op, q, key, v, mask, scale, plan)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which operator, and the mask it gets."""

    operator: str
    heads: int
    dims: tuple[tuple[Dim, ...], ...]
    masks: tuple[ir.Value, ...] = ()
    soften: bool = False
    causal: bool = False
    widen: bool = False
    flat_mask: int = 0


def _softmax(p: ir.Value, root: ir.Node) -> tuple[list[ir.Node] | None, bool]:
    """The nodes from `p` up to the softmax, and whether a guard turns NaN rows into zeros."""
    node = p.producer()
    if node is None or node.graph is not root.graph:
        return None, False
    if node.op_type == "Softmax":
        return [node], False
    if node.op_type == "Where" and number(node.inputs[1]) == 0.0 and node.inputs[2] is not None:
        test, inner = node.inputs[0], node.inputs[2].producer()
        nan = test.producer() if test is not None else None
        if nan is None or nan.op_type != "IsNaN" or nan.inputs[0] is not node.inputs[2]:
            return None, False
        if inner is not None and inner.op_type == "Softmax":
            return [node, nan, inner], True
    return None, False


def _scores(softmax: ir.Node) -> _Scores:
    """Walk from the softmax up to the product of query and key."""
    found = _Scores([])
    value = softmax.inputs[0]
    while value is not None:
        node = value.producer()
        if node is None or node.graph is not softmax.graph:
            return found
        if node.op_type == "MatMul":
            if any(constant_value(v) is not None for v in node.inputs):
                return found
            found.product = node
            return found
        found.nodes.append(node)
        a, b = [*node.inputs, None][:2]
        if node.op_type in ("Mul", "Div"):
            s, other = number(b), a
            if s is None and node.op_type == "Mul":
                s, other = number(a), b
            if s is None or s == 0.0:
                return found
            found.scale *= s if node.op_type == "Mul" else 1.0 / s
            value = other
        elif node.op_type == "Add" and a is not None and b is not None:
            if _leads_to_product(a) and not (constant_value(b) is None and _leads_to_product(b)):
                value, mask = a, b
            elif _leads_to_product(b):
                value, mask = b, a
            else:
                return found
            if found.scale != 1.0:
                # s (x + m): the mask would have to be scaled too
                found.reason = "the mask is scaled after it is added"
                return found
            found.masks.append(mask)
        else:
            return found
    return found


def _leads_to_product(value: ir.Value, depth: int = 6) -> bool:
    """Whether scores come from here: scalars and masks away from a product of two variables."""
    node = value.producer()
    if node is None or depth == 0 or len(value.uses()) != 1:
        return False
    if node.op_type == "MatMul":
        return all(constant_value(v) is None for v in node.inputs)
    if node.op_type in ("Mul", "Div", "Add"):
        return any(
            v is not None and constant_value(v) is None and _leads_to_product(v, depth - 1)
            for v in node.inputs
        )
    return False


def _sizes(dims: list[tuple[Dim, ...] | None]) -> str:
    """Why these are not [b, h, s, d], [b, h, d, t] and [b, h, t, e]; empty if they are."""
    if any(d is None for d in dims):
        return "the rank of an operand is not known"
    q, k, v = (d for d in dims if d is not None)
    if not len(q) == len(k) == len(v) == 4:
        return "an operand does not have the axes batch, head, position and channel"
    if q[:2] != k[:2] or q[:2] != v[:2]:
        return "query, key and value differ in batch or heads"
    if q[3] != k[2] or k[3] != v[2]:
        return "the lengths of query, key and value are not known to agree"
    return ""


def _unscaled(value: ir.Value) -> tuple[ir.Value, float, list[ir.Node]]:
    """The value without a scalar factor that only this use sees."""
    scale, nodes = 1.0, []
    while len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.op_type not in ("Mul", "Div"):
            break
        a, b = node.inputs[0], node.inputs[1]
        s, other = number(b), a
        if s is None and node.op_type == "Mul":
            s, other = number(a), b
        if s is None or s == 0.0 or other is None:
            break
        scale *= s if node.op_type == "Mul" else 1.0 / s
        nodes.append(node)
        value = other
    return value, scale, nodes


def _plan(
    ctx: Context,
    facts: Shapes,
    scores: _Scores,
    guarded: bool,
    dims: list[tuple[Dim, ...] | None],
) -> _Plan | str | bool:
    """The operator to write and its mask, or the reason for none."""
    q, k, v = (d for d in dims if d is not None)
    heads = q[1] if isinstance(q[1], int) else 0
    grid = (*q[:3], k[3])
    base = _Plan("Attention", heads, (q, (*k[:2], k[3], k[2]), v))
    exact = reachable(ctx, "Attention", 23)
    contrib = has(ctx, "com.microsoft:MultiHeadAttention") and heads > 0
    if not (exact or contrib):
        return "the target has no fused attention at this opset"
    for mask in scores.masks:
        m = facts.shape(mask)
        wide = (1,) * (4 - len(m)) + m if m is not None and len(m) <= 4 else None
        if wide is None or any(x not in (1, y) for x, y in zip(wide, grid, strict=True)):
            return "the mask does not broadcast to batch, heads and positions"
        if m is None or len(m) < 2 or m[-1] != grid[3]:
            return "the mask does not give every key a value"
    rows = [d[-2] for d in (facts.shape(m) for m in scores.masks) if d is not None]
    if all(r == 1 and r != grid[2] for r in rows):
        base = dataclasses.replace(base, widen=True)
    if not scores.masks:
        return base if exact else dataclasses.replace(base, operator="MultiHeadAttention")
    judged = [judge(m, facts) for m in scores.masks]
    if exact:
        plan = _standard_plan(base, scores, judged, guarded, facts)
        if not isinstance(plan, str) or not contrib:
            return plan
    if guarded and not all(j.known and not j.neg_inf for j in judged):
        return "MultiHeadAttention makes a fully masked row NaN, the guard made it 0"
    masks = tuple(scores.masks)
    rank = max(facts.rank(m) or 4 for m in masks)
    return dataclasses.replace(
        base,
        operator="MultiHeadAttention",
        masks=masks,
        flat_mask=0 if rank == 4 or base.widen else rank,
    )


def _standard_plan(
    base: _Plan, scores: _Scores, judged: list[Mask], guarded: bool, facts: Shapes
) -> _Plan | str:
    values = tuple(scores.masks)
    if not all(j.known for j in judged):
        return "the mask may hold anything: a fully masked row is 0 in Attention"
    if len(judged) > 1 and sum(bool(j.neg_inf or j.lowest) for j in judged) > 1:
        return "the sum of two masks may hold -Inf"
    neg_inf = any(j.neg_inf for j in judged)
    if neg_inf and not guarded:
        return "a fully masked row is NaN here and 0 in Attention"
    lowest = any(j.lowest_rows for j in judged)
    if neg_inf and lowest:
        return "masked positions hold both -Inf and the lowest float"
    if lowest and not all(constant_value(m) is not None or only_masks(m) for m in values):
        return "the mask is read elsewhere too"
    plan = dataclasses.replace(base, masks=values, soften=lowest)
    if len(values) > 1:
        return plan
    (value,) = values
    if constant_value(value) is not None:
        a = array(value)
        if _is_causal(a, base):
            return dataclasses.replace(base, causal=True)
        return plan if a.any() else base
    node = value.producer()
    if not neg_inf or node is None or node.op_type != "Where":
        return plan
    allowed, zero, fill = node.inputs
    if number(zero) != 0.0 or number(fill) != -np.inf or allowed is None:
        return plan
    if facts.shape(allowed) != facts.shape(value):
        return plan
    return dataclasses.replace(base, masks=(allowed,))


def _is_causal(a: Any, base: _Plan) -> bool:
    """Whether the mask lets position i see positions 0 to i and no other."""
    s, t = a.shape[-2:]
    if s != t or s == 1 or base.dims[0][2] != base.dims[1][2]:
        return False
    seen = np.tril(np.ones((s, t), bool))
    return bool((a[..., seen] == 0).all() and (a[..., ~seen] <= max(HUGE, -6e4)).all())


def _widened(op: Any, mask: ir.Value, q: ir.Value, rows: Dim) -> ir.Value:
    """The mask with a row for every query: implementations of Attention do not broadcast there.

    It stands right after the mask, so that every layer that needs the same one finds it.
    """
    if isinstance(rows, int):
        for use in mask.uses():
            shape = use.node.inputs[1] if use.node.op_type == "Expand" else None
            if constant_value(shape) is not None and array(shape).tolist() == [1, 1, rows, 1]:
                return use.node.outputs[0]
        wide: ir.Value = op.Expand(mask, op.constant(np.array([1, 1, rows, 1]), "mask_shape"))
        node, producer = wide.producer(), mask.producer()
        assert node is not None
        graph = node.graph
        if producer is not None and producer.graph is graph and isinstance(graph, ir.Graph):
            graph.remove(node)
            graph.insert_after(producer, node)
        return wide
    one = op.constant(np.array([1]), "one")
    target = op.Concat(one, one, op.Shape(q, start=2, end=3), one, axis=0)
    out: ir.Value = op.Expand(mask, target)
    return out


def _multi_head(
    op: Any,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    mask: ir.Value | None,
    scale: float,
    plan: _Plan,
) -> ir.Value:
    """MultiHeadAttention, whose query and result are [b, s, h d]."""
    if mask is not None and plan.flat_mask:
        mask = op.Unsqueeze(mask, op.constant(np.arange(4 - plan.flat_mask), "axes"))
    packed = [_packed(op, x, d) for x, d in zip((q, k, v), plan.dims, strict=True)]
    tail = [None, None, mask] if mask is not None else []
    out = op.MultiHeadAttention(
        *packed, *tail, num_heads=plan.heads, scale=scale, domain_="com.microsoft"
    )
    apart = op.Reshape(out, op.constant(np.array([0, 0, plan.heads, -1]), "shape"))
    result: ir.Value = op.Transpose(apart, perm=[0, 2, 1, 3])
    return result


def _packed(op: Any, x: ir.Value, dims: tuple[Dim, ...]) -> ir.Value:
    """[b, h, s, d] -> [b, s, h d]"""
    turned = op.Transpose(x, perm=[0, 2, 1, 3])
    packed: ir.Value = op.Reshape(turned, op.constant(np.array([0, 0, -1]), "shape"))
    return packed
