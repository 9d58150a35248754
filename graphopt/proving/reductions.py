"""Reductions, pooling of whole images and softmax as polynomials: sums over bound variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.proving.arithmetic import HALF, activated
from graphopt.proving.meaning import Index, Meaning, Operator
from graphopt.proving.polynomials import Poly, Unprovable
from graphopt.proving.terms import Term

__all__ = ["REDUCTIONS", "mean", "softmax"]


def _reduced(m: Meaning, t: Term, ix: Index) -> tuple[Index, list[Dim]]:
    """The index into the operand, and its reduced variables."""
    dims = m.dims(t.args[0])
    given = m.argument(t, 1)
    axes = m.numbers(given)
    if given is not None and axes is None:
        raise Unprovable("axes that are not constant")
    if not axes:
        if m.attribute(t, "noop_with_empty_axes", 0):
            if t.op not in _PLAIN:
                raise Unprovable(f"{t.op} of no axes")
            return ix, []
        axes = list(range(len(dims)))
    gone = {m.axis(k, len(dims)) for k in axes}
    if len(gone) < len(axes):
        raise Unprovable("an axis that is named twice")
    keep = m.attribute(t, "keepdims", 1)
    left = iter(ix)
    at: list[Dim] = []
    bound: list[Dim] = []
    for k, size in enumerate(dims):
        if k not in gone:
            at.append(next(left))
            continue
        if keep:
            next(left)
        at.append(m.fresh([size])[0])
        bound.append(at[-1])
    return tuple(at), bound


#: Reductions that leave one element as it is.
_PLAIN = frozenset(f"Reduce{k}" for k in ("Max", "Mean", "Min", "Prod", "Sum"))
#: Reductions that round integers.
_REAL = frozenset(f"Reduce{k}" for k in ("L2", "LogSum", "LogSumExp", "Mean"))


def _count(m: Meaning, bound: Sequence[Dim]) -> Poly:
    made = m.algebra.number(1)
    for b in bound:
        if isinstance(b, Expr) and b.name is not None:
            made = m.algebra.mul(made, m.algebra.size(m.algebra.ranges.sizes[b.name]))
    return made


def mean(m: Meaning, p: Poly, bound: Sequence[Dim]) -> Poly:
    """The sum over the variables, divided by their number."""
    total = m.algebra.sum(p, bound)
    return m.algebra.mul(total, m.algebra.power(_count(m, bound), Fraction(-1)))


def _reduce(kind: str) -> Operator:
    def made(m: Meaning, t: Term, ix: Index) -> Poly:
        a = m.algebra
        if kind in _REAL and not m.real(t):
            raise Unprovable(f"{kind} of integers")
        at, bound = _reduced(m, t, ix)
        x = m.at(t.args[0], at)
        if kind == "ReduceMean":
            return mean(m, x, bound)
        if kind == "ReduceSum":
            return a.sum(x, bound)
        if kind == "ReduceSumSquare":
            return a.sum(a.mul(x, x), bound)
        if kind == "ReduceL2":
            return a.power(a.sum(a.mul(x, x), bound), HALF)
        if kind == "ReduceLogSumExp":
            return a.log(a.sum(a.exp(x), bound))
        if kind == "ReduceLogSum":
            return a.log(a.sum(x, bound))
        if kind == "ReduceL1":
            return a.sum(activated(m, "Abs", x, t.attributes.get), bound)
        return a.over(kind, x, bound)

    return made


def _arg(m: Meaning, t: Term, ix: Index) -> Poly:
    """Where an axis has its maximum or minimum: the first such place, or the last."""
    dims = m.dims(t.args[0])
    axis = m.axis(m.attribute(t, "axis", 0), len(dims))
    if dims[axis] == 1:
        return ()
    (k,) = m.fresh([dims[axis]])
    x = m.at(t.args[0], (*ix[:axis], k, *ix[axis + m.attribute(t, "keepdims", 1) :]))
    last = " last" if m.attribute(t, "select_last_index", 0) else ""
    return m.algebra.over(t.op + last, x, [k])


def _global_pool(m: Meaning, t: Term, ix: Index) -> Poly:
    rest = m.fresh(m.dims(t.args[0])[2:])
    x = m.at(t.args[0], (*ix[:2], *rest))
    return mean(m, x, rest) if t.op == "GlobalAveragePool" else m.algebra.over("ReduceMax", x, rest)


def softmax(
    m: Meaning,
    at: Callable[[Dim], Poly],
    i: Dim,
    size: Dim,
    seen: Callable[[Dim], Poly] | None = None,
) -> Poly:
    """exp(x_i) / sum_k exp(x_k) over the k that are seen"""
    a = m.algebra

    def weight(k: Dim) -> Poly:
        made = a.exp(at(k))
        return made if seen is None else a.mul(seen(k), made)

    (k,) = m.fresh([size])
    return a.mul(weight(i), a.power(a.sum(weight(k), [k]), Fraction(-1)))


def _softmax(m: Meaning, t: Term, ix: Index) -> Poly:
    dims = m.dims(t)
    axis = m.axis(m.attribute(t, "axis", -1), len(ix))
    if t.opset < 13 and axis != len(ix) - 1:
        raise Unprovable("a Softmax over several axes")

    def at(k: Dim) -> Poly:
        return m.at(t.args[0], (*ix[:axis], k, *ix[axis + 1 :]))

    made = softmax(m, at, ix[axis], dims[axis])
    if t.op == "Softmax":
        return made
    (k,) = m.fresh([dims[axis]])
    total = m.algebra.sum(m.algebra.exp(at(k)), [k])
    return m.algebra.sub(at(ix[axis]), m.algebra.log(total))


REDUCTIONS: dict[str, Operator] = {
    "ArgMax": _arg,
    "ArgMin": _arg,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "LogSoftmax": _softmax,
    "Softmax": _softmax,
    **{
        name: _reduce(name)
        for name in """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
        ReduceMin ReduceProd ReduceSum ReduceSumSquare""".split()  # noqa: SIM905
    },
}
