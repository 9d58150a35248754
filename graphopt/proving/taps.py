"""Convolutions tap by tap: sums over the positions of a window written out, channels as sums.

Windows of different sizes over one value have no index in common; each of their taps reads it at
one place, where coefficients can be compared (see `compare`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.proving.polynomials import Atom, Monomial, Poly, Unprovable
from graphopt.proving.scalars import Algebra
from graphopt.proving.terms import Term

__all__ = ["alone_and_summed", "reads", "spread", "written_out"]

#: Terms that one sum is written out to.
MOST = 1024

#: A bound variable's name, which ends in its size.
_BOUND = re.compile(r"#\d+_\d+m?_(\w+)")

_SUM = re.compile(r"<\w+>")
#: A value, and its indices as text.
Read = tuple[object, tuple[str, ...]]

_Rewrite = Callable[[Monomial], Poly]


def written_out(algebra: Algebra, p: Poly) -> Poly:
    """sum_k w[k] x[u + k] -> w[0] x[u] + w[1] x[u + 1] + ..., inside of functions too.

    Raises:
        Unprovable: a window has more than `MOST` taps.
    """
    return _everywhere(algebra, p, lambda m: _taps(algebra, m))


def spread(algebra: Algebra, p: Poly, axis: int, terms: Mapping[int, Term]) -> Poly:
    """x[.., e, ..] -> sum_c [c = e] x[.., c, ..] along one axis of values that are no constants.

    What reads one channel can be compared then with what sums over all of them.
    """
    return _everywhere(algebra, p, lambda m: _summed(algebra, m, axis, terms))


def reads(p: Poly) -> set[Read]:
    """Where values that are no constants are read, whatever bound variables are called."""
    found: set[Read] = set()
    for m, _ in p:
        for a, _ in m.factors:
            if a.kind == "elem" and not a.data[1]:
                found.add((a.data, tuple(_BOUND.sub(r"<\1>", str(e)) for e in a.index)))
            found = found.union(*map(reads, a.polys))
    return found


def alone_and_summed(read: Iterable[Read], axis: int) -> bool:
    """Whether some value is read in one place of an axis, and as a sum along it elsewhere."""
    ways: dict[object, set[bool]] = {}
    for value, index in read:
        if -len(index) <= axis < len(index):
            ways.setdefault(value, set()).add(_SUM.fullmatch(index[axis]) is not None)
    return any(len(found) > 1 for found in ways.values())


def _everywhere(algebra: Algebra, p: Poly, rewrite: _Rewrite) -> Poly:
    """`rewrite` of each term of a polynomial, and before it of those inside of its atoms."""

    def atom(a: Atom) -> Atom:
        if not a.polys:
            return a
        polys = tuple(_everywhere(algebra, q, rewrite) for q in a.polys)
        return a if polys == a.polys else algebra.made(a.kind, a.data, a.index, polys, a.bound)

    made: list[Poly] = []
    for m, k in p:
        inner = Monomial(m.bound, tuple((atom(a), e) for a, e in m.factors))
        made.append(algebra.scale(rewrite(inner), k))
    return tuple(itertools.chain.from_iterable(made))


def _taps(algebra: Algebra, m: Monomial) -> Poly:
    bound = dict(m.bound)
    windows: dict[str, int] = {}
    for e in _indices(m):
        names = algebra.ranges.variables(e)
        for name in names & bound.keys() if len(names) > 1 else ():
            size = bound[name]
            if isinstance(size, int):
                windows[name] = size
    if math.prod(windows.values()) > MOST:
        raise Unprovable("a window of too many taps")
    rest = tuple((n, s) for n, s in m.bound if n not in windows)
    made: list[Poly] = []
    for at in itertools.product(*map(range, windows.values())):
        values: dict[str, Dim] = dict(zip(windows, at, strict=True))
        factors = [(algebra.renamed_atom(a, values), e) for a, e in m.factors]
        term: Poly = ((Monomial(rest, tuple(f for f in factors if f[0].kind != "in")), 1),)
        for a, _ in factors:
            if a.kind == "in":  # what was one range for all taps may be none for this one
                term = algebra.mul(term, algebra.inside(*a.index))
        made.append(algebra.mul(term, algebra.number(1)))
    return tuple(itertools.chain.from_iterable(made))


def _indices(m: Monomial) -> Iterator[Dim]:
    """Where the values of a term that are no constants are read."""
    for a, _ in m.factors:
        if a.kind == "elem" and not a.data[1]:
            yield from a.index


def _summed(algebra: Algebra, m: Monomial, axis: int, terms: Mapping[int, Term]) -> Poly:
    bound = {n for n, _ in m.bound}
    sums = list(m.bound)
    factors = []
    equal = algebra.number(1)
    for a, power in m.factors:
        free = a.kind == "elem" and not a.data[1] and power == 1 and -len(a.index) <= axis
        if free and axis < len(a.index):
            dims, e = terms[a.data[0]].dims, a.index[axis]
            alone = isinstance(e, Expr) and e.name in bound
            if dims is not None and isinstance(e, Expr) and not alone:
                c = algebra.ranges.variable(dims[axis])
                sums.append((str(c), dims[axis]))
                index = list(a.index)
                index[axis] = c
                a = algebra.made(a.kind, a.data, tuple(index))
                equal = algebra.mul(equal, algebra.inside(c - e, 1))
        factors.append((a, power))
    return algebra.mul(((Monomial(tuple(sums), tuple(factors)), 1),), equal)
