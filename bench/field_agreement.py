"""Task agreement: how far a client's answers with one model are those with another, in 0..1.

Every judge takes the answers of the source model and of another, lists of the same inputs in the
same order, and gives a share. No answer at all on either side agrees with nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Judge = Callable[[Sequence[Any], Sequence[Any]], float]


def labels(want: Sequence[Any], got: Sequence[Any]) -> float:
    """Equal items: labels, decisions, lines of text, whole captchas."""
    if len(want) != len(got) or not want:
        return 0.0
    return float(np.mean([a == b for a, b in zip(want, got, strict=True)]))


def scores(within: float) -> Judge:
    """Numbers no further apart than `within`, in their own unit; NaN agrees with NaN."""

    def judge(want: Sequence[Any], got: Sequence[Any]) -> float:
        a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (want, got))
        if a.shape != b.shape or not a.size:
            return 0.0
        return float(np.mean((np.abs(a - b) <= within) | (np.isnan(a) & np.isnan(b))))

    return judge


def vectors(least: float) -> Judge:
    """Embeddings whose cosine is `least` or more."""

    def judge(want: Sequence[Any], got: Sequence[Any]) -> float:
        a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (want, got))
        if a.shape != b.shape or not a.size:
            return 0.0
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = (a * b).sum(1) / np.where(norms == 0, 1, norms)
        return float(np.mean((cosine >= least) | ((a == 0).all(1) & (b == 0).all(1))))

    return judge


def matched(same: Callable[[Any, Any], bool]) -> Judge:
    """Per input a list of things found: the F1 of a one-to-one match over all inputs."""

    def judge(want: Sequence[Any], got: Sequence[Any]) -> float:
        hits = total = 0
        if len(want) != len(got):
            return 0.0
        for a, b in zip(want, got, strict=True):
            left = list(b)
            for one in a:
                hit = next((k for k, other in enumerate(left) if same(one, other)), None)
                if hit is not None:
                    hits += 1
                    left.pop(hit)
            total += len(a) + len(b)
        return 2 * hits / total if total else 0.0

    return judge


def _overlap(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """[label, left, top, right, bottom]: the same label, intersection over union of 0.75."""
    width = min(a[3], b[3]) - max(a[1], b[1])
    height = min(a[4], b[4]) - max(a[2], b[2])
    inside = max(width, 0) * max(height, 0)
    areas = [(c[3] - c[1]) * (c[4] - c[2]) for c in (a, b)]
    return bool(a[0] == b[0] and inside >= 0.75 * (sum(areas) - inside) and inside > 0)


def _same_note(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """[start, end, pitch]: the same pitch, starts within 50 ms."""
    return bool(a[2] == b[2] and abs(a[0] - b[0]) <= 0.05)


def _same_span(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return list(a) == list(b)


boxes = matched(_overlap)
notes = matched(_same_note)
spans = matched(_same_span)


def spans_of(words: Sequence[str]) -> list[list[int]]:
    """Where each word begins and ends, in characters."""
    ends = np.cumsum([0, *map(len, words)]).tolist()
    return [list(pair) for pair in itertools.pairwise(ends)]
