"""Fused attention: heads n, head size h of queries and keys, head size v of values.

The default scale 1/sqrt(h) is an implicit size: it is written out when h changes.
"""

from __future__ import annotations

import math

import numpy as np

from graphopt.analyses.dims.axes import Tensor
from graphopt.analyses.dims.operation import Operation, Unsupported
from graphopt.analyses.dims.system import ONE

__all__ = ["OPERATORS"]

KERNEL = "a fused attention kernel fixes it"


def number(size: object, what: str) -> int:
    """A size that must be known."""
    if not isinstance(size, int):
        raise Unsupported(f"the {what} is not known")
    return size


def share(width: object, heads: int) -> int:
    """The size of each of so many heads."""
    total = number(width, "width")
    if total % heads or not total:
        raise Unsupported(f"{heads} heads do not divide a width of {total}")
    return total // heads


def pin_scale(op: Operation, h: int, size: int) -> None:
    """1 / sqrt(head size), unless the node states another scale (0 is not stated)."""
    if not op.attribute("scale", 0.0):
        op.pin("scale", 1.0 / math.sqrt(size), h)


def heads_of(op: Operation, t: Tensor, n: int, h: int) -> None:
    """(batch, steps, n*h) or (batch, n, steps, h)."""
    if t.rank == 3:
        op.merge(t[2], (n, h))
    else:
        op.same(t[1], n)
        op.same(t[3], h)


def mask(op: Operation, index: int, n: int) -> None:
    """A bias on scores, (batch, n, steps, steps) with broadcasting from the right."""
    if op.has(index) and op.x(index).rank == 4 and op.x(index)[1] != ONE:
        op.same(op.x(index)[1], n)


def multi_head(op: Operation) -> None:
    """com.microsoft MultiHeadAttention: queries, keys, values already projected."""
    q, y = op.x(0), op.y()
    heads = int(op.attribute("num_heads"))
    n = op.virtual(heads)
    op.count(n, attribute="num_heads")
    if q.rank == 5:
        size = number(q.sizes[4], "head size")
        h = v = op.virtual(size)
        op.same(q[2], n)
        op.same(q[4], h)
        op.freeze(q[3], "queries, keys and values")
    else:
        if not op.has(1) or op.x(1).rank == 5 or not op.has(2):
            raise Unsupported("packed keys and values")
        size = share(q.sizes[2], heads)
        h = op.virtual(size)
        v = op.virtual(share(y.sizes[2], heads))
        heads_of(op, q, n, h)
        heads_of(op, op.x(1), n, h)
        heads_of(op, op.x(2), n, v)
        op.reads(q, 2, via=h)
        op.reads(op.x(1), -1, via=h)
        if op.has(3):
            bias, width = op.x(3), size * heads
            parts = (n, h), (n, h), (n, v)
            start = 0
            for factors, each in zip(parts, (width, width, y.sizes[2]), strict=True):
                each = number(each, "width")
                whole = op.virtual(each)
                op.merge(whole, factors)
                op.part(whole, bias[0], np.arange(start, start + each))
                start += each
    op.merge(y[2], (n, v))
    mask(op, 5, n)
    for k, size_axis in ((6, h), (7, v)):
        if op.has(k):
            heads_of(op, op.x(k), n, size_axis)
    for k, size_axis in ((1, h), (2, v)):
        if op.made(k):
            heads_of(op, op.y(k), n, size_axis)
    op.same(q[0], y[0])
    op.same(q[1], y[1])
    op.means("heads", n)
    op.means("head size", h, v)
    pin_scale(op, h, size)


def packed(op: Operation) -> None:
    """com.microsoft Attention: x (b, s, d), weights (d, q + k + v), each n*h."""
    x, w, y = op.x(0), op.x(1), op.y()
    heads = int(op.attribute("num_heads"))
    n = op.virtual(heads)
    op.count(n, attribute="num_heads")
    total = number(w.sizes[1], "width of the projections")
    widths = [int(s) for s in op.attribute("qkv_hidden_sizes") or (total // 3,) * 3]
    stated = "qkv_hidden_sizes" in op.node.attributes
    size = share(widths[0], heads)
    h = op.virtual(size)
    v = op.virtual(share(widths[2], heads)) if stated else h
    start = 0
    for k, (width, factors) in enumerate(zip(widths, ((n, h), (n, h), (n, v)), strict=True)):
        whole = op.virtual(width)
        op.merge(whole, factors)
        op.part(whole, w[1], np.arange(start, start + width))
        op.count(whole, attribute="qkv_hidden_sizes", element=k)
        start += width
    op.same(x[2], w[0])
    op.reads(x, 2)
    op.reads(w, 0)
    op.writes(w, 1)
    op.merge(y[2], (n, v))
    op.same(x[0], y[0])
    op.same(x[1], y[1])
    if op.has(2):
        op.same(op.x(2)[0], w[1])
        op.writes(op.x(2), 0)
    if op.has(4):
        op.freeze((n, h, v), "a packed past holds it")
    mask(op, 5, n)
    if op.attribute("do_rotary", 0):
        op.freeze(h, KERNEL)
    op.means("heads", n)
    op.means("head size", h, v)
    pin_scale(op, h, size)


def grouped_query(op: Operation) -> None:
    """com.microsoft GroupQueryAttention: n = g*r query heads share g key and value heads."""
    q, y = op.x(0), op.y()
    n, groups = int(op.attribute("num_heads")), int(op.attribute("kv_num_heads"))
    if not op.has(1):
        raise Unsupported("packed queries, keys and values")
    size = share(q.sizes[2], n)
    g, r, h = op.virtual(groups), op.virtual(n // groups), op.virtual(size, frozen=KERNEL)
    heads = op.virtual(n)
    op.merge(heads, (g, r))
    op.merge(q[2], (heads, h))
    op.merge(y[2], (heads, h))
    for k in (1, 2):
        heads_of(op, op.x(k), g, h)
    for k in (3, 4):
        if op.has(k):
            heads_of(op, op.x(k), g, h)
    for k in (1, 2):
        if op.made(k):
            heads_of(op, op.y(k), g, h)
    for k in (7, 8):
        if op.has(k):
            op.freeze(op.x(k), KERNEL)
    op.same(q[0], y[0])
    op.same(q[1], y[1])
    op.count(heads, attribute="num_heads")
    op.count(g, attribute="kv_num_heads")
    op.means("heads", heads, g, r)


def attention(op: Operation) -> None:
    """Attention of opset 23: (b, n, s, h) each, or (b, s, n*h) with numbers of heads given."""
    q, k, v, y = op.x(0), op.x(1), op.x(2), op.y()
    if q.rank == 3:
        n, groups = int(op.attribute("q_num_heads")), int(op.attribute("kv_num_heads"))
        size = share(q.sizes[2], n)
        size_v = share(v.sizes[2], groups)
    else:
        n, groups = number(q.sizes[1], "number of heads"), number(k.sizes[1], "number of heads")
        size, size_v = number(q.sizes[3], "head size"), number(v.sizes[3], "head size")
    g, r, heads = op.virtual(groups), op.virtual(n // groups), op.virtual(n)
    h, w = op.virtual(size), op.virtual(size_v)
    op.merge(heads, (g, r))
    heads_of(op, q, heads, h)
    heads_of(op, k, g, h)
    heads_of(op, v, g, w)
    heads_of(op, y, heads, w)
    op.reads(q, -1, via=h)
    op.reads(k, -1, via=h)
    mask(op, 3, heads)
    for x, axis in ((4, h), (5, w)):
        if op.has(x):
            heads_of(op, op.x(x), g, axis)
    for x, axis in ((1, h), (2, w)):
        if op.made(x):
            heads_of(op, op.y(x), g, axis)
    if op.made(3):
        op.same(op.y(3)[1], heads)
    op.same(q[0], y[0])
    steps = 1 if q.rank == 3 else 2
    op.same(q[steps], y[steps])
    op.count(heads, attribute="q_num_heads")
    op.count(g, attribute="kv_num_heads")
    op.means("heads", heads, g, r)
    op.means("head size", h, w)
    pin_scale(op, h, size)


def rotary(op: Operation) -> None:
    """Pairs of positions of a head are rotated: h = a + a (and b that is not), tables carry a."""
    microsoft = op.node.domain == "com.microsoft"
    x, y = op.x(0), op.y()
    tables = [op.x(k) for k in ((2, 3) if microsoft else (1, 2))]
    op.all_same(x, y)
    a = number(tables[0].sizes[-1], "rotary size")
    heads = int(op.attribute("num_heads", 0))
    width = number(x.sizes[-1], "width")
    if x.rank == 3:
        n = heads or width // (2 * a)
        size = width // n
        h, count = op.virtual(size), op.virtual(n)
        op.merge(x[2], (count, h))
        op.count(count, attribute="num_heads")
    else:
        h, size = x[3], width
        if heads:
            op.count(x[1], attribute="num_heads")
    op.same(tables[0][-1], tables[1][-1])
    pairs = np.arange(a)
    interleaved = int(op.attribute("interleaved", 0))
    first = 2 * pairs if interleaved else pairs
    second = first + 1 if interleaved else pairs + a
    op.part(tables[0][-1], h, first)
    op.part(tables[0][-1], h, second)
    if op.attribute("rotary_embedding_dim", 0):
        op.count(h, attribute="rotary_embedding_dim", stop=2 * a)
    elif size != 2 * a:
        op.freeze(h, KERNEL)
    op.means("head size", h)


def embed(op: Operation) -> None:
    """EmbedLayerNormalization: sums of looked-up rows, normalized over their width."""
    y = op.y()
    for k in (2, 3, 4):
        if op.has(k):
            op.same(op.x(k)[1], y[2])
            op.freeze(op.x(k)[0], "indices that depend on data point into it")
            op.writes(op.x(k), 1)
    for k in (5, 6):
        op.same(op.x(k)[0], y[2])
    op.writes(y, 2)
    if op.made(2):
        op.all_same(op.y(2), y)


OPERATORS = {
    "Attention": attention,
    "RotaryEmbedding": rotary,
    "com.microsoft:Attention": packed,
    "com.microsoft:EmbedLayerNormalization": embed,
    "com.microsoft:GroupQueryAttention": grouped_query,
    "com.microsoft:MultiHeadAttention": multi_head,
    "com.microsoft:RotaryEmbedding": rotary,
}
