"""Flips: which share of decisions other inputs are likely to change, finer than samples can count.

Of n decisions none below 1 / n can be seen. But each has a margin and an error, and the error of
one might as well have met the margin of another that is about as sure:

    share  =  mean over decisions i of the share of i's neighbours j, by margin, with
              m_i and m_i + e_j on different sides

Errors may grow with margins (logits do), so neighbours alone are exchanged. Whether the least sure
of the samples is a near tie is luck, so the k = 2 sqrt(n) smallest margins of each side lie where
their distribution has them: F(m) = (k / n) (m / m_k)^a, even (a = 1) where ties are as frequent as
what is somewhat surer, steeper where they are rare (Hill's estimate of a, less its error). So
found a share is known to 1 / sqrt(k) of itself, and of n others a share p is seen to sqrt(p / n):
twice the one is added, and the other; of fewer than 1 / limit, where a single case that falls
otherwise is excused, so much less of it.
Outputs that decide on the same rows (the digits of one captcha) make one answer together, and their
shares add up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from graphopt.reporting.records import FEW
from graphopt.verification.agreement import (
    THRESHOLDS,
    Outputs,
    chances_beside_values,
    weighty,
)
from graphopt.verification.guard import Guard
from graphopt.verification.strain import ahead
from graphopt.verification.text import blank_of, is_text

__all__ = ["flips"]

Array = np.ndarray[Any, Any]
#: Neighbours whose errors a margin meets, and pairs that are looked at in all.
NEIGHBOURS, PAIRS = 33, 4_000_000
#: Elements that decide (pixels of masks) whose margins are looked at.
MOST = 1 << 20
#: Standard errors by which a share may be larger, and a distribution less steep, than it looks.
SIGMAS = 2.0
#: What never happened in n cases may happen in this many of the next n: the rule of three.
UNSEEN = 3
#: Chances beyond this are as sure as can be.
SURE = 1e-6


def flips(guard: Guard, got: Iterable[Outputs]) -> float:
    """The share of decisions likely to change, over the share that may; 1 is the limit."""
    made = list(got)
    shares: dict[int, float] = defaultdict(float)
    for name, kind in guard.kinds.items():
        find = _SHARES.get(kind)
        if find is None:
            continue
        want = guard.by_rows(name, guard.expected[: len(made)])
        have = guard.by_rows(name, made)
        alike = all(a.shape == b.shape for a, b in zip(want, have, strict=True))
        rows = sum(int(np.prod(a.shape[:-1])) for a in want)
        logits = guard.margins(name, made) if alike else None
        if logits is not None:
            shares[rows] += _LOGIT_SHARES[kind](*logits, guard.limit, True)
        else:
            shares[rows] += find(want, have, guard.limit) if alike else 1.0
    return max(shares.values(), default=0.0) / max(guard.limit, 1e-9)


def _likely(margins: Array, errors: Array, cases: int) -> Array:
    """How likely each decision is to flip: by how many of its neighbours' errors it would.

    Of `cases` that know nothing of each other: lines of text are such, not their letters.
    """
    n = len(margins)
    share = cases / max(n, 1)
    e = np.nan_to_num(errors, nan=np.inf)
    sides = margins > 0
    ties = [_ties(int(k), share) for k in (n - sides.sum(), sides.sum())]
    # what no error reaches cannot flip, and is no near tie
    near = np.flatnonzero(np.abs(margins) <= _reach(margins, sides, ties, np.abs(e)))
    near = near[np.argsort(margins[near], kind="stable")]
    m, e = margins[near].astype(np.float64), e[near]
    first = int(np.searchsorted(m, 0, side="right"))  # that is on the upper side
    m = np.concatenate([-_even(-m[:first][::-1], ties[0])[::-1], _even(m[first:], ties[1])])
    width = max(1, min(NEIGHBOURS, len(m), PAIRS // max(n, 1)))
    starts = np.clip(np.arange(len(m)) - width // 2, 0, len(m) - width)
    upper = np.arange(len(m)) >= first
    crossed = np.zeros(len(m))
    for k in range(width):
        moved = m + e[starts + k] * np.where(np.isinf(e[starts + k]), np.where(upper, -1, 1), 1)
        crossed += np.where(upper, moved < 0, moved > 0)
    out = np.zeros(n)
    out[near] = crossed / width
    return out


def _reach(margins: Array, sides: Array, ties: Sequence[int], errors: Array) -> float:
    """A margin beyond which there is no error, no near tie and no neighbour of one."""
    found = [float(errors.max(initial=0.0))]
    for side, k in zip((~sides, sides), ties, strict=True):
        if k:
            far = np.abs(margins[side])
            last = min(k + NEIGHBOURS, len(far)) - 1
            found.append(float(np.partition(far, last)[last]))
    return max(found)


def _ties(n: int, share: float) -> int:
    """How many of `n` margins of one side, each so much of a case, are taken for near ties."""
    return min(n, int(_near_ties(n * share)))


def _near_ties(n: float) -> float:
    """How many of `n` margins are taken for near ties, whose distribution is fitted."""
    return 2 * math.sqrt(n)


def _even(margins: Array, k: int) -> Array:
    """Margins of one side, rising, the smallest `k` as their distribution has them."""
    if not k or not 0 < margins[k - 1] < np.inf:
        return margins
    top = margins[k - 1]
    logs = float(np.log(top / np.maximum(margins[:k], 1e-12 * top)).sum())
    if logs < 1e-3:  # all alike
        return margins
    steep = (k - 1) / logs * (1 - SIGMAS / math.sqrt(k))
    smooth = top * ((np.arange(k) + 0.5) / k) ** (1 / max(1.0, steep))
    return np.concatenate([smooth, margins[k:]])


def _unseen(margins: Array, errors: Array) -> float:
    """How likely a decision is to flip that is less sure than all of these.

    Up to `UNSEEN` of as many are (at 95 % confidence), anywhere between zero and the smallest
    margin for all that is known. Their errors are what others have that are nearest, beside what
    grows with their margins.
    """
    near = np.argsort(np.abs(margins), kind="stable")[:NEIGHBOURS]
    m, e = margins[near], np.nan_to_num(errors[near], nan=1e30)
    grows = 1 + float(np.clip((m * e).sum() / max(float((m * m).sum()), 1e-12), -0.9, 9))
    rest = e - (grows - 1) * m
    above, below = m[m > 0].min(initial=np.inf), -m[m <= 0].max(initial=-np.inf)
    above, below = (side if np.isfinite(side) else 0.0 for side in (above, below))
    crossed = np.clip(-rest / grows, 0, above) + np.clip(rest / grows, 0, below)
    return UNSEEN * float(crossed.mean()) / max(above + below, 1e-12)


def _known(share: float, n: int, limit: float) -> float:
    """A share that follows from `n` cases, and how far it may lie above, of these and of others."""
    share *= 1 + SIGMAS / math.sqrt(_near_ties(max(n, 1)))
    excused = min(1.0, n * limit) if n >= FEW else 1.0
    return share + math.sqrt(share / max(n, 1)) * excused


def _of(
    margins: Sequence[Array], errors: Sequence[Array], n: int, limit: float, more: bool = False
) -> float:
    m, e = np.concatenate(margins), np.concatenate(errors)
    every = float(_likely(m, e, len(m)).sum()) + (_unseen(m, e) if more and len(m) else 0.0)
    return _known(every / max(n, 1), n, limit)


def _some(want: list[Any], got: list[Any]) -> list[tuple[Array, Array]]:
    """Both sides' elements, flat: every so many of each run, where there are more than `MOST`."""
    step = -(-sum(np.size(a) for a in want) // MOST) | 1  # odd: not one column of an image
    return [(np.ravel(a)[::step], np.ravel(b)[::step]) for a, b in zip(want, got, strict=True)]


def _chances(want: list[Any], got: list[Any], limit: float) -> float:
    pairs = [(_logit(a), _logit(b)) for a, b in _some(want, got)]
    errors = [b - a for a, b in pairs]
    shares = []
    for t in THRESHOLDS:
        margins = [a - _logit(np.array(t)) for a, _ in pairs]
        shares.append(_of(margins, errors, weighty([m > 0 for m in margins]), limit))
    return max(shares)


def _detections(want: list[Any], got: list[Any], limit: float) -> float:
    split = chances_beside_values(want)
    if split is None:  # the first runs may not show what all do
        return 0.0
    return _chances(split[0](want), split[0](got), limit)


def _logit(p: Array) -> Array:
    p = np.clip(p.astype(np.float64), SURE, 1 - SURE)
    return np.asarray(np.log(p) - np.log1p(-p))


def _margins(want: list[Any], got: list[Any], limit: float, more: bool = False) -> float:
    flat = _some(want, got)
    n = weighty([a > 0 for a, _ in flat])
    errors = [b.astype(np.float64) - a for a, b in flat]
    return _of([a for a, _ in flat], errors, n, limit, more)


def _scores(want: list[Any], got: list[Any], limit: float, more: bool = False) -> float:
    """By how far the top class is ahead; a line of text changes if any of its steps does."""
    tops = [a.argmax(-1) for a in want]
    text = is_text(tops)
    blank = blank_of(tops, want[0].shape[-1]) if text else None
    margins, errors = [], []
    for a, b, top in zip(want, got, tops, strict=True):
        x, y = (ahead(s, top, text, blank) for s in (a, b))
        margins.append(x.ravel())
        errors.append((y - x).ravel())
    if not text:
        return _of(margins, errors, weighty([t.ravel() for t in tops]), limit, more)
    n: int = sum(t.size // t.shape[-1] for t in tops)
    every = _likely(np.concatenate(margins), np.concatenate(errors), n)
    ends = np.cumsum([t.size for t in tops])[:-1]
    lines = [
        np.minimum(part.reshape(t.shape).sum(-1), 1).ravel()
        for part, t in zip(np.split(every, ends), tops, strict=True)
    ]
    return _known(sum(float(part.sum()) for part in lines) / max(n, 1), n, limit)


_SHARES = {
    "chances": _chances,
    "detections": _detections,
    "margins": _margins,
    "scores": _scores,
    "logits": _scores,
}
#: Of outputs whose logits are judged in their stead: what is less sure than the samples counts too.
_LOGIT_SHARES = {"chances": _margins, "scores": _scores}
