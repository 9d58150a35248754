"""Polynomials over tensor elements as data: atoms, monomials, and exact coefficients.

A polynomial is a sum of terms `c * sum over bound variables of a product of powers of atoms`; equal
ones are equal as data once `canonical` has named their bound variables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from graphopt.analyses.shapes.symbolic import Dim

__all__ = [
    "ONE", "Atom", "Monomial", "Poly", "Rational", "TooLarge", "Unprovable", "bound_text",
    "constant", "depth", "exact", "marked", "written",
]  # fmt: skip

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


def exact(x: float | Rational) -> Rational:
    """A number as it is stored."""
    exact = Fraction(x)
    return exact.numerator if exact.denominator == 1 else exact


def depth(p: Poly) -> int:
    """How deep bound variables nest in a polynomial."""
    return max((a.level + bool(m.bound) for m, _ in p for a, _ in m.factors), default=0)


def constant(p: Poly) -> bool:
    """Whether it is made of constants' elements alone."""
    return all(a.kind == "elem" and a.data[1] for m, _ in p for a, _ in m.factors)


def written(m: Monomial) -> str:
    """A monomial as text, for a fixed order."""
    return bound_text(m.bound) + ".".join(f"{a.text}^{e}" for a, e in m.factors)


def bound_text(pairs: tuple[tuple[str, Dim], ...]) -> str:
    """Bound variables and their sizes as text, "" of none."""
    return "{" + ",".join(f"{n}<{s}" for n, s in pairs) + "}" if pairs else ""


def marked(e: Dim, marks: Mapping[str, str]) -> str:
    """An index as text, some of its variables written as marks."""
    text = str(e)
    if not marks:
        return text
    for name, mark in sorted(marks.items(), key=lambda item: -len(item[0])):
        text = text.replace(name, mark)
    return text
