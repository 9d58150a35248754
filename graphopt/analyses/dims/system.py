"""The system of equations between axes: what operators state and the solver solves.

An axis is a number; what matters of it is its size. Three things can be said:

    same(a, b)            position p of a is position p of b
    part(a, i, b, j)      position i[k] of a is position j[k] of b   (Concat, Split, Slice, Gather)
    merge(a, f1, ..., fn) a is the row-major product of the f's      (Reshape, Flatten, groups)
    freeze(a, reason, p)  the positions p of a (all if None) must stay

An axis of size 1 is broadcasting and no axis at all (`ONE`); one whose size is not a number is
`UNKNOWN`, and whatever is equated with it is frozen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["ONE", "UNKNOWN", "Array", "Freeze", "Merge", "Part", "System"]

Array = np.ndarray[Any, Any]

ONE = -1
UNKNOWN = -2


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Position `at[k]` of `axis` is position `whole_at[k]` of `whole`."""

    axis: int
    at: Array
    whole: int
    whole_at: Array
    order: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """`whole` is the row-major product of `factors`; a position stays if all its factors' stay."""

    whole: int
    factors: tuple[int, ...]
    order: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Freeze:
    """The positions `at` of `axis` (all if None) stay, for `reason`."""

    axis: int
    reason: str
    at: Array | None
    order: int


class System:
    """Axes and what is known about them; `order` numbers equations as they were stated."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.sames: list[tuple[int, int]] = []
        self.parts: list[Part] = []
        self.merges: list[Merge] = []
        self.freezes: list[Freeze] = []
        self._order = 0

    def axis(self, size: int) -> int:
        """A new axis of this size (`ONE` for size 1). Raises ValueError for one below zero."""
        if size == 1:
            return ONE
        if size < 0:
            raise ValueError(f"a size of {size}")
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _next(self) -> int:
        self._order += 1
        return self._order

    def freeze(self, axis: int, reason: str, at: Array | None = None) -> None:
        """The positions `at` (all if None) must stay. Raises IndexError if it has them not."""
        if axis >= 0:
            self._check(axis, at)
            self.freezes.append(Freeze(axis, reason, at, self._next()))

    def _check(self, axis: int, at: Array | None) -> None:
        size = self.sizes[axis]
        if at is not None and at.size and not -size <= at.min() <= at.max() < size:
            raise IndexError(f"positions up to {at.max()} of an axis of {size}")

    def same(self, a: int, b: int) -> None:
        """Position p of `a` is position p of `b`."""
        if a == b:
            return
        if a < 0 or b < 0:
            self.freeze(max(a, b), "it meets an axis of unknown or broadcast size")
        elif self.sizes[a] != self.sizes[b]:
            self.freeze(a, "it meets an axis of another size")
            self.freeze(b, "it meets an axis of another size")
        else:
            self.sames.append((a, b))

    def part(self, axis: int, whole: int, whole_at: Array, at: Array | None = None) -> None:
        """Position `at[k]` (k if None) of `axis` is position `whole_at[k]` of `whole`.

        Raises IndexError if one of them has no such position.
        """
        if whole < 0:
            self.freeze(axis, "it meets an axis of unknown or broadcast size")
        elif axis == ONE:
            self.freeze(whole, "a single position of it is taken by itself", whole_at)
        elif axis < 0:
            self.freeze(whole, "it meets an axis of unknown or broadcast size", whole_at)
        else:
            at = np.arange(self.sizes[axis]) if at is None else at
            self._check(axis, at)
            self._check(whole, whole_at)
            self.parts.append(Part(axis, at, whole, whole_at, self._next()))

    def merge(self, whole: int, factors: Sequence[int]) -> None:
        """`whole` is the row-major product of `factors`."""
        factors = tuple(f for f in factors if f != ONE)
        known = [f for f in factors if f >= 0]
        if len(factors) == 0:
            self.freeze(whole, "it meets an axis of unknown or broadcast size")
        elif len(factors) == 1:
            self.same(whole, factors[0])
        elif whole < 0 or len(known) < len(factors):
            # Unknown sizes may be merged in front of or behind known ones: nothing can move then.
            for axis in (whole, *known):
                self.freeze(axis, "it is merged with an axis of unknown size")
        elif int(np.prod([self.sizes[f] for f in factors])) != self.sizes[whole]:
            for axis in (whole, *factors):
                self.freeze(axis, "it is divided in a way that does not add up")
        else:
            self.merges.append(Merge(whole, factors, self._next()))
