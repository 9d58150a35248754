"""Conditions as polynomials: logic, Where, and softmaxes whose fully masked rows are guarded."""

from __future__ import annotations

from graphopt.proving.arithmetic import operands
from graphopt.proving.meaning import Index, Meaning, Operator
from graphopt.proving.polynomials import Monomial, Poly, Rational, written
from graphopt.proving.terms import Term

__all__ = ["CONDITIONS", "guarded"]


def _not(m: Meaning, t: Term, ix: Index) -> Poly:
    return m.algebra.sub(m.algebra.number(1), m.at(t.args[0], ix))


def _logic(name: str, neutral: int, decides: int | None) -> Operator:
    """f(x, neutral) = x and f(x, decides) = decides"""

    def made(m: Meaning, t: Term, ix: Index) -> Poly:
        args = [p for p in operands(m, t, ix) if p != m.algebra.number(neutral)]
        if decides is not None and m.algebra.number(decides) in args:
            return m.algebra.number(decides)
        if len(args) < 2:
            return args[0] if args else m.algebra.number(neutral)
        args.sort(key=lambda p: [written(x) for x, _ in p])
        return m.algebra.function(name, *args)

    return made


def _where(m: Meaning, t: Term, ix: Index) -> Poly:
    """where(c, a, -inf) = a + where(c, 0, -inf) for finite a"""
    c, a, b = operands(m, t, ix)
    if a == b or c == m.algebra.number(1):
        return a
    if not c:
        return b
    minus = m.algebra.scale(m.algebra.function("inf"), -1)
    given = m.argument(t, 1)
    if b == minus and a != minus and given is not None and given.finite:
        return m.algebra.add(a, m.algebra.function("where", c, (), b))
    if not a and c == m.algebra.function("isnan", b) and all(map(_is_softmax, b)):
        return guarded(m, b)
    return m.algebra.function("where", c, a, b)


def guarded(m: Meaning, p: Poly) -> Poly:
    """A softmax of which a fully masked row is 0: of finite scores it is the softmax itself."""
    masked = any(_masked(m, monomial) for monomial, _ in p)
    return m.algebra.function("guarded", p) if masked else p


def _is_softmax(item: tuple[Monomial, Rational]) -> bool:
    """Whether it is an exponential over a sum: no number only where its exponents are none."""
    kinds = {(a.kind, e > 0) for a, e in item[0].factors if a.kind == "base" or a.data == ("exp",)}
    return kinds >= {("fn", True), ("base", False)}


def _masked(m: Meaning, product: Monomial) -> bool:
    """Whether the exponents have a summand that may be minus infinity."""
    for atom, _ in product.factors:
        if atom.kind == "fn" and atom.data[0] == "exp":
            for monomial, _ in atom.polys[0]:
                if monomial.bound or len(monomial.factors) > 1:
                    continue  # a product of projections
                for inner, _ in monomial.factors:
                    if inner.kind == "fn" and inner.data[0] in ("inf", "where"):
                        return True
                    if inner.kind == "elem" and not m.terms[inner.data[0]].finite:
                        return True
    return False


CONDITIONS: dict[str, Operator] = {
    "And": _logic("and", 1, 0),
    "Not": _not,
    "Or": _logic("or", 0, 1),
    "Where": _where,
    "Xor": _logic("xor", 0, None),
}
