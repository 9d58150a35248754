"""Sums, products and powers in scalar normal form: multiplied out where that stays short."""

from __future__ import annotations

import itertools
from fractions import Fraction

from graphopt.analyses.shapes.symbolic import nonnegative
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
    exact,
)

__all__ = ["Expansion"]


class Expansion(Canonical):
    """Arithmetic of polynomials whose terms may be sums over index variables."""

    def number(self, x: float | Rational) -> Poly:
        """A constant, exactly."""
        return ((ONE, exact(x)),) if x else ()

    def atom(self, atom: Atom, power: Rational = 1) -> Poly:
        """One factor alone."""
        return ((Monomial((), ((atom, exact(power)),)), 1),)

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
        root = _root(k, e) if e.denominator == 1 else None
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
            exact = e.denominator == 1 or _positive(atom, power)
            (out if free and exact else left).append((atom, power))
            self._undone(atom, power, power * e)
        rational = _root(k, e)
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


def _nonzero(atom: Atom) -> bool:
    return atom.kind == "size" or (atom.kind == "fn" and atom.data[0] == "exp")


def _sums(p: Poly) -> bool:
    """Whether there are bound variables at its top."""
    return any(m.bound for m, _ in p)


def _root(k: Rational, e: Rational) -> Rational | None:
    if e.denominator == 1:
        return Fraction(k) ** int(e)
    return 1 if k == 1 else None


def _positive(atom: Atom, power: Rational) -> bool:
    """Whether (a^p)^e = a^(p e) for every e."""
    if atom.kind == "fn" and atom.data[0] == "exp":
        return True
    return power.denominator != 1
