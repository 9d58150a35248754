"""Matrix products, convolutions and pooling as polynomials."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from graphopt.analyses.shapes.symbolic import Dim
from graphopt.proving.arithmetic import activated, clipped
from graphopt.proving.meaning import Index, Meaning, Operator
from graphopt.proving.polynomials import Poly, Unprovable
from graphopt.proving.reductions import mean
from graphopt.proving.terms import Term

__all__ = ["PRODUCTS"]


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
    inner = left[-2] if turned[0] else left[-1]
    (k,) = m.fresh([_met(m, inner, right[-1 if turned[1] or not columns else -2])])
    one = ((k, tail[0]) if turned[0] else (tail[0], k)) if rows else (k,)
    two = ((tail[-1], k) if turned[1] else (k, tail[-1])) if columns else (k,)
    p = m.at(a, (*_batched(batch, left[: -1 - rows]), *one))
    q = m.at(b, (*_batched(batch, right[: -1 - columns]), *two))
    made = m.algebra.sum(m.algebra.product(p, q), [k])
    return m.algebra.scale(made, Fraction(m.attribute(t, "alpha", 1.0)))


def _met(m: Meaning, size: Dim, other: Dim) -> Dim:
    """Two sizes that a product needs to be equal as one, a number if either is."""
    if size != other:
        m.held.add((size, other))  # or it does not run
    return other if isinstance(other, int) else size


def _batched(batch: Index, own: Sequence[Dim]) -> Index:
    at = batch[len(batch) - len(own) :]
    return tuple(0 if d == 1 else i for i, d in zip(at, own, strict=True))


def _gemm(m: Meaning, t: Term, ix: Index) -> Poly:
    """y = alpha a' b' + beta c"""
    a = m.algebra
    left, right = m.dims(t.args[0]), m.dims(t.args[1])
    turned = [bool(m.attribute(t, f"trans{x}", 0)) for x in "AB"]
    i, j = ix
    (k,) = m.fresh([_met(m, left[1 - turned[0]], right[turned[1]])])
    p = m.at(t.args[0], (k, i) if turned[0] else (i, k))
    q = m.at(t.args[1], (j, k) if turned[1] else (k, j))
    made = a.scale(a.sum(a.product(p, q), [k]), Fraction(m.attribute(t, "alpha", 1.0)))
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
    _met(m, dims[1], kernel[1] * group)
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
    product = a.product(a.mul(inside, m.at(x, (n, channel, *at))), m.at(w, (o, c, *k)))
    made = a.sum(product, [c, *k])
    if m.argument(t, 2) is not None:
        made = a.add(made, m.at(t.args[2], (o,)))
    if t.op.endswith("FusedConv"):
        if m.argument(t, 3) is not None:
            made = a.add(made, m.at(t.args[3], ix))
        made = _fused(m, t, made)
    return made


def _conv_transpose(m: Meaning, t: Term, ix: Index) -> Poly:
    """y[n, o, u] = sum_(c, i, k) [u + p = s i + d k] x[n, c, i] w[c, o, k] + b[o]"""
    a = m.algebra
    x, w = t.args[0], t.args[1]
    dims, kernel = m.dims(x), m.dims(w)
    spatial = len(dims) - 2
    if m.attribute(t, "auto_pad", "NOTSET") not in ("NOTSET", "") or "output_shape" in t.attributes:
        raise Unprovable("a transposed convolution whose padding follows from its size")
    pads = m.attribute(t, "pads") or (0,) * (2 * spatial)
    strides = m.attribute(t, "strides") or (1,) * spatial
    dilations = m.attribute(t, "dilations") or (1,) * spatial
    group, (channels, width) = m.attribute(t, "group", 1), kernel[:2]
    if group != 1 and not (isinstance(channels, int) and isinstance(width, int)):
        raise Unprovable("a grouped convolution of unknown width")
    n, o, *u = ix
    inner: Dim = channels // group if isinstance(channels, int) else channels
    bound = m.fresh([inner, *kernel[2:], *dims[2:]])
    c, k, i = bound[0], bound[1 : 1 + spatial], bound[1 + spatial :]
    if group != 1:
        c = a.ranges.divide(o, width) * inner + c
        o = a.ranges.modulo(o, width)
    product = a.product(m.at(x, (n, c, *i)), m.at(w, (c, o, *k)))
    for axis in range(spatial):
        apart = u[axis] + pads[axis] - i[axis] * strides[axis] - k[axis] * dilations[axis]
        product = a.mul(product, a.inside(apart, 1))
    made = a.sum(product, bound)
    if m.argument(t, 2) is not None:
        made = a.add(made, m.at(t.args[2], (ix[1],)))
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


PRODUCTS: dict[str, Operator] = {
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "com.microsoft:FusedConv": _conv,
    "com.microsoft:FusedGemm": _gemm,
    "com.microsoft:FusedMatMul": _matmul,
}
