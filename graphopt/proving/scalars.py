"""Scalar normal form: sums of products over tensor elements, for every index at once.

An element of a tensor is a polynomial (`polynomials`). Atoms are elements of leaf tensors,
functions of polynomials (exp, tanh, a maximum over an axis), indicators of an index range, and
sizes. Normalizing decides equality of everything linear, and everything else by congruence.
Arithmetic is that of the real numbers; constants are the stored floats.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from graphopt.analyses.shapes.symbolic import Dim, Expr, nonnegative, symbol
from graphopt.proving.canonical import MOST_TERMS, Canonical
from graphopt.proving.polynomials import (
    ONE,
    Atom,
    Monomial,
    Poly,
    Rational,
    TooLarge,
    Unprovable,
    constant,
    depth,
    exact,
)  # fmt: skip

__all__ = ["Algebra"]


class Algebra(Canonical):
    """Polynomials over the index variables of one comparison."""

    # --- making -----------------------------------------------------------------------------

    def number(self, x: float | Rational) -> Poly:
        """A constant, exactly."""
        return ((ONE, exact(x)),) if x else ()

    def atom(self, atom: Atom, power: Rational = 1) -> Poly:
        """One factor alone."""
        return ((Monomial((), ((atom, exact(power)),)), 1),)

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

    # --- arithmetic -------------------------------------------------------------------------

    def add(self, *polys: Poly) -> Poly:
        """Their sum."""
        made: dict[Monomial, Rational] = {}
        for monomial, k in itertools.chain.from_iterable(polys):
            made[monomial] = made.get(monomial, 0) + k
        return self._settled(made)

    def scale(self, p: Poly, k: Rational) -> Poly:
        """k p."""
        return tuple((m, c * k) for m, c in p) if k else ()

    def sub(self, p: Poly, q: Poly) -> Poly:
        """p - q."""
        return self.add(p, self.scale(q, -1))

    def mul(self, p: Poly, q: Poly) -> Poly:
        """Their product, multiplied out where that leaves it short.

        Sums over bound variables that meet each other stay factors.
        """
        if _sums(p) and _sums(q):
            return self.mul(self._factor(p), self._factor(q))
        if _sums(p) and len(q) > 1 and not constant(q):
            p = self._factor(p)
        elif _sums(q) and len(p) > 1 and not constant(p):
            q = self._factor(q)
        if len(p) * len(q) > MOST_TERMS:
            raise TooLarge("a product of sums is too long")
        made: dict[Monomial, Rational] = {}
        for a, j in p:
            for b, k in q:
                monomial = self._product(a, b)
                if not self._empty(monomial):
                    made[monomial] = made.get(monomial, 0) + j * k
        return self._settled(made)

    def product(self, p: Poly, q: Poly) -> Poly:
        """p q, where 0 times what is infinite or no number is not 0."""
        if (not p or not q) and not constant(p or q):
            self.vanished.add(p or q)
        return self.mul(p, q)

    def _factor(self, p: Poly) -> Poly:
        """A sum as one factor, with what is free of its variables beside it."""
        if len(p) > 1:
            k = p[0][1]
            return self.scale(
                self.atom(self.made("base", polys=(self.scale(p, Fraction(1) / k),))), k
            )
        ((m, k),) = p
        bound = {n for n, _ in m.bound}
        free = tuple((a, e) for a, e in m.factors if not (a.free & bound))
        left = tuple((a, e) for a, e in m.factors if a.free & bound)
        rest = self._settled({Monomial(m.bound, left): 1})
        beside = Monomial((), (*free, (self.made("base", polys=(rest,)), 1)))
        return self._settled({beside: k})

    def _empty(self, m: Monomial) -> bool:
        """Whether two of its indicators are never 1 together."""
        ranges = [a.index for a, _ in m.factors if a.kind == "in"]
        for (e, n), (f, k) in itertools.combinations(ranges, 2):
            gap = f - e  # f = e + gap
            if not self.ranges.variables(gap) and (nonnegative(-gap - n) or nonnegative(gap - k)):
                return True
        return False

    def power(self, p: Poly, e: Rational) -> Poly:
        """p to a constant power."""
        if e == 1:
            return p
        if not p:
            if e > 0:
                return ()
            raise Unprovable("a division by zero")
        if e.denominator == 1 and 0 <= e <= 3 and len(p) ** int(e) <= MOST_TERMS:
            made = self.number(1)
            for _ in range(int(e)):
                made = self.mul(made, p)
            return made
        if len(p) == 1:
            return self._power_of_one(*p[0], e)
        k = p[0][1]
        root = self._root(k, e) if e.denominator == 1 else None
        if root is None:
            return self.atom(self.made("base", polys=(p,)), e)
        return self.scale(
            self.atom(self.made("base", polys=(self.scale(p, Fraction(1) / k),)), e), root
        )

    def _power_of_one(self, m: Monomial, k: Rational, e: Rational) -> Poly:
        """(k m)^e: factors that are free of the sum come out of it."""
        bound = {n for n, _ in m.bound}
        out: list[tuple[Atom, Rational]] = []
        left: list[tuple[Atom, Rational]] = []
        for atom, power in m.factors:
            free = not bound or not (atom.free & bound)
            exact = e.denominator == 1 or self._positive(atom, power)
            (out if free and exact else left).append((atom, power))
            self._undone(atom, power, power * e)
        rational = self._root(k, e)
        if rational is None or (e.denominator != 1 and k < 0):
            rational, kept = 1, k
        else:
            kept = 1
        made = self._settled({Monomial((), tuple((a, p * e) for a, p in out)): rational})
        if not left and not bound and kept == 1:
            return made
        rest: Poly = ((Monomial(m.bound, tuple(left)), kept),)
        rest = self._settled(dict(rest))
        return self.mul(made, self.atom(self.made("base", polys=(rest,)), e))

    @staticmethod
    def _root(k: Rational, e: Rational) -> Rational | None:
        if e.denominator == 1:
            return Fraction(k) ** int(e)
        return 1 if k == 1 else None

    @staticmethod
    def _positive(atom: Atom, power: Rational) -> bool:
        """Whether (a^p)^e = a^(p e) for every e."""
        if atom.kind == "fn" and atom.data[0] == "exp":
            return True
        return power.denominator != 1

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

    def _product(self, a: Monomial, b: Monomial) -> Monomial:
        """The product of two sums, the second's variables renamed apart from the first's."""
        if b.bound:
            away = {n: self._fresh(s) for n, s in b.bound}
            b = Monomial(
                tuple((str(away[n]), s) for n, s in b.bound),
                tuple((self.renamed_atom(x, away), e) for x, e in b.factors),
            )
        powers: dict[tuple[Atom, bool], Rational] = {}
        for atom, e in (*a.factors, *b.factors):
            key = (atom, e < 0 and not _nonzero(atom))  # x / x is 1 only where x is not 0
            old = powers.get(key, 0)
            powers[key] = old + e
            if old:
                self._undone(atom, old, powers[key])
        kept = [(x, 1 if x.kind == "in" and e > 0 else e) for (x, _), e in powers.items() if e]
        return self._canonical(Monomial(a.bound + b.bound, tuple(self._unimplied(kept))))

    def _undone(self, atom: Atom, old: Rational, new: Rational) -> None:
        """Take note of a power that leaves no root, inverse or quotient of what had one."""
        partial = old < 0 or old.denominator != 1
        if (not new or (partial and new > 0 and new.denominator == 1)) and atom.kind != "size":
            self.vanished.add(((Monomial((), ((atom, 1),)), 1),))

    def _unimplied(self, factors: list[tuple[Atom, Rational]]) -> list[tuple[Atom, Rational]]:
        """Without indicators that are 1 wherever another one is."""
        ranges = [a for a, _ in factors if a.kind == "in"]
        if len(ranges) < 2:
            return factors
        gone: set[Atom] = set()
        for wide, narrow in itertools.permutations(ranges, 2):
            (e, n), (f, k) = wide.index, narrow.index
            gap = e - f
            if narrow in gone or self.ranges.variables(gap):
                continue
            if nonnegative(gap) and nonnegative(n - k - gap):
                gone.add(wide)
        return [(a, e) for a, e in factors if a not in gone]


def _nonzero(atom: Atom) -> bool:
    return atom.kind == "size" or (atom.kind == "fn" and atom.data[0] == "exp")


def _shift(factor: tuple[Atom, Rational]) -> bool:
    atom = factor[0]
    return atom.kind == "over" or (atom.kind == "elem" and bool(atom.data[1]))


def _sums(p: Poly) -> bool:
    """Whether there are bound variables at its top."""
    return any(m.bound for m, _ in p)
