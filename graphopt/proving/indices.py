"""Index arithmetic: affine expressions of index variables, floor division, modulo, mirrored ranges.

An index is a `Dim`: an integer or a polynomial over sizes and index variables. Each variable runs
from 0 to its size less one, so a sum like `64 i + j` with j below 64 divides by 64 exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from graphopt.analyses.shapes.symbolic import Dim, Expr, nonnegative, symbol

__all__ = ["Ranges", "reshaped"]

Array = np.ndarray[Any, Any]


class Ranges:
    """Index variables and the number of values each may take."""

    def __init__(self) -> None:
        self.sizes: dict[str, Dim] = {}
        #: What has no simpler form: its kind ("floor", "mod" or a mode of padding), and of what.
        self._parts: dict[str, tuple[str, Dim, Dim]] = {}

    def variable(self, size: Dim, name: str = "") -> Dim:
        """A new variable below `size` (0 itself where nothing else is possible)."""
        if size == 1:
            return 0
        name = name or f"#{len(self.sizes)}"
        self.sizes[name] = size
        return symbol(name)

    def bounds(self, e: Dim) -> tuple[Dim, Dim] | None:
        """The least and the largest value of `e`, or None where its form does not show them."""
        if isinstance(e, int):
            return e, e
        low: Dim = 0
        high: Dim = 0
        for monomial, k in e.terms:
            inside = [a for a in monomial if a in self.sizes]
            rest = prod((symbol(a) for a in monomial if a not in self.sizes), start=1)
            if len(inside) > 1 or not nonnegative(rest):
                return None
            most = rest * abs(k) * ((self.sizes[inside[0]] - 1) if inside else 1)
            if not inside:
                low, high = low + rest * k, high + rest * k
            elif k > 0:
                high = high + most
            else:
                low = low - most
        return low, high

    def within(self, e: Dim, size: Dim) -> bool | None:
        """Whether 0 <= e < size: always, never, or (None) it depends."""
        found = self.bounds(e)
        if found is None:
            return None
        low, high = found
        if nonnegative(low) and nonnegative(size - 1 - high):
            return True
        if nonnegative(low - size) or nonnegative(-1 - high):
            return False
        return None

    def divide(self, e: Dim, by: Dim) -> Dim:
        """Floor(e / by) for e at least 0."""
        return self._divided(e, by)[0]

    def modulo(self, e: Dim, by: Dim) -> Dim:
        """The rest of e / by for e at least 0."""
        return self._divided(e, by)[1]

    def _divided(self, e: Dim, by: Dim) -> tuple[Dim, Dim]:
        if by == 1:
            return e, 0
        whole, rest = _split(e, by)
        if self.within(rest, by):
            return whole, rest
        shared = self._shared(rest, by)
        if shared is not None:
            g, a, r, parts = shared
            inner, left = self._divided(a, parts)
            return whole + inner, left * g + r
        if isinstance(rest, Expr) and rest.name in self._parts:
            kind, dividend, divisor = self._parts[rest.name]
            if kind == "floor":
                inner = self._opaque("floor", dividend, divisor * by)
                return whole + inner, rest - inner * by
            times, over = _split(divisor, by)
            if (
                kind == "mod" and over == 0 and times not in (0, 1)
            ):  # the rest of a quotient, not the other way
                inner, left = self._divided(dividend, by)
                return whole + self.modulo(inner, times), left
        return whole + self._opaque("floor", rest, by), self._opaque("mod", rest, by)

    def _shared(self, e: Dim, by: Dim) -> tuple[Dim, Dim, Dim, Dim] | None:
        """(g, a, r, by / g) with e = g a + r, 0 <= r < g and g | by: a alone decides e / by."""
        if not isinstance(e, Expr):
            return None
        for g in self._strides(e):
            left, over = _split(by, g)
            if over != 0 or left in (0, 1):
                continue
            a, r = _split(e, g)
            if a != 0 and self.within(r, g):
                return g, a, r, left
        return None

    def _strides(self, e: Expr) -> list[Dim]:
        """What index variables are multiplied by in `e`, the largest first."""
        found: dict[Dim, None] = {}
        for monomial, k in sorted(e.terms, key=lambda t: (-len(t[0]), -abs(t[1]))):
            g = prod((symbol(a) for a in monomial if a not in self.sizes), start=abs(k))
            if g != 1:
                found[g] = None
        return list(found)

    def parted(self, es: Sequence[Dim], name: str) -> tuple[Dim, Dim] | None:
        """(n, d) where a variable below n d is divided by d in one of the indices `es`."""
        found = [
            divisor
            for atom, (kind, dividend, divisor) in self._parts.items()
            if kind in ("floor", "mod")
            and dividend == symbol(name)
            and any(isinstance(e, Expr) and atom in e.atoms for e in es)
        ]
        for d in sorted(found, key=str):
            n, rest = _split(self.sizes[name], d)
            if rest == 0 and n not in (0, 1):
                return n, d
        return None

    def padded(self, mode: str, e: Dim, size: Dim) -> Dim:
        """The position below `size` that padding of a mode puts where `e` is none."""
        if size == 1:
            return 0
        if self.within(e, size):
            return e
        if isinstance(e, int) and isinstance(size, int):
            return int(_PADDED[mode](np.asarray(e), np.asarray(size)))
        return self._opaque(mode, e, size)

    def _opaque(self, kind: str, e: Dim, by: Dim) -> Dim:
        name = f"#{kind}[{e}|{by}]"
        self._parts[name] = (kind, e, by)
        found = self.bounds(e)
        if kind != "floor":
            self.sizes[name] = by
        elif found is not None and isinstance(found[1], int) and isinstance(by, int):
            self.sizes[name] = found[1] // by + 1
        else:
            self.sizes[name] = (found[1] if found else e) + 1
        return symbol(name)

    def joined(self, e: Dim) -> Dim:
        """`e` with floor(a / d) d + a mod d written as a."""
        if isinstance(e, int):
            return e
        for monomial, k in e.terms:
            for atom in monomial:
                kind, dividend, divisor = self._parts.get(atom, ("", 0, 0))
                if kind != "mod":
                    continue
                others = list(monomial)
                others.remove(atom)
                factor = prod((symbol(a) for a in others), start=k)
                quotient = symbol(f"#floor[{dividend}|{divisor}]")
                rest = e - factor * symbol(atom) - factor * quotient * divisor
                if isinstance(rest, int) or quotient.name not in rest.atoms:
                    return self.joined(rest + factor * dividend)
        return e

    def substituted(self, e: Dim, values: Mapping[str, Dim]) -> Dim:
        """`e` with index variables replaced, inside of quotients and the like too."""
        if isinstance(e, int):
            return e
        total: Dim = 0
        for monomial, k in e.terms:
            product: Dim = k
            for atom in monomial:
                product = product * self._replaced(atom, values)
            total = total + product
        return total

    def _replaced(self, atom: str, values: Mapping[str, Dim]) -> Dim:
        if atom in values:
            return values[atom]
        if atom not in self._parts:
            return symbol(atom)
        kind, dividend, divisor = self._parts[atom]
        new = self.substituted(dividend, values)
        if new == dividend:
            return symbol(atom)
        if kind in _PADDED:
            return self.padded(kind, new, divisor)
        return self.divide(new, divisor) if kind == "floor" else self.modulo(new, divisor)

    def variables(self, e: Dim) -> set[str]:
        """The index variables in `e`, inside of quotients and the like too."""
        found: set[str] = set()
        for atom in () if isinstance(e, int) else e.atoms:
            if atom in self._parts:
                found |= self.variables(self._parts[atom][1])
            elif atom in self.sizes:
                found.add(atom)
        return found

    def values(self, e: Dim, grid: Mapping[str, Array]) -> Array:
        """`e` for every assignment of its variables; raises KeyError for one not in `grid`."""
        if isinstance(e, int):
            return np.asarray(e)
        total = np.asarray(0)
        for monomial, k in e.terms:
            product = np.asarray(k)
            for atom in monomial:
                if atom in self._parts:
                    kind, dividend, divisor = self._parts[atom]
                    x, y = self.values(dividend, grid), self.values(divisor, grid)
                    product = product * _NUMBERS[kind](x, y)
                else:
                    product = product * grid[atom]
            total = total + product
        return total


def _reflected(x: Array, size: Array) -> Array:
    around = x % np.maximum(2 * size - 2, 1)
    mirrored: Array = np.minimum(around, 2 * size - 2 - around)
    return mirrored


_PADDED: dict[str, Callable[[Array, Array], Array]] = {
    "edge": lambda x, size: np.clip(x, 0, size - 1),
    "reflect": _reflected,
    "wrap": np.remainder,
}
_NUMBERS: dict[str, Callable[[Array, Array], Array]] = {
    "floor": np.floor_divide,
    "mod": np.remainder,
    **_PADDED,
}


def _split(e: Dim, by: Dim) -> tuple[Dim, Dim]:
    """(q, r) with e = q by + r, as much in q as shows; `by` is a number or one product."""
    if isinstance(by, Expr) and len(by.terms) != 1:
        return (1, 0) if e == by else (0, e)
    if isinstance(e, int):
        return divmod(e, by) if isinstance(by, int) else (0, e)
    monomial, k = ((), by) if isinstance(by, int) else by.terms[0]
    whole: Dim = 0
    rest: Dim = 0
    for atoms, n in e.terms:
        left = list(atoms)
        for atom in monomial:
            if atom in left:
                left.remove(atom)
            else:
                break
        else:
            q, r = divmod(n, k)
            whole = whole + prod((symbol(a) for a in left), start=q)
            rest = rest + prod((symbol(a) for a in atoms), start=r)
            continue
        rest = rest + prod((symbol(a) for a in atoms), start=n)
    return whole, rest


def reshaped(
    index: Sequence[Dim], new: Sequence[Dim], old: Sequence[Dim], ranges: Ranges
) -> tuple[Dim, ...] | None:
    """The index into shape `old` of the element at `index` of shape `new` (row-major order).

    None where the sizes do not show which axes belong together. Axes of size 1 belong to none.
    """
    long = [(i, d) for i, d in zip(index, new, strict=True) if d != 1]
    short = [d for d in old if d != 1]
    found = _regrouped([i for i, _ in long], [d for _, d in long], short, ranges)
    if found is None:
        return None
    rest = iter(found)
    return tuple(0 if d == 1 else next(rest) for d in old)


def _regrouped(
    index: Sequence[Dim], new: Sequence[Dim], old: Sequence[Dim], ranges: Ranges
) -> list[Dim] | None:
    found: list[Dim] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = i, j
        left: Dim = 1
        right: Dim = 1
        while True:
            if a < len(old) and (a == i or _later(left, right)):
                left = left * old[a]
                a += 1
            elif b < len(new):
                right = right * new[b]
                b += 1
            elif a < len(old):
                left = left * old[a]
                a += 1
            else:
                break
            if left == right and a > i and b > j:
                break
        if left != right and not (a == len(old) and b == len(new)):
            return None  # all that is left holds as many elements on either side
        found += _group(index[j:b], new[j:b], old[i:a], ranges)
        i, j = a, b
    return found


def _later(left: Dim, right: Dim) -> bool:
    """Whether the next axis is to be taken from the old shape."""
    return isinstance(left, int) and isinstance(right, int) and left < right


def _group(
    index: Sequence[Dim], new: Sequence[Dim], old: Sequence[Dim], ranges: Ranges
) -> list[Dim]:
    if len(old) == 1 and len(new) == 1:
        return [index[0]]
    line: Dim = 0
    for at, size in zip(index, new, strict=True):
        line = line * size + at
    line = ranges.joined(line)
    parts: list[Dim] = []
    for size in reversed(old[1:]):
        parts.append(ranges.modulo(line, size))
        line = ranges.divide(line, size)
    return [line, *reversed(parts)]
