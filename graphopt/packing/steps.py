"""Step search: the largest step of rounding whose trial is within the budget.

Steps are numbered k, and are 2^(k / FINE) of all weights' size.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["FINE", "largest", "nearest"]

#: Steps of an octave, and the octaves that are tried.
FINE, LOWEST, HIGHEST = 8, -7, 4


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
    """The largest step within the budget near `start`, where each trial takes long: one by one."""
    at = LOWEST * FINE if start is None else start
    if fits(at):
        while at < HIGHEST * FINE and fits(at + 1):
            at += 1
        return at
    return next((k for k in range(at - 1, LOWEST * FINE - 1, -1) if fits(k)), None)
