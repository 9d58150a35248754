"""Attention and rotary position embedding as polynomials."""

from __future__ import annotations

import math
from fractions import Fraction

from graphopt.analyses.shapes.symbolic import Dim
from graphopt.proving.conditions import guarded
from graphopt.proving.meaning import Index, Meaning, Operator
from graphopt.proving.polynomials import Poly, Unprovable
from graphopt.proving.reductions import softmax
from graphopt.proving.terms import Term

__all__ = ["ATTENTION"]


def _attention(m: Meaning, t: Term, ix: Index) -> Poly:
    """softmax(q k' scale + mask) v (arXiv:1706.03762), heads packed or not, keys shared or not"""
    q, k, v = t.args[:3]
    if len(t.args) > 4 or t.output:
        raise Unprovable("attention with a past or further outputs")
    if m.attribute(t, "softcap", 0.0) and m.argument(t, 3) is not None:
        raise Unprovable("attention with a cap and a mask")
    packed = len(m.dims(q)) == 3
    heads = m.attribute(t, "q_num_heads") if packed else m.dims(q)[1]
    shared = m.attribute(t, "kv_num_heads") if packed else m.dims(k)[1]
    return _attended(m, t, ix, (q, k, v), m.argument(t, 3), heads, shared)


def _multi_head(m: Meaning, t: Term, ix: Index) -> Poly:
    """com.microsoft's MultiHeadAttention on packed operands with an additive bias."""
    q, k, v, *others = t.args
    if any(o is not None for j, o in enumerate(others) if j != 2) or t.output:
        raise Unprovable("attention with a past, a bias of its projections or a padding mask")
    if m.attribute(t, "unidirectional", 0) or k is None:
        raise Unprovable("causal attention")
    heads = m.attribute(t, "num_heads")
    return _attended(m, t, ix, (q, k, v), m.argument(t, 5), heads, heads)


def _attended(
    m: Meaning,
    t: Term,
    ix: Index,
    operands: tuple[Term | None, Term | None, Term | None],
    mask: Term | None,
    heads: Dim,
    shared: Dim,
) -> Poly:
    a = m.algebra
    q, k, v = operands
    packed = len(m.dims(q)) == 3
    widths = []
    for x, n in ((q, heads), (v, shared)):
        width = m.dims(x)[-1]
        if packed:
            if not isinstance(width, int) or not isinstance(n, int):
                raise Unprovable("heads of unknown width")
            width //= n
        widths.append(width)
    width, out = widths
    keys = m.dims(k)[-2]
    if m.dims(v)[-2] != keys:
        m.held.add((m.dims(v)[-2], keys))
    if packed:
        b, i, last = ix
        h, j = a.ranges.divide(last, out), a.ranges.modulo(last, out)
    else:
        b, h, i, j = ix
    if heads == shared or shared == 1:
        own = h if heads == shared else 0
    elif isinstance(heads, int) and isinstance(shared, int):
        own = a.ranges.divide(h, heads // shared)
    else:
        raise Unprovable("an unknown number of heads")

    def at(x: Term | None, head: Dim, row: Dim, column: Dim, size: Dim) -> Poly:
        if len(m.dims(x)) == 3:
            return m.at(x, (b, row, head * size + column))
        return m.at(x, (b, head, row, column))

    scale = m.attribute(t, "scale")
    if not scale:
        if not isinstance(width, int):
            raise Unprovable("heads of unknown width")
        scale = 1 / math.sqrt(width)

    cap = m.attribute(t, "softcap", 0.0)
    causal = bool(m.attribute(t, "is_causal", 0))
    if causal and m.dims(q)[-2] != keys:
        raise Unprovable("causal attention to another length")

    def score(s: Dim) -> Poly:
        (d,) = m.fresh([width])
        product = a.mul(at(q, h, i, d, width), at(k, own, s, d, width))
        made = a.scale(a.sum(product, [d]), Fraction(scale))
        if cap:
            made = a.scale(a.function("tanh", a.scale(made, 1 / Fraction(cap))), Fraction(cap))
        if mask is None:
            return made
        dims = (m.dims(t)[0], heads, m.dims(q)[-2], keys)
        said = m.broadcast(mask, (b, h, i, s), dims)
        if not m.real(mask):
            said = a.function("where", said, (), a.scale(a.function("inf"), -1))
        return a.add(made, said)

    def seen(s: Dim) -> Poly:
        return a.inside(i - s, keys) if causal else a.number(1)

    (s,) = m.fresh([keys])
    weight = softmax(m, score, s, keys, seen)
    if mask is not None and t.op == "Attention":
        weight = guarded(m, weight)
    return a.sum(a.mul(weight, at(v, own, s, j, out)), [s])


def _rotary(m: Meaning, t: Term, ix: Index) -> Poly:
    """(x1 cos - x2 sin, x2 cos + x1 sin, x3) for x1, x2 halves or pairs (arXiv:2104.09864)"""
    a = m.algebra
    x, cos, sin = t.args[:3]
    positions = m.argument(t, 3)
    dims = m.dims(x)
    if positions is None and any(len(m.dims(table)) != 3 for table in (cos, sin)):
        raise Unprovable("tables without positions that are not one for each row")
    heads = m.attribute(t, "num_heads", 0)
    if len(dims) == 3:
        width = dims[-1]
        if not isinstance(width, int) or not heads:
            raise Unprovable("heads of unknown width")
        size: Dim = width // heads
        b, row, last = ix
        h, j = a.ranges.divide(last, size), a.ranges.modulo(last, size)
    else:
        size = dims[-1]
        b, h, row, j = ix
    if not isinstance(size, int):
        raise Unprovable("heads of unknown width")
    turned = m.attribute(t, "rotary_embedding_dim", 0) or size
    half = turned // 2

    def part(column: Dim) -> Poly:
        if len(dims) == 3:
            return m.at(x, (b, row, h * size + column))
        return m.at(x, (b, h, row, column))

    def angle(table: Term | None, column: Dim) -> Poly:
        if positions is not None:
            return m.gathered(
                table, 0, (), positions, (0 if m.dims(positions)[0] == 1 else b, row), (column,)
            )
        return m.broadcast(table, (b, row, column), (dims[0], m.dims(x)[-2], half))

    if m.attribute(t, "interleaved", 0):
        k, parity = a.ranges.divide(j, 2), a.ranges.modulo(j, 2)
        first, second = a.inside(parity, 1), a.inside(parity - 1, 1)
        places, others = (k, k), (j + 1, j - 1)
    else:
        first, second = a.inside(j, half), a.inside(j - half, half)
        places, others = (j, j - half), (j + half, j - half)
    low, high = (
        a.add(
            a.mul(part(j), angle(cos, place)),
            a.scale(a.mul(part(other), angle(sin, place)), sign),
        )
        for place, other, sign in zip(places, others, (-1, 1), strict=True)
    )
    made = a.add(a.mul(first, low), a.mul(second, high))
    if turned == size:
        return made
    rest = a.mul(a.inside(j - turned, size - turned), part(j))
    return a.add(a.mul(a.inside(j, turned), made), rest)


ATTENTION: dict[str, Operator] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "com.microsoft:MultiHeadAttention": _multi_head,
}
