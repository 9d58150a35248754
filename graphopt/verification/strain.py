"""Strain: how much of the guard's limits a change uses, before any decision flips.

Few changes of a small part of a model flip a decision, but all move it towards the edge. Errors
that know nothing of each other add up in their squares, and of the decisions of margin m an error
of variance e^2 flips the share e^2 / m^2 at most (Chebyshev): what parts strain alone is about what
they strain together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from graphopt.verification.agreement import (
    MAX_ERROR,
    MAX_TURN,
    STATE,
    THRESHOLDS,
    TURNED,
    Kind,
    Outputs,
    as_rows,
    chances_beside_values,
    distributed,
    near,
    spread_error,
    turn_of,
    weighty,
)
from graphopt.verification.found import unmatched
from graphopt.verification.guard import Guard
from graphopt.verification.saturation import LEAST
from graphopt.verification.text import ahead_in_text, blank_of, is_text

__all__ = ["ahead", "strain"]

Array = np.ndarray[Any, Any]


def strain(guard: Guard, got: Iterable[Outputs]) -> float:
    """The strain of outputs on the guard's first runs, summed over outputs; 1 is its limit."""
    made = list(got)
    limit = max(guard.limit, 1e-9)
    total = 0.0
    for name, kind in guard.kinds.items():
        want = guard.by_rows(name, guard.expected[: len(made)])
        have = guard.by_rows(name, made)
        alike = all(a.shape == b.shape for a, b in zip(want, have, strict=True))
        logits = guard.margins(name, made) if alike else None
        if logits is not None:
            total += _LOGIT_STRAINS[kind](*logits, limit)
            continue
        told = alike or kind == "found"
        total += _STRAINS[kind](want, have, limit) if told else 1 / limit
    return total


def _squared(off: Sequence[Array], margin: Sequence[Array]) -> list[Array]:
    """(error / margin)^2 of each decision, one at most."""
    sizes = np.concatenate([np.abs(m).ravel() for m in margin] or [np.zeros(0)])
    ties = min(len(sizes), int(4 * math.sqrt(len(sizes))))
    least = max(float(np.partition(sizes, ties - 1)[ties - 1]), 1e-9) if ties else 1e-9
    return [
        np.minimum(np.nan_to_num(np.abs(e), nan=np.inf) / np.maximum(np.abs(m), least), 1.0) ** 2
        for e, m in zip(off, margin, strict=True)
    ]


def _share(parts: Iterable[Array], n: int) -> float:
    return sum(float(np.sum(p)) for p in parts) / max(n, 1)


def _decisions_strain(want: list[Any], got: list[Any], limit: float) -> float:
    off = [a != b for a, b in zip(want, got, strict=True)]
    return _share(off, weighty([np.ravel(a) for a in want])) / limit


def _chances_strain(want: list[Any], got: list[Any], limit: float) -> float:
    off = [b - a for a, b in zip(want, got, strict=True)]
    at = [
        _share(_squared(off, [a - t for a in want]), weighty([np.ravel(a > t) for a in want]))
        for t in THRESHOLDS
    ]
    return max(at) / limit


def _sure_strain(want: list[Any], got: list[Any], limit: float) -> float:
    """Of the logits of chances, whose thresholds are near zero beside them."""
    n = weighty([np.ravel(a > 0) for a in want])
    return _share(_squared([b - a for a, b in zip(want, got, strict=True)], want), n) / limit


def _margins_strain(want: list[Any], got: list[Any], limit: float) -> float:
    return max(_sure_strain(want, got, limit), _values_strain(want, got, limit))


def _detections_strain(want: list[Any], got: list[Any], limit: float) -> float:
    split = chances_beside_values(want)
    if split is None:  # the first runs may not show what all do
        return _values_strain(want, got, limit)
    chances, values = split
    decided = _chances_strain(chances(want), chances(got), limit)
    return max(decided, _values_strain(values(want), values(got), limit))


def _scores_strain(want: list[Any], got: list[Any], limit: float) -> float:
    """By how far the top class is ahead; a line of text strains as all its steps do."""
    tops = [a.argmax(-1) for a in want]
    text = is_text(tops)
    blank = blank_of(tops, want[0].shape[-1]) if text else None
    margins = [ahead(a, top, text, blank) for a, top in zip(want, tops, strict=True)]
    off = [ahead(b, top, text, blank) - m for b, top, m in zip(got, tops, margins, strict=True)]
    steps = _squared(off, margins)
    lines = [np.minimum(part.sum(-1), 1.0) for part in steps] if text else []
    single = 0.0 if blank is not None else _share(steps, weighty([t.ravel() for t in tops]))
    return max(single, _share(lines, sum(map(np.size, lines)))) / limit


def even_scale(scores: Array) -> Callable[[Array], Array]:
    """On which errors are even: logarithms of chances, other scores as they are."""
    if scores.min(initial=0) >= 0 and distributed(as_rows(scores)):
        return lambda x: np.log(np.maximum(x.astype(np.float64), LEAST))
    return lambda x: x.astype(np.float64)


def ahead(scores: Array, top: Array, text: bool, blank: int | None) -> Array:
    """How far each decision `top` is ahead, on an even scale; as text, of what would change it."""
    scale = even_scale(scores)
    if text:
        return ahead_in_text(scores, top, blank, scale)
    return _ahead_of(scale(scores), top[..., None])


def _ahead_of(scores: Array, top: Array) -> Array:
    """How far the class `top` is ahead of the best other."""
    rest = scores.copy()
    np.put_along_axis(rest, top, -np.inf, -1)
    ahead: Array = np.take_along_axis(scores, top, -1)[..., 0] - rest.max(-1)
    return ahead


def _embedding_strain(want: list[Any], got: list[Any], limit: float) -> float:
    return turn_of(want, got) / MAX_TURN


def _values_strain(want: list[Any], got: list[Any], limit: float) -> float:
    return min(spread_error(want, got) / MAX_ERROR, 1e3) ** 2


def _logits_strain(want: list[Any], got: list[Any], limit: float) -> float:
    values = min(spread_error(want, got) / near(want), 1e3) ** 2
    return max(_scores_strain(want, got, limit), values)


def _state_strain(want: list[Any], got: list[Any], limit: float) -> float:
    return min(spread_error(want, got, 0) / STATE, 1e3) ** 2


def _features_strain(want: list[Any], got: list[Any], limit: float) -> float:
    either = max(_scores_strain(want, got, limit), turn_of(want, got) / TURNED)
    return min(_values_strain(want, got, limit), either)


def _found_strain(want: list[Any], got: list[Any], limit: float) -> float:
    alone, rows = unmatched(want, got)
    return alone / max(rows, 1) / max(limit, 1e-9)


_STRAINS: dict[Kind, Callable[[list[Any], list[Any], float], float]] = {
    "decisions": _decisions_strain,
    "scores": _scores_strain,
    "logits": _logits_strain,
    "chances": _chances_strain,
    "detections": _detections_strain,
    "margins": _margins_strain,
    "embedding": _embedding_strain,
    "values": _values_strain,
    "features": _features_strain,
    "state": _state_strain,
    "found": _found_strain,
}
#: Of outputs whose logits are judged in their stead.
_LOGIT_STRAINS = {"chances": _sure_strain, "scores": _scores_strain}
