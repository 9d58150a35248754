"""Floating-point hazards of a rewrite: overflow, cancellation and scales that the source has not.

A normal form is that of the real numbers; what may fail in float32 where the source does not is run
instead of proved.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from graphopt.proving.moves import MOVES
from graphopt.proving.terms import Term

__all__ = ["risky"]

#: Operators whose result leaves the range of float32 for ordinary operands.
OVERFLOWING = ("Cosh", "Exp", "Pow", "Sinh")
#: Operators that lose the digits of what is nearly equal.
DIFFERING = ("Neg", "Sub")
#: Constants beyond this, or below its inverse, take products out of range, but those that the
#: source multiplied by itself one after the other; below the other they have fewer digits.
HUGE, SUBNORMAL = 1e12, 2.0**-126
SCALING = frozenset(("Conv", "ConvTranspose", "Div", "Gemm", "MatMul", "Mul", "Pow"))
#: What is added loses the digits of what it is added to, above this and all that was added before.
CANCELLING = 1e4
SHIFTING = frozenset(("Add", "Sub", "Sum"))
EXPONENTIAL = frozenset(("Cosh", "Exp", "Sinh"))


def risky(inner: tuple[tuple[Term, ...], tuple[Term, ...]]) -> bool:
    """Whether the new side may overflow, or lose digits, where the source does not."""
    before, after = (Counter(t.op for t in side) for side in inner)
    if any(after[op] > before[op] for op in (*OVERFLOWING, *DIFFERING)):
        return True
    exponents = [{_unmoved(t.args[0]) for t in side if t.op in EXPONENTIAL} for side in inner]
    if exponents[1] - exponents[0]:
        return True  # a shift of them may be gone
    scales = [_magnitudes(side, SCALING) for side in inner]
    old, new = ([m for t, m in scales[k].items() if t not in scales[1 - k]] for k in (0, 1))
    if math.prod(h for _, h in new) > max(HUGE, 2 * math.prod(h for _, h in old)):
        return True
    if math.prod(m for m, _ in new) < min(1 / HUGE, math.prod(m for m, _ in old) / 2):
        return True
    least = [min((m for m, _ in some), default=1.0) for some in (old, new)]
    if least[1] < SUBNORMAL <= least[0]:
        return True
    shifts = [_magnitudes(side, SHIFTING) for side in inner]
    most = max([CANCELLING, *(high for _, high in shifts[0].values())])
    return any(high > most for t, (_, high) in shifts[1].items() if t not in shifts[0])


def _unmoved(term: Term | None) -> Term | None:
    """What a term moves about."""
    while term is not None and term.op in MOVES and term.args and term.op != "Concat":
        term = term.args[0]
    return term


def _magnitudes(
    side: tuple[Term, ...], operators: frozenset[str]
) -> dict[Term, tuple[float, float]]:
    """The least magnitude up to 1 and the greatest from 1 of each constant that they read.

    A bias, their third operand, multiplies nothing: however small it is, nothing gets smaller.
    """
    found: dict[Term, tuple[float, float]] = {}
    for t in side:
        for k, a in enumerate(t.args if t.op in operators else ()):
            if a is not None and a.op == "const" and a.array().dtype.kind == "f":
                low, high = _span(a.array())
                found[a] = (low if k < 2 else 1.0, high)
        if t.op == "BatchNormalization" and operators is SCALING:
            found.update(_normalized(t))
    return found


def _normalized(term: Term) -> dict[Term, tuple[float, float]]:
    """What a batch normalization multiplies by, as a magnitude of its scale."""
    scale, variance = term.args[1], term.args[4]
    if scale is None or variance is None or not scale.op == variance.op == "const":
        return {}
    epsilon = term.attributes.get("epsilon", 1e-5)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {scale: _span(scale.array() / np.sqrt(variance.array() + epsilon))}


def _span(array: np.ndarray[Any, Any]) -> tuple[float, float]:
    size = np.abs(array)
    size = size[(size > 0) & np.isfinite(size)]
    return float(size.min(initial=1.0)), float(size.max(initial=1.0))
