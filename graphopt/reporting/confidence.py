"""Confidence bounds: what few cases say of all (Clopper-Pearson)."""

from __future__ import annotations

import math

__all__ = ["upper_bound"]

CONFIDENCE = 0.95


def upper_bound(disagreements: int, n: int) -> float:
    """The largest share of disagreements that n cases with so many do not contradict.

    The one-sided bound of Clopper and Pearson (Biometrika 26, 1934): the share p at which so few
    are seen with probability 5 %.
    """
    if disagreements >= n:
        return 1.0
    low, high = disagreements / n, 1.0
    for _ in range(60):
        p = (low + high) / 2
        if _at_most(disagreements, n, p) > 1 - CONFIDENCE:
            low = p
        else:
            high = p
    return high


def _at_most(k: int, n: int, p: float) -> float:
    """Probability of at most k of n, each with probability p."""
    if p in (0.0, 1.0):
        return 1.0 - p if k < n else 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]  # fmt: skip
    return math.fsum(map(math.exp, logs))
