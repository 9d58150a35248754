"""Equality of polynomials whose constants were folded: coefficients compared as arrays.

Terms are matched by what they do to values that are no constants; what multiplies them is then the
same number for every index, up to the rounding of a constant that was stored anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from graphopt.analyses.shapes.symbolic import Dim, symbol
from graphopt.proving.polynomials import Atom, Monomial, Poly, Rational, Unprovable
from graphopt.proving.rounding import SINGLE, Precision
from graphopt.proving.scalars import Algebra
from graphopt.proving.terms import Term

__all__ = ["Comparer"]

Array = np.ndarray[Any, Any]

#: Coefficients compared in one go.
MOST = 1 << 22


class _Part(NamedTuple):
    """A monomial split: what is constant, and what is not."""

    factor: float | Rational
    constants: tuple[tuple[Atom, Rational], ...]
    rest: Monomial
    bound: tuple[tuple[str, Dim], ...]


class Comparer:
    """Compares polynomials of one algebra; `stored` is the precision of constants stored anew."""

    def __init__(
        self, algebra: Algebra, terms: Mapping[int, Term], stored: Precision = SINGLE
    ) -> None:
        self.algebra = algebra
        self.terms = terms
        self.rounding, self.least = stored.slack * stored.unit, stored.least
        self._names: dict[str, str] = {}

    def equal(self, p: Poly, q: Poly) -> bool:
        """Whether p = q for every value of what is no constant, constants up to rounding."""
        found = self.ratio(p, q)
        return found is not None and abs(found - 1) <= self.rounding

    def ratio(self, p: Poly, q: Poly) -> float | None:
        """The number r with p = r q; None if there is none."""
        if p == q:
            return 1.0
        left, right = self._grouped(p), self._grouped(q)
        if left.keys() != right.keys():
            left, right = self._nonzero(left), self._nonzero(right)
        if left.keys() != right.keys():
            return None
        found: float | None = None
        for text, parts in left.items():
            here = self._times(parts, right[text], found)
            if here is None:
                return None
            found = here if found is None else found
        return found

    def _nonzero(self, groups: dict[str, list[_Part]]) -> dict[str, list[_Part]]:
        """Groups whose coefficients are not all zero."""
        return {k: g for k, g in groups.items() if self._times(g, [], 1.0) is None}

    # --- matching ----------------------------------------------------------------------------

    def _grouped(self, p: Poly) -> dict[str, list[_Part]]:
        groups: dict[str, list[_Part]] = {}
        for m, k in p:
            part = self._split(m, k)
            groups.setdefault(self._skeleton(part), []).append(part)
        return groups

    def _split(self, m: Monomial, k: Rational) -> _Part:
        fixed = [(a, e) for a, e in m.factors if self.fixed(a)]
        rest = [(a, e) for a, e in m.factors if not self.fixed(a)]
        used: set[str] = set()
        for atom, _ in rest:
            used |= atom.free
        inner = tuple((n, s) for n, s in m.bound if n in used)
        outer = tuple((n, s) for n, s in m.bound if n not in used)
        # named anew by what is no constant alone, so that both sides agree
        names = {n for n, _ in inner}
        bare = Monomial(inner, tuple(rest))
        order = self.algebra.ordered(bare) if len(names) > 1 else [n for n, _ in inner]
        sizes = dict(inner)
        level = 1 + max((a.level for a, _ in rest), default=0)  # apart from those inside of them
        away = {n: f"#c{level}_{j}_{sizes[n]}" for j, n in enumerate(order)}
        for n, new in away.items():
            self.algebra.ranges.sizes[new] = sizes[n]
        values = {n: symbol(new) for n, new in away.items()}
        rename = self.algebra.renamed_atom
        return _Part(
            k,
            tuple((rename(a, values), e) for a, e in fixed),
            Monomial(
                tuple((away[n], sizes[n]) for n in order),
                tuple((rename(a, values), e) for a, e in rest),
            ),
            outer,
        )

    def fixed(self, atom: Atom) -> bool:
        """Whether an atom is made of constants, and of indices of known ranges."""
        if atom.kind == "elem":
            return bool(atom.data[1])
        if atom.kind in ("in", "index"):
            e = atom.index[0]
            sizes = self.algebra.ranges.sizes
            known = all(isinstance(sizes[v], int) for v in self.algebra.ranges.variables(e))
            return known and all(isinstance(d, int) or d.atoms <= sizes.keys() for d in atom.index)
        if atom.kind == "base" or (atom.kind == "fn" and atom.data == ("exp",)):
            return all(self.fixed(a) for m, _ in atom.polys[0] for a, _ in m.factors)
        return False

    def _skeleton(self, part: _Part) -> str:
        """What is no constant, constants inside of functions left out."""
        factors = sorted(f"{self._bare(a)}^{e}" for a, e in part.rest.factors)
        return f"{part.rest.bound}:{factors}"

    def _bare(self, atom: Atom) -> str:
        """Its text; of a function a name for it, since texts in texts would double in length."""
        if not atom.polys:
            return atom.text
        inner = [sorted(set(self._grouped(p))) for p in atom.polys]
        text = f"{atom.kind}{atom.data}{atom.index}{atom.bound}{inner}"
        return self._names.setdefault(text, f"@{len(self._names)}")

    def _times(
        self, parts: Sequence[_Part], others: Sequence[_Part], expected: float | None
    ) -> float | None:
        """r where terms of one skeleton sum to r times the others; it must be as expected."""
        first = (*parts, *others)[0]
        sides: list[list[_Part]] = []
        for side in (parts, others):
            sides.append([])
            for part in side:
                r = self._product_ratio(part.rest, first.rest)
                if r is None:
                    return None
                sides[-1].append(part._replace(factor=float(part.factor) * r))
        return self._coefficients(sides[0], sides[1], expected)

    def _product_ratio(self, a: Monomial, b: Monomial) -> float | None:
        """r with a = r b, functions in them compared by their arguments."""
        if a == b:
            return 1.0
        one, two = (sorted(m.factors, key=lambda f: (self._bare(f[0]), f[1])) for m in (a, b))
        if len(one) != len(two):
            return None
        found = 1.0
        for (x, e), (y, g) in zip(one, two, strict=True):
            if e != g or len(x.polys) != len(y.polys):
                return None
            if x is y:
                continue
            if (x.kind, x.data, x.index, x.bound) != (y.kind, y.data, y.index, y.bound):
                return None
            ratios = [self.ratio(p, q) for p, q in zip(x.polys, y.polys, strict=True)]
            if not ratios or None in ratios:
                return None
            if x.kind == "base":
                (r,) = ratios
                if r is None or (r < 0 and e.denominator != 1):
                    return None
                found *= r ** float(e)
            elif any(abs(r - 1) > self.rounding for r in ratios if r is not None):
                return None
        return found

    # --- numbers -----------------------------------------------------------------------------

    def _coefficients(
        self, parts: Sequence[_Part], others: Sequence[_Part], expected: float | None
    ) -> float | None:
        """r with the one side's coefficients r times the other's, for every index.

        What is 0 on both sides outside of the same range need not be equal there, but mostly is.
        """
        found = self._compared(*_without_common(parts, others, ranges=True), expected)
        if found is not None or not any(a.kind == "in" for p in parts for a, _ in p.constants):
            return found
        return self._compared(*_without_common(parts, others, ranges=False), expected)

    def _compared(
        self, parts: Sequence[_Part], others: Sequence[_Part], expected: float | None
    ) -> float | None:
        names: dict[str, int] = {}
        for part in (*parts, *others):
            for atom, _ in part.constants:
                for v in atom.free - {n for n, _ in part.bound}:
                    size = self.algebra.ranges.sizes[v]
                    if not isinstance(size, int):
                        return None
                    names[v] = size
        order = sorted(names)
        summed = [math.prod(s for _, s in p.bound if isinstance(s, int)) for p in (*parts, *others)]
        if math.prod(names.values()) * max(summed) > MOST:
            raise Unprovable("too many coefficients to compare")
        grid = {
            n: np.arange(names[n]).reshape([-1 if j == k else 1 for j in range(len(order))])
            for k, n in enumerate(order)
        }
        alone = [side[0] for side in (parts, others) if len(side) == 1 and not side[0].bound]
        if len(alone) == 2 and self._close(*(self._exponent(part, grid) for part in alone)):
            parts, others = ([_without_exponentials(part)] for part in alone)
        a, size_a = self._total(parts, grid)
        b, size_b = self._total(others, grid)
        r = expected
        if r is None:
            a, b = np.broadcast_arrays(a, b)
            at = int(np.argmax(np.abs(b)))
            top, bottom = float(a.flat[at]), float(b.flat[at])
            if not bottom or not top:
                return None
            r = top / bottom
        with np.errstate(invalid="ignore"):  # infinities are equal or not
            allowed = self.rounding * np.maximum(size_a, abs(r) * size_b) + self.least
            same = (a == r * b) | (np.abs(a - r * b) <= allowed) & np.isfinite(allowed)
        return r if bool(same.all()) else None

    def _close(self, a: Array, b: Array) -> bool:
        """Whether numbers agree up to rounding, infinities exactly."""
        with np.errstate(invalid="ignore"):
            near = np.abs(a - b) <= self.rounding * (1 + np.abs(a))
            same = (a == b) | (near & np.isfinite(a) & np.isfinite(b))
        return bool(same.all())

    def _total(self, parts: Sequence[_Part], grid: dict[str, Array]) -> tuple[Array, Array]:
        """The sum of coefficients on the grid, and of their magnitudes."""
        total, size = np.zeros(()), np.zeros(())
        rank = len(grid)
        for part in parts:
            own = dict(grid)
            extra = [(n, s) for n, s in part.bound]
            for j, (n, s) in enumerate(extra):
                if not isinstance(s, int):
                    raise Unprovable("a sum of constants over an unknown size")
                own[n] = np.arange(s).reshape(
                    [-1 if i == rank + j else 1 for i in range(rank + len(extra))]
                )
            own = {
                n: g.reshape(g.shape + (1,) * (rank + len(extra) - g.ndim)) for n, g in own.items()
            }
            value = np.full((1,) * (rank + len(extra)), float(part.factor))
            for atom, e in part.constants:
                with np.errstate(invalid="ignore"):  # 0 of infinity agrees with nothing
                    value = value * _power(self.number(atom, own), e)
            if not extra:
                found, magnitude = value, np.abs(value)
            else:
                axes = tuple(range(rank, rank + len(extra)))
                wide = np.broadcast_to(
                    value,
                    value.shape[:rank] + tuple(int(s) for _, s in extra),  # type: ignore[arg-type]
                )
                found, magnitude = wide.sum(axes), np.abs(wide).sum(axes)
            total = total + found
            size = size + magnitude
        return total, size

    def _exponent(self, part: _Part, grid: Mapping[str, Array]) -> Array:
        """What stands in the exponentials of a part: they themselves may vanish."""
        total: Array = np.zeros(())
        for atom, e in part.constants:
            if _exponential(atom):
                total = total + self._sum(atom, grid) * float(e)
        return total

    def number(self, atom: Atom, grid: Mapping[str, Array]) -> Array:
        """A constant atom for every assignment of its variables."""
        ranges = self.algebra.ranges
        if atom.kind == "elem":
            array = self.terms[atom.data[0]].array()
            at = [
                np.clip(ranges.values(e, grid), 0, n - 1)
                for e, n in zip(atom.index, array.shape, strict=True)
            ]
            return np.asarray(array[tuple(np.broadcast_arrays(*at))], np.float64)
        if atom.kind == "in":
            e = ranges.values(atom.index[0], grid)
            return ((e >= 0) & (e < ranges.values(atom.index[1], grid))).astype(np.float64)
        if atom.kind == "index":
            return ranges.values(atom.index[0], grid).astype(np.float64)
        total = self._sum(atom, grid)
        if not _exponential(atom):
            return total
        with np.errstate(over="ignore"):
            made: Array = np.exp(total)
        if (np.isfinite(total) & ((made == 0) | np.isinf(made))).any():
            raise Unprovable("a constant exponential that vanishes")
        return made

    def _sum(self, atom: Atom, grid: Mapping[str, Array]) -> Array:
        """The polynomial of constants inside of an atom."""
        total: Array = np.zeros(())
        for m, k in atom.polys[0]:
            if m.bound:
                raise Unprovable("a sum inside of a constant")
            value: Array = np.full((), float(k))
            for inner, power in m.factors:
                value = value * _power(self.number(inner, grid), power)
            total = total + value
        return total


def _exponential(atom: Atom) -> bool:
    return atom.kind == "fn" and atom.data == ("exp",)


def _without_exponentials(part: _Part) -> _Part:
    return part._replace(constants=tuple(c for c in part.constants if not _exponential(c[0])))


def _power(x: Array, e: Rational) -> Array:
    """Not finite where there is no such power, which agrees with nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return x if e == 1 else x ** float(e)


def _without_common(
    parts: Sequence[_Part], others: Sequence[_Part], ranges: bool
) -> tuple[Sequence[_Part], Sequence[_Part]]:
    """Both sides without what multiplies every term of them; indicators only with `ranges`."""
    if not parts or not others:
        return parts, others
    common = set.intersection(*(set(p.constants) for p in (*parts, *others)))
    bound = {n for p in (*parts, *others) for n, _ in p.bound}
    common = {(a, e) for a, e in common if (ranges or a.kind != "in") and not (a.free & bound)}
    if not common:
        return parts, others

    def left(part: _Part) -> _Part:
        return part._replace(constants=tuple(c for c in part.constants if c not in common))

    return [left(p) for p in parts], [left(p) for p in others]
