"""Canonical names of bound variables: polynomials that do the same are equal as data.

Atoms are interned; bound variables are named by how deep they nest, their order and their size, in
the order that makes a monomial's text least.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from graphopt.analyses.shapes.symbolic import Dim, symbol
from graphopt.proving.indices import Ranges
from graphopt.proving.polynomials import (
    Atom,
    Monomial,
    Poly,
    Rational,
    TooLarge,
    bound_text,
    constant,
    depth,
    marked,
    written,
)  # fmt: skip

__all__ = ["MOST_TERMS", "Canonical"]

#: More terms than this in one polynomial, and nothing is proved here.
MOST_TERMS = 64
#: Bound variables that look alike are told apart by trying every order, up to this many.
MOST_ORDERS = 24


class Canonical:
    """The atoms of one comparison, and polynomials whose bound variables have canonical names."""

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
            inner = max(map(depth, polys), default=0)
            free -= {n for n, _ in bound}
            atom = Atom(*key, frozenset(free), inner + bool(bound))
            atom.text = f"@{len(self._atoms)}"
            self._atoms[key] = atom
        return atom

    def _settled(self, made: Mapping[Monomial, Rational]) -> Poly:
        """Monomials in canonical form and order, those that cancel left out."""
        out: dict[Monomial, Rational] = {}
        for m, k in made.items():
            m = self._canonical(m)
            out[m] = out.get(m, 0) + k
        found = [(m, k) for m, k in out.items() if k]
        gone = (((m, Fraction(1)),) for m, k in out.items() if not k)
        self.vanished.update(p for p in gone if not constant(p))
        if len(found) > MOST_TERMS:
            raise TooLarge("a sum is too long")
        if len(found) > 1:
            found.sort(key=lambda item: written(item[0]))
        return tuple(found)

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

        carried = [(a, e, tuple(n for n in names if n in a.free)) for a, e in m.factors]
        plain = [f"{self._marked(a, tuple((n, '_') for n in own))}^{e}" for a, e, own in carried]

        def role(name: str) -> str:
            parts = list(plain)
            for k, (a, e, own) in enumerate(carried):
                if name in own:
                    inner = tuple((n, "$" if n == name else "_") for n in own)
                    parts[k] = f"{self._marked(a, inner)}^{e}"
            parts.sort()
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
        return self._marked(atom, tuple((n, mark) for n, mark in marks.items() if n in atom.free))

    def _marked(self, atom: Atom, inner: tuple[tuple[str, str], ...]) -> str:
        """An atom with these of its free variables written as marks."""
        if not inner:
            return atom.text
        made = self._texts.get((atom, inner))
        if made is None:
            made = self._texts[atom, inner] = self._rendered(atom, dict(inner))
        return made

    def _rendered(self, x: Atom, marks: Mapping[str, str]) -> str:
        index = ",".join(marked(e, marks) for e in x.index)
        polys = ";".join(
            "+".join(
                f"{k}*S{bound_text(m.bound)}"
                + ".".join(f"{self._text(a, marks)}^{e}" for a, e in m.factors)
                for m, k in p
            )
            for p in x.polys
        )
        return f"{x.kind}{x.data}[{index}]({polys}){bound_text(x.bound)}"
