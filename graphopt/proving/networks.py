"""Products, convolutions, normalizations and attention as polynomials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from graphopt.analyses.shapes.symbolic import Dim
from graphopt.proving.arithmetic import HALF, activated, clipped, guarded, mean, softmax
from graphopt.proving.meaning import Index, Meaning, Operator
from graphopt.proving.scalars import Poly, Unprovable
from graphopt.proving.terms import Term

__all__ = ["NETWORKS"]


# --- products --------------------------------------------------------------------------------


def _matmul(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[.., i, j] = sum_k a[.., i, k] b[.., k, j]"""
    a, b = t.args
    left, right = m.dims(a), m.dims(b)
    turned = [bool(m.attribute(t, f"trans{x}", 0)) for x in "AB"]
    if m.attribute(t, "transBatchA", 0) or m.attribute(t, "transBatchB", 0):
        raise Unprovable("a product with its batch axes inside")
    rows = len(left) > 1
    columns = len(right) > 1
    batch = ix[: len(ix) - rows - columns]
    tail = ix[len(batch) :]
    (k,) = m.fresh([left[-2] if turned[0] else left[-1]])
    one = ((k, tail[0]) if turned[0] else (tail[0], k)) if rows else (k,)
    two = ((tail[-1], k) if turned[1] else (k, tail[-1])) if columns else (k,)
    p = m.at(a, (*_batched(batch, left[: -1 - rows]), *one))
    q = m.at(b, (*_batched(batch, right[: -1 - columns]), *two))
    made = m.algebra.sum(m.algebra.mul(p, q), [k])
    return m.algebra.scale(made, Fraction(m.attribute(t, "alpha", 1.0)))


def _batched(batch: Index, own: Sequence[Dim]) -> Index:
    at = batch[len(batch) - len(own) :]
    return tuple(0 if d == 1 else i for i, d in zip(at, own, strict=True))


def _gemm(m: Meaning, t: Term, ix: Index) -> Poly:
    """y = alpha a' b' + beta c"""
    a = m.algebra
    left = m.dims(t.args[0])
    turned = [bool(m.attribute(t, f"trans{x}", 0)) for x in "AB"]
    i, j = ix
    (k,) = m.fresh([left[0] if turned[0] else left[1]])
    p = m.at(t.args[0], (k, i) if turned[0] else (i, k))
    q = m.at(t.args[1], (j, k) if turned[1] else (k, j))
    made = a.scale(a.sum(a.mul(p, q), [k]), Fraction(m.attribute(t, "alpha", 1.0)))
    if m.argument(t, 2) is not None:
        c = m.broadcast(t.args[2], ix, m.dims(t))
        made = a.add(made, a.scale(c, Fraction(m.attribute(t, "beta", 1.0))))
    if t.op.endswith("FusedGemm"):
        made = _fused(m, t, made)
    return made


def _fused(m: Meaning, t: Term, p: Poly) -> Poly:
    """The activation that a fused operator ends in."""
    name = m.attribute(t, "activation")
    if not name:
        return p
    given = t.attributes.get("activation_params", ())
    names = {"HardSigmoid": ("alpha", "beta"), "LeakyRelu": ("alpha",), "Elu": ("alpha",)}
    alone = {k: t.attributes.get(f"activation_{k}") for k in ("alpha", "beta", "gamma")}
    said = {**alone, **dict(zip(names.get(name, ()), given, strict=False))}
    if name == "Clip":
        low, high = (*given, None, None)[:2]
        return clipped(m, p, low, high)
    return activated(m, name, p, lambda k: said.get(k))


def _conv(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[n, o, u] = sum_(c, k) x[n, g c', s u + d k - p] w[o, c, k] + b[o], zeros outside x"""
    a = m.algebra
    x, w = t.args[0], t.args[1]
    dims, kernel = m.dims(x), m.dims(w)
    spatial = len(dims) - 2
    pads = _pads(m, t, dims, kernel)
    strides = m.attribute(t, "strides") or (1,) * spatial
    dilations = m.attribute(t, "dilations") or (1,) * spatial
    group = m.attribute(t, "group", 1)
    n, o, *u = ix
    c, *k = m.fresh(kernel[1:])
    inside = a.number(1)
    at: list[Dim] = []
    for axis in range(spatial):
        where = u[axis] * strides[axis] + k[axis] * dilations[axis] - pads[axis]
        if pads[axis] or pads[axis + spatial]:
            inside = a.mul(inside, a.inside(where, dims[axis + 2]))
        at.append(0 if dims[axis + 2] == 1 else where)
    channel: Dim = c
    if group != 1:
        count = kernel[0]
        if not isinstance(count, int):
            raise Unprovable("a grouped convolution of unknown width")
        channel = a.ranges.divide(o, count // group) * kernel[1] + c
    product = a.mul(a.mul(inside, m.at(x, (n, channel, *at))), m.at(w, (o, c, *k)))
    made = a.sum(product, [c, *k])
    if m.argument(t, 2) is not None:
        made = a.add(made, m.at(t.args[2], (o,)))
    if t.op.endswith("FusedConv"):
        if m.argument(t, 3) is not None:
            made = a.add(made, m.at(t.args[3], ix))
        made = _fused(m, t, made)
    return made


def _pads(m: Meaning, t: Term, dims: Sequence[Dim], kernel: Sequence[Dim]) -> Sequence[int]:
    spatial = len(dims) - 2
    auto = m.attribute(t, "auto_pad", "NOTSET")
    if auto in ("NOTSET", "", None):
        return m.attribute(t, "pads") or (0,) * (2 * spatial)
    if auto == "VALID":
        return (0,) * (2 * spatial)
    before, after = [], []
    strides = m.attribute(t, "strides") or (1,) * spatial
    dilations = m.attribute(t, "dilations") or (1,) * spatial
    for axis in range(spatial):
        size, k = dims[axis + 2], kernel[axis + 2]
        if not isinstance(size, int) or not isinstance(k, int):
            raise Unprovable("automatic padding of an unknown size")
        out = -(-size // strides[axis])
        total = max(0, (out - 1) * strides[axis] + (k - 1) * dilations[axis] + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return (*before, *after)


def _pool(m: Meaning, t: Term, ix: Index) -> Poly:
    """The maximum or the mean over a window; outside counts as minus infinity, or as 0."""
    a = m.algebra
    dims = m.dims(t.args[0])
    kernel = tuple(m.attribute(t, "kernel_shape"))
    spatial = len(kernel)
    if m.attribute(t, "ceil_mode", 0) or t.output:
        raise Unprovable("a pooling that rounds up, or gives indices")
    pads = _pads(m, t, dims, (1, 1, *kernel))
    if t.op == "AveragePool" and any(pads) and not m.attribute(t, "count_include_pad", 0):
        raise Unprovable("a mean over parts of a window")
    strides = m.attribute(t, "strides") or (1,) * spatial
    dilations = m.attribute(t, "dilations") or (1,) * spatial
    k = m.fresh(kernel)
    inside = a.number(1)
    at: list[Dim] = []
    for axis in range(spatial):
        where = ix[axis + 2] * strides[axis] + k[axis] * dilations[axis] - pads[axis]
        if pads[axis] or pads[axis + spatial]:
            inside = a.mul(inside, a.inside(where, dims[axis + 2]))
        at.append(0 if dims[axis + 2] == 1 else where)
    x = m.at(t.args[0], (*ix[:2], *at))
    if t.op == "AveragePool":
        return mean(m, a.mul(inside, x), k)
    if inside != a.number(1):
        x = a.function("where", inside, x, a.scale(a.function("inf"), -1))
    return a.over("ReduceMax", x, k)


# --- normalizations --------------------------------------------------------------------------


def _scaled(m: Meaning, p: Poly, scale: Poly | None, bias: Poly | None) -> Poly:
    made = p if scale is None else m.algebra.mul(p, scale)
    return made if bias is None else m.algebra.add(made, bias)


def normalized(
    m: Meaning,
    at: Callable[[Sequence[Dim]], Poly],
    here: Sequence[Dim],
    sizes: Sequence[Dim],
    epsilon: float,
    centred: bool = True,
) -> Poly:
    """(x - mean x) / sqrt(mean (x - mean x)^2 + eps)"""
    a = m.algebra

    def moved(where: Sequence[Dim]) -> Poly:
        if not centred:
            return at(where)
        bound = m.fresh(sizes)
        return a.sub(at(where), mean(m, at(bound), bound))

    bound = m.fresh(sizes)
    square = moved(bound)
    variance = mean(m, a.mul(square, square), bound)
    root = a.power(a.add(variance, a.number(epsilon)), -HALF)
    return a.mul(moved(here), root)


def _layer_norm(m: Meaning, t: Term, ix: Index) -> Poly:
    return _over_last(m, t, ix, lambda at: m.at(t.args[0], at), 1, t.op == "LayerNormalization")


def _over_last(
    m: Meaning, t: Term, ix: Index, x: Callable[[Index], Poly], first: int, centred: bool
) -> Poly:
    """A normalization over the last axes; its scale is input `first`."""
    if t.output:
        raise Unprovable("a second output of a normalization")
    dims = m.dims(t)
    axis = m.axis(m.attribute(t, "axis", -1), len(ix))
    epsilon = m.attribute(t, "epsilon", 1e-12 if "Skip" in t.op else 1e-5)
    made = normalized(m, lambda w: x((*ix[:axis], *w)), ix[axis:], dims[axis:], epsilon, centred)
    parts = [m.argument(t, k) for k in (first, first + 1)]
    if not centred:
        parts[1] = None
    values = [None if p is None else m.broadcast(p, ix, dims) for p in parts]
    return _scaled(m, made, *values)


def _skip_norm(m: Meaning, t: Term, ix: Index) -> Poly:
    """The normalization of a sum; the fourth output is the sum."""
    a = m.algebra
    centred = t.op.endswith("SkipLayerNormalization")
    bias = m.argument(t, 4 if centred else 3)

    def x(at: Index) -> Poly:
        parts = [m.at(t.args[0], at), m.broadcast(t.args[1], at, m.dims(t.args[0]))]
        if bias is not None:
            parts.append(m.broadcast(bias, at, m.dims(t.args[0])))
        return a.add(*parts)

    if t.output == 3:
        return x(ix)
    return _over_last(m, t, ix, x, 2, centred)


def _channel_norm(m: Meaning, t: Term, ix: Index) -> Poly:
    """InstanceNormalization: over everything but batch and channel."""
    sizes = m.dims(t)[2:]
    made = normalized(
        m,
        lambda w: m.at(t.args[0], (*ix[:2], *w)),
        ix[2:],
        sizes,
        m.attribute(t, "epsilon", 1e-5),
    )
    return _scaled(m, made, m.at(t.args[1], (ix[1],)), m.at(t.args[2], (ix[1],)))


def _group_norm(m: Meaning, t: Term, ix: Index) -> Poly:
    """Over the channels of a group and everything behind them."""
    groups, dims = m.attribute(t, "num_groups"), m.dims(t)
    channels = dims[1]
    if t.opset < 21 or not isinstance(channels, int):
        raise Unprovable("a group normalization of unknown width")
    each = channels // groups
    ranges = m.algebra.ranges
    group, inner = ranges.divide(ix[1], each), ranges.modulo(ix[1], each)
    made = normalized(
        m,
        lambda w: m.at(t.args[0], (ix[0], group * each + w[0], *w[1:])),
        (inner, *ix[2:]),
        (each, *dims[2:]),
        m.attribute(t, "epsilon", 1e-5),
    )
    return _scaled(m, made, m.at(t.args[1], (ix[1],)), m.at(t.args[2], (ix[1],)))


def _batch_norm(m: Meaning, t: Term, ix: Index) -> Poly:
    """(x - mean) / sqrt(var + eps) scale + bias, all by channel"""
    a = m.algebra
    if t.output or m.attribute(t, "training_mode", 0) or t.opset < 7:
        raise Unprovable("a batch normalization that trains")
    c = (ix[1],) if len(ix) > 1 else (0,)
    scale, bias, centre, variance = (m.at(t.args[k], c) for k in (1, 2, 3, 4))
    root = a.power(a.add(variance, a.number(m.attribute(t, "epsilon", 1e-5))), -HALF)
    moved = a.mul(a.sub(m.at(t.args[0], ix), centre), root)
    return _scaled(m, moved, scale, bias)


# --- attention -------------------------------------------------------------------------------


def _attention(m: Meaning, t: Term, ix: Index) -> Poly:
    """softmax(q k' scale + mask) v (arXiv:1706.03762), heads packed or not, keys shared or not"""
    q, k, v = t.args[:3]
    if len(t.args) > 4 or t.output or m.attribute(t, "softcap", 0.0):
        raise Unprovable("attention with a past, a cap or further outputs")
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
    if not isinstance(heads, int) or not isinstance(shared, int):
        raise Unprovable("an unknown number of heads")
    widths = []
    for x, n in ((q, heads), (v, shared)):
        width = m.dims(x)[-1]
        if packed:
            if not isinstance(width, int):
                raise Unprovable("heads of unknown width")
            width //= n
        widths.append(width)
    width, out = widths
    keys = m.dims(k)[-2]
    if packed:
        b, i, last = ix
        h, j = a.ranges.divide(last, out), a.ranges.modulo(last, out)
    else:
        b, h, i, j = ix
    own = a.ranges.divide(h, heads // shared)

    def at(x: Term | None, head: Dim, row: Dim, column: Dim, size: Dim) -> Poly:
        if len(m.dims(x)) == 3:
            return m.at(x, (b, row, head * size + column))
        return m.at(x, (b, head, row, column))

    scale = m.attribute(t, "scale")
    if not scale:
        if not isinstance(width, int):
            raise Unprovable("heads of unknown width")
        scale = 1 / math.sqrt(width)

    causal = bool(m.attribute(t, "is_causal", 0))
    if causal and m.dims(q)[-2] != keys:
        raise Unprovable("causal attention to another length")

    def score(s: Dim) -> Poly:
        (d,) = m.fresh([width])
        product = a.mul(at(q, h, i, d, width), at(k, own, s, d, width))
        made = a.scale(a.sum(product, [d]), Fraction(scale))
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
    """(x1 cos - x2 sin, x2 cos + x1 sin) for the two halves x1, x2 (arXiv:2104.09864)"""
    a = m.algebra
    x, cos, sin = t.args[:3]
    positions = m.argument(t, 3)
    if m.attribute(t, "interleaved", 0) or m.attribute(t, "rotary_embedding_dim", 0):
        raise Unprovable("rotary embedding of a part, or of neighbours")
    dims = m.dims(x)
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
    half = size // 2

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

    first, second = a.inside(j, half), a.inside(j - half, half)
    low = a.sub(a.mul(part(j), angle(cos, j)), a.mul(part(j + half), angle(sin, j)))
    high = a.add(a.mul(part(j), angle(cos, j - half)), a.mul(part(j - half), angle(sin, j - half)))
    return a.add(a.mul(first, low), a.mul(second, high))


NETWORKS: dict[str, Operator] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _channel_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "RMSNormalization": _layer_norm,
    "RotaryEmbedding": _rotary,
    "SimplifiedLayerNormalization": _layer_norm,
    "com.microsoft:FusedConv": _conv,
    "com.microsoft:FusedGemm": _gemm,
    "com.microsoft:FusedMatMul": _matmul,
    "com.microsoft:MultiHeadAttention": _multi_head,
    "com.microsoft:SkipLayerNormalization": _skip_norm,
    "com.microsoft:SkipSimplifiedLayerNormalization": _skip_norm,
}
