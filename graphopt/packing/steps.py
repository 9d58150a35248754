"""Step search: the largest step of rounding whose trial is within the budget.

Steps are numbered k, and are 2^(k / FINE) of all weights' size.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["FINE", "LOWEST", "largest", "nearest"]

#: Steps of an octave, and the octaves that are tried.
FINE, LOWEST, HIGHEST = 16, -7, 4


def largest(fits: Callable[[int], bool]) -> int | None:
    """The largest step within the budget: by octaves from 0, then halving what is between."""
    low, high = LOWEST * FINE, HIGHEST * FINE
    at, known = 0, {}
    known[at] = fits(at)
    while low <= (further := at + (FINE if known[at] else -FINE)) <= high:
        known[further] = fits(further)
        if known[further] != known[at]:
            break
        at = further
    good = [k for k, ok in known.items() if ok]
    if not good:
        return None
    best, bad = max(good), min((k for k, ok in known.items() if not ok), default=max(good) + 1)
    while bad - best > 1:
        middle = (best + bad) // 2
        if fits(middle):
            best = middle
        else:
            bad = middle
    return best


def nearest(start: int | None, fits: Callable[[int], bool]) -> int | None:
    """The largest step within the budget near `start`, where each trial takes long.

    By every other step up or down from there, then the one between.
    """
    low, high = LOWEST * FINE, HIGHEST * FINE
    at = low if start is None else start
    if fits(at):
        while at + 2 <= high and fits(at + 2):
            at += 2
    else:
        below = next((k for k in (*range(at - 2, low, -2), low) if fits(k)), None)
        if below is None:
            return None
        at = below
    return at + 1 if at < high and fits(at + 1) else at
