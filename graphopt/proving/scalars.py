"""Scalar normal form: sums of products over tensor elements, for every index at once.

An element of a tensor is a polynomial (`polynomials`). Atoms are elements of leaf tensors,
functions of polynomials (exp, tanh, a maximum over an axis), indicators of an index range, and
sizes. Normalizing decides equality of everything linear, and everything else by congruence.
Arithmetic is that of the real numbers; constants are the stored floats.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graphopt.analyses.shapes.symbolic import Dim, Expr, symbol
from graphopt.proving.expansion import Expansion
from graphopt.proving.polynomials import Atom, Monomial, Poly, Rational, depth

__all__ = ["Algebra"]


class Algebra(Expansion):
    """Polynomials over the index variables of one comparison."""

    def size(self, dim: Dim) -> Poly:
        """A size as a number."""
        if isinstance(dim, int):
            return self.number(dim)
        total: Poly = ()
        for names, k in dim.terms:
            product = self.number(k)
            for name in names:
                kind = "index" if name in self.ranges.sizes else "size"
                product = self.mul(product, self.atom(self.made(kind, (), (symbol(name),))))
            total = self.add(total, product)
        return total

    def inside(self, e: Dim, size: Dim) -> Poly:
        """1 where 0 <= e < size, else 0."""
        known = self.ranges.within(e, size)
        if known is not None:
            return self.number(int(known))
        return self.atom(self.made("in", (), (e, size)))

    def function(self, name: str, *args: Poly, data: tuple[Any, ...] = ()) -> Poly:
        """A function known by name alone; of parts side by side, side by side."""
        if len(args) == 1 and (parts := self._parts(args[0])):
            ranges, polys = zip(*parts.items(), strict=True)
            inner = [self.function(name, p, data=data) for p in polys]
            return self.add(
                *(self.mul(self.atom(r), p) for r, p in zip(ranges, inner, strict=True))
            )
        return self.atom(self.made("fn", (name, *data), polys=args))

    def _parts(self, p: Poly) -> dict[Atom, Poly]:
        """The parts of a concatenation by their indicators, of which one is always 1; else none."""
        found: dict[Atom, Poly] = {}
        for m, k in p:
            ranges = [a for a, _ in m.factors if a.kind == "in"]
            if len(ranges) != 1 or m.bound:
                return {}
            rest = Monomial((), tuple(f for f in m.factors if f[0] is not ranges[0]))
            found[ranges[0]] = self.add(found.get(ranges[0], ()), ((rest, k),))
        lines = [a.index[0] for a in found if isinstance(a.index[0], Expr)]
        line = next((e for e in lines if e.name in self.ranges.sizes), None)
        if line is None or line.name is None or len(found) < 2:
            return {}
        # each begins where another ends, from 0 to the size of the variable
        starts = {line - a.index[0]: a.index[1] for a in found}
        at: Dim = 0
        while at in starts:
            at = at + starts.pop(at)
        return {} if starts or at != self.ranges.sizes[line.name] else found

    def sum(self, p: Poly, bound: Iterable[Dim]) -> Poly:
        """The sum over index variables (an index that is no variable has one value)."""
        names = [b.name for b in bound if isinstance(b, Expr) and b.name is not None]
        p, names = self._parted(self._opened(p), names)
        for name in names:
            size = self.ranges.sizes[name]
            parts: list[Poly] = []
            for m, k in p:
                one: Poly = ((m, k),)
                if any(name in a.free for a, _ in m.factors):
                    made = Monomial((*m.bound, (name, size)), m.factors)
                    parts.append(self._settled({made: k}))
                else:
                    parts.append(self.mul(one, self.size(size)))
            p = self.add(*parts)
        return p

    def _parted(self, p: Poly, names: list[str]) -> tuple[Poly, list[str]]:
        """Variables that run over several axes at once, as one for each axis."""
        done: list[str] = []
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            sizes = self.ranges.parted(self.indices(p), name)
            if sizes is None:
                done.append(name)
                continue
            whole, rest = map(self._fresh, sizes)
            p = self.renamed(p, {name: whole * sizes[1] + rest})
            waiting += [str(v) for v in (whole, rest)]
        return p, done

    def indices(self, p: Poly) -> list[Dim]:
        """The indices of all atoms in a polynomial."""
        atoms = [a for m, _ in p for a, _ in m.factors]
        found = [e for a in atoms for e in a.index]
        return found + [e for a in atoms for inner in a.polys for e in self.indices(inner)]

    def _opened(self, p: Poly) -> Poly:
        """With (b^1/2)^2 as b, for a sum b that is never negative."""
        if len(p) == 1 and not p[0][0].bound and len(p[0][0].factors) == 1:
            (atom, e) = p[0][0].factors[0]
            if atom.kind == "base" and e == 1 and self.nonnegative(atom.polys[0]):
                return self.scale(atom.polys[0], p[0][1])
        return p

    def over(self, name: str, p: Poly, bound: Iterable[Dim]) -> Poly:
        """The maximum (or another reduction that is no sum) over index variables."""
        names = [b.name for b in bound if isinstance(b, Expr) and b.name is not None]
        pairs = tuple((n, self.ranges.sizes[n]) for n in names)
        if len(p) == 1 and p[0][1] == 1 and not p[0][0].bound and len(p[0][0].factors) == 1:
            (inner, e) = p[0][0].factors[0]
            if inner.kind == "over" and inner.data == (name,) and e == 1 and name[:3] != "Arg":
                away = {n: self._fresh(s) for n, s in inner.bound}
                p = self.renamed(inner.polys[0], away)
                pairs = (*pairs, *((str(away[n]), s) for n, s in inner.bound))
        if len(p) == 1 and len(pairs) > 1:
            own = Monomial(pairs, p[0][0].factors)
            pairs = tuple((n, dict(pairs)[n]) for n in self.ordered(own))
        if not pairs:
            return p
        level = 1 + depth(p)
        named = {n: f"#{level}_{k}m_{s}" for k, (n, s) in enumerate(pairs)}
        self.ranges.sizes.update({named[n]: s for n, s in pairs})
        p = self.renamed(p, {n: symbol(new) for n, new in named.items()})
        pairs = tuple((named[n], s) for n, s in pairs)
        atom = self.made("over", (name,), polys=(p,), bound=pairs)
        return self._settled({Monomial((), ((atom, 1),)): 1})

    def exp(self, p: Poly) -> Poly:
        """exp(a + b) = exp(a) exp(b), where b is a maximum over some axis or a constant."""
        apart = [(m, k) for m, k in p if not m.bound and all(map(_shift, m.factors))]
        rest = tuple(item for item in p if item not in apart)
        made = self.number(1)
        for part in (*((item,) for item in apart), rest):
            if part:
                made = self.mul(made, self.atom(self.made("fn", ("exp",), polys=(part,))))
        return made

    def log(self, p: Poly) -> Poly:
        """log(exp(a) b) = a + log(b)"""
        found: list[Poly] = []
        for m, _ in p if len(p) == 1 else ():
            bound = {n for n, _ in m.bound}
            for atom, e in m.factors:
                if atom.kind == "fn" and atom.data == ("exp",) and not atom.free & bound:
                    p = self.mul(p, self.atom(atom, -e))
                    found.append(self.scale(atom.polys[0], e))
        return self.add(*found, self.function("log", p))

    def nonnegative(self, p: Poly) -> bool:
        """Whether it is a sum of products of what is never below 0."""

        def one(atom: Atom, e: Rational) -> bool:
            if e.denominator != 1 or e % 2 == 0 or atom.kind in ("in", "size", "index"):
                return True
            return atom.kind == "fn" and atom.data[0] in ("abs", "exp", "relu", "sigmoid")

        return all(k > 0 and all(one(*f) for f in m.factors) for m, k in p)


def _shift(factor: tuple[Atom, Rational]) -> bool:
    atom = factor[0]
    return atom.kind == "over" or (atom.kind == "elem" and bool(atom.data[1]))
