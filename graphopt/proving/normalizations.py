"""Layer, RMS, instance, group and batch normalization as polynomials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.analyses.shapes.symbolic import Dim
from graphopt.proving.arithmetic import HALF
from graphopt.proving.meaning import Index, Meaning, Operator
from graphopt.proving.polynomials import Poly, Unprovable
from graphopt.proving.reductions import mean
from graphopt.proving.terms import Term

__all__ = ["NORMALIZATIONS"]


def _scaled(m: Meaning, p: Poly, scale: Poly | None, bias: Poly | None) -> Poly:
    made = p if scale is None else m.algebra.product(p, scale)
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


NORMALIZATIONS: dict[str, Operator] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _channel_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _layer_norm,
    "com.microsoft:SkipLayerNormalization": _skip_norm,
    "com.microsoft:SkipSimplifiedLayerNormalization": _skip_norm,
}
