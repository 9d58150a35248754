"""Rows whose number follows from values (boxes found, words said), matched one to one.

Two rows are one where every column agrees: whole numbers exactly, others to a share of how far
they spread, in whichever order; single words and numbers are read in theirs. What has no partner
on the other side is a decision that changed:

    disagreements  =  (n - matched) + (m - matched)        of n + m
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

__all__ = ["counted_axis", "unmatched"]

Array = np.ndarray[Any, Any]
#: The shapes of a run's inputs.
Forms = tuple[tuple[int, ...], ...]
#: Of how far a column spreads, what two rows may differ by.
WITHIN = 0.05
#: Comparisons of one run; beyond, rows are compared in their order.
MOST = 1 << 26


def counted_axis(forms: Sequence[Forms], arrays: Sequence[Array]) -> int | None:
    """The axis that is longer in some runs than in others whose inputs have the same forms."""
    groups: dict[Forms, list[tuple[int, ...]]] = {}
    for form, array in zip(forms, arrays, strict=True):
        if not form:
            return None
        groups.setdefault(form, []).append(np.shape(array))
    odd: set[int] = set()
    for shapes in groups.values():
        if len({len(s) for s in shapes}) > 1:
            return None
        odd |= {k for k, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1}
    return odd.pop() if len(odd) == 1 else None


def unmatched(want: Sequence[Array], got: Sequence[Array]) -> tuple[int, int]:
    """How many rows (first axis) of all runs have no partner, and how many both sides have."""
    wanted, made = (list(map(_rows, side)) for side in (want, got))
    allowed = _tolerances(wanted)
    alone = total = 0
    for a, b in zip(wanted, made, strict=True):
        total += len(a) + len(b)
        alone += len(a) + len(b) - 2 * _matched(a, b, allowed)
    return alone, total


def _rows(a: Array) -> Array:
    flat = a.reshape(len(a), int(np.prod(a.shape[1:])))
    return flat if flat.dtype.kind in "USO" else flat.astype(np.float64)


def _tolerances(wanted: Sequence[Array]) -> Array:
    """What each column may be off by."""
    width = wanted[0].shape[1] if wanted else 0
    alike = [w for w in wanted if w.shape[1] == width and w.dtype.kind == "f"]
    every = np.concatenate(alike) if alike else np.zeros((0, width))
    whole = (every == np.round(every)).all(axis=0)
    spread = every.std(axis=0) if len(every) else np.zeros(width)
    return np.where(whole, 0.0, WITHIN * spread)


def _matched(a: Array, b: Array, allowed: Array) -> int:
    if a.shape[1] != b.shape[1] or not len(a) or not len(b):
        return 0
    if a.dtype.kind != "f":
        return _in_order(a, b)
    if len(a) * len(b) * a.shape[1] > MOST:
        some = min(len(a), len(b))
        return int((np.abs(a[:some] - b[:some]) <= allowed).all(axis=1).sum())
    if a.shape[1] == 1 and not allowed.any():
        return _in_order(a, b)
    near = (np.abs(a[:, None] - b[None]) <= allowed).all(axis=2)
    matched, free = 0, np.ones(len(b), bool)
    for row in near:
        (partners,) = np.nonzero(row & free)
        if len(partners):
            free[partners[0]] = False
            matched += 1
    return matched


def _in_order(a: Array, b: Array) -> int:
    """Of single words or numbers, which are read one after the other."""
    first, second = (list(map(tuple, side.tolist())) for side in (a, b))
    return sum(m.size for m in SequenceMatcher(None, first, second, False).get_matching_blocks())
