"""Lines of text as connectionist temporal classification reads them (Graves et al., ICML 2006)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["ahead_in_text", "blank_of", "is_text", "read"]

Array = np.ndarray[Any, Any]
#: Labels that last longer than this many steps, in the mean, are no letters.
LASTS = 3
#: Share of the steps from which on the first or the last label is the one that writes nothing.
BLANK = 0.4


def is_text(tops: Sequence[Array]) -> bool:
    """Whether rows of top classes [lines, steps] are written lines: labels stand for a step or two.

    Labels that last (speech or none, a state of sleep) are decisions of each step by itself, and
    so are those of two classes.
    """
    if any(a.ndim != 2 or a.shape[1] < 2 for a in tops):
        return False
    labels, counts = np.unique(np.concatenate([a.ravel() for a in tops]), return_counts=True)
    if len(labels) < 3:
        return False
    usual = labels[counts.argmax()]
    first = [np.diff(a, axis=1, prepend=-1) != 0 for a in tops]
    begun = sum(int((f & (a != usual)).sum()) for f, a in zip(first, tops, strict=True))
    return bool(counts.sum() - counts.max() <= LASTS * begun)


def blank_of(tops: Sequence[Array], classes: int) -> int | None:
    """The label that writes nothing, of rows of top classes [lines, steps]; None: there is none."""
    labels, counts = np.unique(np.concatenate([a.ravel() for a in tops]), return_counts=True)
    usual = int(labels[counts.argmax()])
    often = counts.max() >= BLANK * counts.sum()
    return usual if often and usual in (0, classes - 1) else None


def read(labels: Array, blank: int | None) -> Array:
    """What a row of labels says: repeats count once, and then the blank does not."""
    once: Array = labels[np.r_[True, labels[1:] != labels[:-1]]] if labels.size else labels
    return once if blank is None else np.asarray(once[once != blank])


def ahead_in_text(
    scores: Array, top: Array, blank: int | None, scale: Callable[[Array], Array]
) -> Array:
    """How far each step [lines, steps] of scores [lines, steps, classes] is from another text.

    That is, how far the best label that leaves the text as `top` has it is ahead of all others,
    both on a rising `scale`.
    """
    scores = scores.copy()
    accepted = _accepted(top, blank)
    good = np.take_along_axis(scores, accepted, -1)
    np.put_along_axis(scores, accepted, -np.inf, -1)
    own = scale(good.max(-1)) - scale(scores.max(-1))
    if blank is None:
        return np.asarray(own)
    np.put_along_axis(scores, accepted, good, -1)
    first = scores.argmax(-1)[..., None]
    best = np.take_along_axis(scores, first, -1)
    np.put_along_axis(scores, first, -np.inf, -1)
    second = scores.max(-1)[..., None]
    np.put_along_axis(scores, first, best, -1)
    for shift in (-1, 1):  # a letter may stand one step beside
        labels = np.roll(top, shift, 1)[..., None]
        mine = np.take_along_axis(scores, labels, -1)
        ahead = scale(mine) - scale(np.where(first == labels, second, best))
        ahead = np.roll(ahead[..., 0], -shift, 1)
        ahead[:, -1 if shift > 0 else 0] = -np.inf  # there is no such step
        own = np.where(top == blank, own, np.maximum(own, ahead))
    return np.asarray(own)


def _accepted(top: Array, blank: int | None) -> Array:
    """Labels [lines, steps, 4] at which a single step would leave the text as it is.

    Where a label begins or ends, its neighbour one step sooner or later is the same text, and so
    is the blank; a single blank between two letters may be either of them.
    """
    found = np.repeat(top[..., None], 4, -1)
    before, here, after = top[:, :-2], top[:, 1:-1], top[:, 2:]
    ends = (here != after) & (here == before)
    begins = (here == after) & (here != before)
    apart = np.zeros_like(ends)
    inner = found[:, 1:-1]
    if blank is not None:
        apart = (here == blank) & (before != blank) & (after != blank) & (before != after)
        inner[ends | begins, 3] = blank
    inner[..., 1] = np.where(ends | apart, after, here)
    inner[..., 2] = np.where(begins | apart, before, here)
    return found
