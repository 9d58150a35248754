"""Cuts: where the cones of two terms are cut off for a region, the nearest first."""

from __future__ import annotations

from collections.abc import Iterable

from graphopt.proving.terms import Term

__all__ = ["LARGEST", "cone", "cuts", "read_by"]

#: Terms in a window: what no longer agrees after so many is not followed further.
LARGEST = 80
#: How often the leaves of a window are looked into, for what is known of their values.
DEEPER = 2


def cuts(old: Term, new: Term) -> Iterable[set[Term]]:
    """Sets of leaves, the nearest first."""
    above = set(_near(old)) - {old}
    near = _frontier(new, above)
    if near is None:
        return
    near |= _frontier(old, near) or set()  # what the new side no longer reads
    yield near
    # one that computes another of them is looked into, and then all are
    deep = {t for t in near if any(a in near for a in read_by(t, set()) - {t})}
    if deep:
        far = _frontier(new, above - deep)
        if far is not None:
            yield far
    for _ in range(DEEPER):
        near = {a for t in near for a in _below(t)}
        yield near


def _below(leaf: Term) -> list[Term]:
    """What a leaf is made of, itself if of nothing."""
    made = [a for a in leaf.args if a is not None and a.op not in ("const", "data")]
    return made or [leaf]


def _near(top: Term) -> list[Term]:
    """The terms closest to `top`, breadth first."""
    found = [top]
    seen = {top}
    for term in found:
        for a in term.args:
            if a is not None and a not in seen and len(found) < LARGEST:
                seen.add(a)
                found.append(a)
    return found


def _frontier(top: Term, stops: set[Term]) -> set[Term] | None:
    """The first of `stops` on every way down from `top`; None if one is too long."""
    found: set[Term] = set()
    seen: set[Term] = set()
    stack = [top]
    while stack:
        term = stack.pop()
        if term in seen:
            continue
        seen.add(term)
        if len(seen) > LARGEST:
            return None
        if not term.args or (term is not top and term in stops):
            if term.op not in ("const", "data"):
                found.add(term)
            continue
        stack += [a for a in term.args if a is not None]
    return found


def cone(top: Term, leaves: set[Term]) -> tuple[Term, ...]:
    """The terms from `top` down to `leaves`, without constants."""
    return tuple(
        t for t in read_by(top, leaves) if t not in leaves and t.op not in ("const", "data")
    )


def read_by(top: Term, leaves: set[Term]) -> set[Term]:
    """A term and all that it reads, not looking into `leaves`."""
    found: set[Term] = set()
    stack = [top]
    while stack and len(found) <= 2 * LARGEST:
        term = stack.pop()
        if term in found:
            continue
        found.add(term)
        if term is top or term not in leaves:
            stack += [a for a in term.args if a is not None]
    return found
