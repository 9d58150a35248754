"""Bisection over a pass's edits: which of them broke the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.context import Edit

__all__ = ["guilty_edits"]

#: Runs a pass where the given edits alone are allowed; returns the edits made and whether the
#: outputs are right.
Attempt = Callable[[Callable[[Edit], bool]], tuple[Sequence[Edit], bool]]
#: More guilty edits than this, and the pass as a whole is at fault.
MOST = 12


def guilty_edits(edits: Sequence[Edit], attempt: Attempt) -> list[Edit] | None:
    """The edits to deny so that the rest leaves the outputs right; None if there is no such set.

    Finds the shortest failing prefix by halving, blames its last edit, denies it, and looks again:
    about log2(n) runs for each guilty edit.

    Args:
        edits: what the failing run did, in order.
        attempt: runs the pass again with fewer permissions.
    """
    denied: list[Edit] = []
    while len(denied) < MOST:
        order = [e for e in dict.fromkeys(edits) if e not in denied]
        if not order or not _passes(attempt, set()):
            return None
        good, bad = 0, len(order)
        while bad - good > 1:
            middle = (good + bad) // 2
            if _passes(attempt, set(order[:middle])):
                good = middle
            else:
                bad = middle
        denied.append(order[bad - 1])
        edits, right = attempt(lambda e: e not in denied)
        if right:
            return denied
    return None


def _passes(attempt: Attempt, allowed: set[Edit]) -> bool:
    return attempt(lambda e: e in allowed)[1]
