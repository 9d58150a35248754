"""Symbolic integers: polynomials with integer coefficients over named unknowns.

A dimension is an `int` or an `Expr`. Two equal expressions denote the same number on every run;
two different ones may or may not. An unknown whose name starts with `~` may be negative, every
other one is the size of some axis and so at least 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = [
    "Dim",
    "Expr",
    "capped",
    "clean_name",
    "floordiv",
    "maximum",
    "minimum",
    "nonnegative",
    "positive",
    "symbol",
]

#: A monomial is the sorted tuple of its unknowns, with repetition; () is the constant term.
_Terms = tuple[tuple[tuple[str, ...], int], ...]


class Expr:
    """A polynomial that is not a plain integer. Immutable; equal and hashed by its terms."""

    __slots__ = ("_atoms", "_hash", "terms")

    _atoms: frozenset[str] | None

    def __init__(self, terms: _Terms) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._atoms = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim) -> Dim:
        sums = dict(self.terms)
        for monomial, k in _terms(other):
            sums[monomial] = sums.get(monomial, 0) + k
        return _make(sums)

    def __mul__(self, other: Dim) -> Dim:
        sums: dict[tuple[str, ...], int] = {}
        for a, j in self.terms:
            for b, k in _terms(other):
                monomial = tuple(sorted(a + b))
                sums[monomial] = sums.get(monomial, 0) + j * k
        return _make(sums)

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (other * -1)

    def __rsub__(self, other: int) -> Dim:
        return -self + other

    __radd__, __rmul__ = __add__, __mul__

    def __str__(self) -> str:
        text = ""
        for monomial, k in self.terms:
            factors = [*([str(abs(k))] if abs(k) != 1 or not monomial else []), *monomial]
            sign = "-" if k < 0 else "+" if text else ""
            text += sign + "*".join(factors)
        return text

    __repr__ = __str__

    @property
    def atoms(self) -> frozenset[str]:
        """The unknowns it is made of."""
        if self._atoms is None:
            self._atoms = frozenset(a for monomial, _ in self.terms for a in monomial)
        return self._atoms

    @property
    def name(self) -> str | None:
        """Its unknown, if it is nothing but one."""
        plain = len(self.terms) == 1 and self.terms[0][1] == 1 and len(self.terms[0][0]) == 1
        return self.terms[0][0][0] if plain else None

    def at(self, sizes: Mapping[str, int]) -> int | None:
        """Its value where the unknowns have these sizes; None if one has none."""
        total = 0
        for monomial, factor in self.terms:
            for atom in monomial:
                if atom not in sizes:
                    return None
                factor *= sizes[atom]
            total += factor
        return total


Dim = int | Expr


def symbol(name: str) -> Expr:
    """The unknown called `name`."""
    return Expr((((name,), 1),))


def nonnegative(x: Dim) -> bool:
    """Whether `x` is at least 0 on every run, as far as its form shows."""
    if isinstance(x, int):
        return x >= 0
    return all(k >= 0 and not any(a.startswith("~") for a in m) for m, k in x.terms)


def positive(x: Dim) -> bool:
    """Whether `x` is at least 1 on every run, as far as its form shows."""
    return nonnegative(x - 1)


def floordiv(a: Dim, b: Dim) -> Dim | None:
    """Floor(a / b); None for a division by zero."""
    if isinstance(b, int) and b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if a == b:
        return 1
    exact = _divide(_terms(a), _terms(b))
    if exact is not None:
        return exact
    return _opaque(f"floor({a}/{b})", nonnegative(a) and nonnegative(b))


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of the two."""
    if nonnegative(a - b):
        return a
    if nonnegative(b - a):
        return b
    return _opaque("max({},{})".format(*sorted((str(a), str(b)))), nonnegative(a) or nonnegative(b))


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of the two."""
    if nonnegative(a - b):
        return b
    if nonnegative(b - a):
        return a
    both = nonnegative(a) and nonnegative(b)
    return _opaque("min({},{})".format(*sorted((str(a), str(b)))), both)


def capped(x: Dim, by: Dim) -> bool:
    """Whether `x` is min(by, k) for a number k of at least 2."""
    if not isinstance(x, Expr) or len(x.terms) != 1:
        return False
    (monomial, factor) = x.terms[0]
    if factor != 1 or len(monomial) != 1 or not monomial[0].startswith("min("):
        return False
    inner = monomial[0][4:-1]
    for k in (inner.removesuffix(f",{by}"), inner.removeprefix(f"{by},")):
        if k != inner and k.isdecimal():
            return int(k) >= 2
    return False


def clean_name(text: str) -> str:
    """`text` as the name of an unknown that is at least 0."""
    return re.sub(r"[~?*+\s]", "_", text)


def _opaque(text: str, known_nonnegative: bool) -> Expr:
    return symbol(text if known_nonnegative else f"~{text}")


def _divide(a: _Terms, b: _Terms) -> Dim | None:
    """The exact quotient of `a` by a single monomial, or None."""
    if len(b) != 1:
        return None
    monomial, k = b[0]
    quotient: dict[tuple[str, ...], int] = {}
    for m, j in a:
        left = list(m)
        for atom in monomial:
            if atom not in left:
                return None
            left.remove(atom)
        if j % k:
            return None
        quotient[tuple(left)] = j // k
    return _make(quotient)


def _terms(x: Dim) -> _Terms:
    return x.terms if isinstance(x, Expr) else ((((), int(x)),) if x else ())


def _make(sums: Mapping[tuple[str, ...], int]) -> Dim:
    terms = tuple(sorted((m, k) for m, k in sums.items() if k))
    if not terms:
        return 0
    if len(terms) == 1 and terms[0][0] == ():
        return terms[0][1]
    return Expr(terms)
