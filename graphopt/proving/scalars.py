"""Scalar normal form: sums of products over tensor elements, for every index at once.

An element of a tensor is a polynomial: a sum of terms `c * sum over bound variables of a product of
powers of atoms`. Atoms are elements of leaf tensors, functions of polynomials (exp, tanh, a maximum
over an axis), indicators of an index range, and sizes. Bound variables are renamed by what they do,
so equal terms are equal as data: normalizing decides equality of everything linear, and everything
else by congruence. Arithmetic is that of the real numbers; constants are the stored floats.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from graphopt.analyses.shapes.symbolic import Dim, Expr, nonnegative, symbol
from graphopt.proving.indices import Ranges

__all__ = ["Algebra", "Atom", "Poly", "Rational", "TooLarge", "Unprovable", "written"]

#: More terms than this in one polynomial, and nothing is proved here.
MOST_TERMS = 64
#: Bound variables that look alike are told apart by trying every order, up to this many.
MOST_ORDERS = 24


#: An exact number: an `int` where it is whole, which computes sooner.
Rational = Fraction | int


class Unprovable(Exception):
    """The normal form does not know this operator, or its sizes do not show enough."""


class TooLarge(Unprovable):
    """A polynomial outgrew what is worth computing."""


@dataclasses.dataclass(eq=False, slots=True)
class Atom:
    """A factor: `kind` with its parameters, indices and polynomials; equal ones are one object.

    Kinds: "elem" (a leaf's element), "fn" (a function of polynomials), "base" (a polynomial raised
    to a power), "over" (a maximum or minimum over bound variables), "in" (1 where an index lies in
    a range, else 0), "size" and "index" (a number that is a size or an index).

    Attributes:
        free: index variables in it that nothing in it binds.
        level: how deep bound variables nest in it.
        text: names it, for a fixed order.
    """

    kind: str
    data: tuple[Any, ...]
    index: tuple[Dim, ...]
    polys: tuple[Poly, ...]
    bound: tuple[tuple[str, Dim], ...]
    free: frozenset[str]
    level: int
    text: str = ""


class Monomial(NamedTuple):
    """sum over `bound` of the product of atoms to their powers."""

    bound: tuple[tuple[str, Dim], ...]
    factors: tuple[tuple[Atom, Rational], ...]


#: A polynomial: monomials in a fixed order, each with its factor.
Poly = tuple[tuple[Monomial, Rational], ...]

ONE = Monomial((), ())


class Algebra:
    """Polynomials over the index variables of one comparison."""

    def __init__(self) -> None:
        self.ranges = Ranges()
        self._atoms: dict[Any, Atom] = {}
        self._renamings: dict[Any, Atom] = {}
        self._texts: dict[Any, str] = {}
        self._canonicals: dict[Monomial, Monomial] = {}
        self._count = 0
        #: What cancelled, was multiplied by 0 or lost its root or inverse: it may be infinite or no
        #: number.
        self.vanished: set[Poly] = set()

    # --- making -----------------------------------------------------------------------------

    def number(self, x: float | Rational) -> Poly:
        """A constant, exactly."""
        return ((ONE, _exact(x)),) if x else ()

    def made(
        self,
        kind: str,
        data: tuple[Any, ...] = (),
        index: tuple[Dim, ...] = (),
        polys: tuple[Poly, ...] = (),
        bound: tuple[tuple[str, Dim], ...] = (),
    ) -> Atom:
        """The atom of these parts."""
        key = (kind, data, index, polys, bound)
        atom = self._atoms.get(key)
        if atom is None:
            free: set[str] = set()
            for e in index:
                free |= self.ranges.variables(e)
            for p in polys:
                free |= self.free_in(p)
            inner = max(map(_depth, polys), default=0)
            free -= {n for n, _ in bound}
            atom = Atom(*key, frozenset(free), inner + bool(bound))
            atom.text = f"@{len(self._atoms)}"
            self._atoms[key] = atom
        return atom

    def atom(self, atom: Atom, power: Rational = 1) -> Poly:
        """One factor alone."""
        return ((Monomial((), ((atom, _exact(power)),)), 1),)

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
        if _sums(p) and len(q) > 1 and not _constant(q):
            p = self._factor(p)
        elif _sums(q) and len(p) > 1 and not _constant(p):
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
        if (not p or not q) and not _constant(p or q):
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

    def _monic(self, p: Poly) -> Atom:
        """A sum whose first factor is 1, in one atom."""
        return self.made("base", polys=(self.scale(p, Fraction(1) / p[0][1]),))

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
            sizes = self.ranges.parted(self._indices(p), name)
            if sizes is None:
                done.append(name)
                continue
            whole, rest = map(self._fresh, sizes)
            p = self.renamed(p, {name: whole * sizes[1] + rest})
            waiting += [str(v) for v in (whole, rest)]
        return p, done

    def _indices(self, p: Poly) -> list[Dim]:
        """The indices of all atoms in a polynomial."""
        atoms = [a for m, _ in p for a, _ in m.factors]
        found = [e for a in atoms for e in a.index]
        return found + [e for a in atoms for inner in a.polys for e in self._indices(inner)]

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
        level = 1 + _depth(p)
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

    # --- variables --------------------------------------------------------------------------

    def free_in(self, p: Poly) -> set[str]:
        """Index variables of a polynomial that nothing in it binds."""
        found: set[str] = set()
        for m, _ in p:
            inside: set[str] = set()
            for atom, _ in m.factors:
                inside |= atom.free
            found |= inside - {n for n, _ in m.bound}
        return found

    def renamed(self, p: Poly, values: Mapping[str, Dim]) -> Poly:
        """`p` with free index variables replaced."""
        if not values or not (self.free_in(p) & values.keys()):
            return p
        made: dict[Monomial, Rational] = {}
        for m, k in p:
            own = {n for n, _ in m.bound}
            inner = {n: v for n, v in values.items() if n not in own}
            factors = tuple((self.renamed_atom(a, inner), e) for a, e in m.factors)
            new = self._canonical(Monomial(m.bound, factors))
            made[new] = made.get(new, 0) + k
        return self._settled(made)

    def renamed_atom(self, atom: Atom, values: Mapping[str, Dim]) -> Atom:
        """`atom` with free index variables replaced."""
        inner = {n: values[n] for n in atom.free if n in values}
        if not inner:
            return atom
        key = (atom, frozenset(inner.items()))
        made = self._renamings.get(key)
        if made is None:
            made = self._renamings[key] = self.made(
                atom.kind,
                atom.data,
                tuple(self.ranges.substituted(e, inner) for e in atom.index),
                tuple(self.renamed(p, inner) for p in atom.polys),
                atom.bound,
            )
        return made

    def _fresh(self, size: Dim) -> Dim:
        self._count += 1
        return self.ranges.variable(size, f"#t{self._count}")

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

    def _settled(self, made: Mapping[Monomial, Rational]) -> Poly:
        """Monomials in canonical form and order, those that cancel left out."""
        out: dict[Monomial, Rational] = {}
        for m, k in made.items():
            m = self._canonical(m)
            out[m] = out.get(m, 0) + k
        found = [(m, k) for m, k in out.items() if k]
        gone = (((m, Fraction(1)),) for m, k in out.items() if not k)
        self.vanished.update(p for p in gone if not _constant(p))
        if len(found) > MOST_TERMS:
            raise TooLarge("a sum is too long")
        if len(found) > 1:
            found.sort(key=lambda item: written(item[0]))
        return tuple(found)

    # --- canonical names --------------------------------------------------------------------

    def _canonical(self, m: Monomial) -> Monomial:
        """Bound variables named by what they do, factors in a fixed order."""
        made = self._canonicals.get(m)
        if made is None:
            made = self._canonicals[m] = self._renamed_bound(m)
            self._canonicals[made] = made
        return made

    def _renamed_bound(self, m: Monomial) -> Monomial:
        if m.bound:
            level = 1 + max((a.level for a, _ in m.factors), default=0)
            names = self.ordered(m)
            sizes = dict(m.bound)
            wanted = [f"#{level}_{k}_{sizes[n]}" for k, n in enumerate(names)]
            if wanted != [n for n, _ in m.bound]:
                self.ranges.sizes.update({w: sizes[n] for w, n in zip(wanted, names, strict=True)})
                values = {n: symbol(w) for n, w in zip(names, wanted, strict=True)}
                factors = tuple((self.renamed_atom(a, values), e) for a, e in m.factors)
                bound = tuple((w, sizes[n]) for w, n in zip(wanted, names, strict=True))
                m = Monomial(bound, factors)
        if len(m.factors) < 2:
            return m
        order = sorted(m.factors, key=lambda item: (item[0].text, item[1]))
        return Monomial(m.bound, tuple(order))

    def ordered(self, m: Monomial) -> list[str]:
        """The bound variables in the order that makes the monomial's text least."""
        names = [n for n, _ in m.bound]
        sizes = dict(m.bound)
        if len(names) == 1:
            return names

        def role(name: str) -> str:
            marks = {n: "$" if n == name else "_" for n in names}
            parts = sorted(f"{self._text(a, marks)}^{e}" for a, e in m.factors)
            return f"{sizes[name]}:{parts}"

        roles = {n: role(n) for n in names}
        names.sort(key=lambda n: roles[n])
        groups = [list(g) for _, g in itertools.groupby(names, key=lambda n: roles[n])]
        if all(len(g) == 1 for g in groups):
            return names
        orders: Iterable[tuple[tuple[str, ...], ...]] = itertools.product(
            *(itertools.permutations(g) for g in groups)
        )
        best: tuple[list[str], list[str]] | None = None
        for order in itertools.islice(orders, MOST_ORDERS):
            flat = [n for g in order for n in g]
            marks = {n: f"${k}" for k, n in enumerate(flat)}
            parts = sorted(f"{self._text(a, marks)}^{e}" for a, e in m.factors)
            if best is None or parts < best[0]:
                best = (parts, flat)
        assert best is not None
        return best[1]

    def _text(self, atom: Atom, marks: Mapping[str, str]) -> str:
        """An atom with some of its free variables written as marks."""
        inner = tuple((n, mark) for n, mark in marks.items() if n in atom.free)
        if not inner:
            return atom.text
        made = self._texts.get((atom, inner))
        if made is None:
            made = self._texts[atom, inner] = self._rendered(atom, dict(inner))
        return made

    def _rendered(self, x: Atom, marks: Mapping[str, str]) -> str:
        index = ",".join(_marked(e, marks) for e in x.index)
        polys = ";".join(
            "+".join(
                f"{k}*S{_bound(m.bound)}"
                + ".".join(f"{self._text(a, marks)}^{e}" for a, e in m.factors)
                for m, k in p
            )
            for p in x.polys
        )
        return f"{x.kind}{x.data}[{index}]({polys}){_bound(x.bound)}"


def _exact(x: float | Rational) -> Rational:
    exact = Fraction(x)
    return exact.numerator if exact.denominator == 1 else exact


def _nonzero(atom: Atom) -> bool:
    return atom.kind == "size" or (atom.kind == "fn" and atom.data[0] == "exp")


def _shift(factor: tuple[Atom, Rational]) -> bool:
    atom = factor[0]
    return atom.kind == "over" or (atom.kind == "elem" and bool(atom.data[1]))


def _depth(p: Poly) -> int:
    """How deep bound variables nest in a polynomial."""
    return max((a.level + bool(m.bound) for m, _ in p for a, _ in m.factors), default=0)


def _sums(p: Poly) -> bool:
    """Whether there are bound variables at its top."""
    return any(m.bound for m, _ in p)


def _constant(p: Poly) -> bool:
    """Whether it is made of constants' elements alone."""
    return all(a.kind == "elem" and a.data[1] for m, _ in p for a, _ in m.factors)


def written(m: Monomial) -> str:
    """A monomial as text, for a fixed order."""
    return _bound(m.bound) + ".".join(f"{a.text}^{e}" for a, e in m.factors)


def _bound(pairs: tuple[tuple[str, Dim], ...]) -> str:
    return "{" + ",".join(f"{n}<{s}" for n, s in pairs) + "}" if pairs else ""


def _marked(e: Dim, marks: Mapping[str, str]) -> str:
    text = str(e)
    if not marks:
        return text
    for name, mark in sorted(marks.items(), key=lambda item: -len(item[0])):
        text = text.replace(name, mark)
    return text
