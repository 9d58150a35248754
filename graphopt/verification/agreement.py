"""Task agreement: whether a lossy model still says the same, each output judged by what it is.

    decisions    integers, booleans, text           equal, element by element
    scores       one class of several in each row    the same top class; of written lines of such
                                                     rows also the same text, repeats collapsed
    chances      a probability of one thing each     the same side of 0.3, 0.5 and 0.7
    detections   chances beside coordinates          the ones as chances, the others as values, and
                                                     so the chances that decide anything
    margins      one sum of either sign each         as values, and on the same side of zero
    embedding    rows of unit length                 the angle between the two
    values       anything else                       error of each channel relative to its spread;
                                                     of few the worst
    state        values that the next run may take   the same, within a wider limit

An error of the whole tensor says little: a column of scores beside pixel coordinates is lost in it.
Rows of no known meaning are taken for scores that are values too (logits: both must agree), or,
where they are as wide as features are, for features (either reading will do).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from graphopt.reporting.records import FEW, Agreement
from graphopt.verification.found import unmatched
from graphopt.verification.text import blank_of, is_text, read

__all__ = [
    "ALIKE",
    "JUDGES",
    "MAX_ERROR",
    "MAX_TURN",
    "STATE",
    "THRESHOLDS",
    "TURNED",
    "Kind",
    "as_rows",
    "chances_beside_values",
    "distributed",
    "near",
    "spread_error",
    "turn_of",
    "weighty",
]

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Any]
Kind = Literal[
    "decisions", "scores", "logits", "chances", "detections", "margins", "embedding", "values",
    "features", "state", "found",
]  # fmt: skip

#: What lossy steps may change of what is not decided, where decisions may change by 1 %:
#: 1 - cosine of embeddings, error over spread of values.
MAX_TURN, MAX_ERROR = 0.01, 0.1
#: Features whose top class is believed must be this close in angle too; logits of either sign this
#: close in value, and states, of which other outputs say what matters.
TURNED, NEAR, STATE = 0.05, 0.5, 0.15
#: Columns whose scales differ by more are no scores of one kind (coordinates beside chances).
ALIKE = 30
#: Up to so many channels each is a figure of its own, such as a mark or a coordinate.
EACH = 16
#: What varies by less than this share of the whole tensor is what float32 rounds away.
ROUNDING = 1e-6
#: Rows from which on a channel has a spread of its own.
SEVERAL = 4
THRESHOLDS = (0.3, 0.5, 0.7)


def as_rows(a: Array) -> Array:
    """As rows of the last axis, in float64."""
    return a.reshape(-1, a.shape[-1] if a.ndim else 1).astype(np.float64)


def distributed(rows: Array) -> bool:
    """Whether each row is a distribution, or its logarithm."""
    if rows.min(initial=0) >= -1e-6:
        return bool(np.allclose(rows.sum(axis=1), 1, atol=1e-2))
    if rows.max(initial=0) > 1e-6:
        return False
    with np.errstate(over="ignore"):
        return bool(np.allclose(np.exp(rows).sum(axis=1), 1, atol=1e-2))


def _decided(kind: str, pairs: Iterable[tuple[Any, Any]], limit: float) -> Agreement:
    """Agreement of decisions: the share of elements that differ, among as many of the rarer kind.

    Where nearly all say the same (no note, no box, blank), those that do not are what matters.
    """
    wrong = 0
    wanted = []
    for a, b in pairs:
        wanted.append(np.ravel(a))
        wrong += int(np.size(a)) if np.shape(a) != np.shape(b) else int((a != b).sum())
    n = weighty(wanted)
    return Agreement(kind, n, min(wrong, n), min(wrong / n, 1.0) if n else 0.0, limit)


def weighty(decisions: Sequence[Array]) -> int:
    """How many decisions count: twice those that are not of the most frequent kind."""
    every = np.concatenate(decisions) if decisions else np.zeros(0)
    if every.dtype == bool:
        yes = int(np.count_nonzero(every))
        rare = min(yes, len(every) - yes)
    else:
        counts = np.unique(every, return_counts=True)[1]
        rare = len(every) - int(counts.max(initial=0))
    return min(len(every), max(2 * rare, FEW))


def _decisions(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    return _decided("decisions", zip(want, got, strict=True), limit)


def _chances(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    at = [
        _decided("chances", ((a > t, b > t) for a, b in zip(want, got, strict=True)), limit)
        for t in THRESHOLDS
    ]
    return max(at, key=lambda one: one.figure)


def _scores(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    tops = [(a.argmax(-1), b.argmax(-1)) for a, b in zip(want, got, strict=True)]
    single = _decided("scores", tops, limit)
    wanted = [a for a, _ in tops]
    if not is_text(wanted):
        return single
    blank = blank_of(wanted, want[0].shape[-1])
    lines = [(x, y) for a, b in tops if a.shape == b.shape for x, y in zip(a, b, strict=True)]
    wrong = sum(not np.array_equal(read(x, blank), read(y, blank)) for x, y in lines)
    whole = Agreement("sequences", len(lines), wrong, wrong / len(lines), limit)
    if blank is not None:  # where a letter begins is no decision
        return whole
    return max(single, whole, key=lambda one: one.figure)


def _embedding(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    return Agreement("embedding", len(want), None, turn_of(want, got), MAX_TURN * share)


def turn_of(want: list[Any], got: list[Any]) -> float:
    """1 - the cosine between rows, the mean over all."""
    turns = []
    for a, b in zip(want, got, strict=True):
        x, y = as_rows(a), as_rows(b)
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosine = np.divide((x * y).sum(axis=1), lengths, out=np.ones(len(x)), where=lengths > 0)
        turns.append(1 - cosine)
    return float(np.concatenate(turns).mean()) if turns else 0.0


def _values(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    return Agreement("values", len(want), None, spread_error(want, got), MAX_ERROR * share)


def spread_error(want: list[Any], got: list[Any], each: int = EACH) -> float:
    """RMS error of each channel over its standard deviation: the worst of few, the mean of many.

    Few are as many as `each`.
    Channels are the axis whose parts differ most in scale; one that never varies, to a thousandth
    of itself, counts by the spread of all, and so do all where there are too few rows to tell.
    """
    axis = _channels(want)

    def flat(arrays: list[Any]) -> Array:
        parts = [np.moveaxis(np.atleast_1d(a), axis, -1) for a in arrays]
        if len({p.shape[-1] for p in parts}) > 1:  # no axis has one size in all runs
            parts = [p.reshape(-1, 1) for p in parts]
        return np.concatenate([p.reshape(-1, p.shape[-1]).astype(np.float64) for p in parts])

    x, y = flat(want), flat(got)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(finite, x, 0), np.where(finite, y, 0)
    error = np.sqrt(((x - y) ** 2).mean(axis=0))
    several = len(x) >= SEVERAL
    largest = np.abs(x).max(axis=0, initial=0)
    spread, whole = x.std(axis=0) * several, float(x.std()) or float(largest.max(initial=0)) or 1.0
    spread = np.where(spread > np.maximum(1e-3 * largest, ROUNDING * whole), spread, whole)
    if not error.size:
        return 0.0
    shares = np.minimum(error / spread, 1e6)
    return float(shares.max() if shares.size <= each else shares.mean())


def _channels(arrays: list[Any]) -> int:
    """The axis along which scales differ most, of those with one size in all runs."""
    first = np.atleast_1d(arrays[0])
    best, chosen = 0.0, first.ndim - 1
    for axis in range(first.ndim):
        sizes = {np.atleast_1d(a).shape[axis] for a in arrays}
        if len(sizes) > 1 or not 2 <= first.shape[axis] <= 4096:
            continue
        others = tuple(k for k in range(first.ndim) if k != axis)
        power = np.log(np.abs(first.astype(np.float64)).mean(axis=others) + 1e-12)
        if float(power.std()) > best + 1e-9:
            best, chosen = float(power.std()), axis
    return chosen


#: Takes some channels of each run.
Taken = Callable[[Sequence[Array]], list[Array]]


def chances_beside_values(want: Sequence[Array]) -> tuple[Taken, Taken] | None:
    """What takes the chances of detections, and what takes all that is judged as values.

    Channels are the axis whose parts differ most in scale. Of chances those that decide nothing,
    things that are nowhere in the samples, are no values. None where no chances stand beside larger
    numbers, or few of them do.
    """
    axis = _channels(list(want)) if want[0].ndim in (2, 3) else 0
    if not axis or any(a.ndim <= axis or not a.size for a in want):
        return None
    parts = [np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in want]
    if len({p.shape[1] for p in parts}) > 1 or max(map(len, parts)) < FEW:
        return None
    low, high = np.min([p.min(axis=0) for p in parts], 0), np.max([p.max(axis=0) for p in parts], 0)
    chances = (low >= 0) & (high <= 1)
    if not chances.any() or not (np.maximum(-low, high)[~chances] > ALIKE).any():
        return None
    which, others = np.flatnonzero(chances), np.flatnonzero(~chances | (high > THRESHOLDS[0]))
    return (
        lambda runs: [np.take(a, which, axis) for a in runs],
        lambda runs: [np.take(a, others, axis) for a in runs],
    )


def near(want: Sequence[Array]) -> float:
    """How far logits may be off as values: those of one sign (marks of 1 to 5) may be no logits."""
    low = min((float(a.min(initial=0)) for a in want), default=0.0)
    high = max((float(a.max(initial=0)) for a in want), default=0.0)
    return NEAR if low < 0 < high else MAX_ERROR


def _logits(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    """As scores, and as values within a wider limit: the worse of the two."""
    values = dataclasses.replace(_values(want, got, limit, share), limit=near(want) * share)
    if any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return values
    return max(_scores(want, got, limit, share), values, key=lambda one: one.over)


def _margins(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    """As values, and as decisions by their sign: the worse of the two."""
    pairs = ((a > 0, b > 0) for a, b in zip(want, got, strict=True))
    signs, values = _decided("chances", pairs, limit), _values(want, got, limit, share)
    return max(signs, values, key=lambda one: one.over)


def _detections(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    """Chances by their sides of the thresholds, all else as values: the worse of the two."""
    split = chances_beside_values(want)
    if split is None or any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return _values(want, got, limit, share)
    chances, values = split
    return max(
        _chances(chances(want), chances(got), limit, share),
        _values(values(want), values(got), limit, share),
        key=lambda one: one.over,
    )


def _state(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    return Agreement("values", len(want), None, spread_error(want, got, 0), STATE * share)


def _features(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    """As values, or as scores whose rows have not turned far: the better of the two."""
    values = _values(want, got, limit, share)
    if any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return values
    scores, turn = _scores(want, got, limit, share), turn_of(want, got)
    if values.over <= 1 or max(scores.over, turn / TURNED / share) >= values.over:
        return values
    if turn / TURNED / share > scores.over:
        return Agreement("embedding", len(want), None, turn, TURNED * share)
    return dataclasses.replace(scores, kind="scores")


def _found(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    """Rows without a partner; `want` and `got` hold them along the first axis."""
    alone, rows = unmatched(want, got)
    n = max(rows, FEW)
    return Agreement("decisions", n, min(alone, n), min(alone / n, 1.0), limit)


JUDGES: dict[Kind, Callable[[list[Any], list[Any], float, float], Agreement]] = {
    "decisions": _decisions,
    "scores": _scores,
    "logits": _logits,
    "chances": _chances,
    "detections": _detections,
    "margins": _margins,
    "embedding": _embedding,
    "values": _values,
    "features": _features,
    "state": _state,
    "found": _found,
}
