"""Floating-point precision of folded constants: one rounding (unit roundoff) of what was stored.

A rewrite that folds arithmetic into a constant rounds it once, in the type that it is stored in.
Half precision rounds 2^13 times as coarsely as float32 (IEEE 754), but is no licence: it counts
where the source computes in that type too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import onnx_ir as ir

from graphopt.proving.terms import Term

__all__ = ["SINGLE", "Precision", "precision"]


class Precision(NamedTuple):
    """How finely a type tells numbers apart.

    Attributes:
        unit: half the distance from 1 to the next number.
        least: the smallest number above 0.
        slack: roundings by which what was folded may differ: sums are made in float32 at least, so
            that half precision rounds little more than once.
    """

    unit: float
    least: float
    slack: int


SINGLE = Precision(2.0**-24, 2.0**-149, 16)
_COARSER = {
    ir.DataType.FLOAT16: Precision(2.0**-11, 2.0**-24, 4),
    ir.DataType.BFLOAT16: Precision(2.0**-8, 2.0**-133, 4),
}


def precision(source: Collection[Term], result: Iterable[Term]) -> Precision:
    """Of the constants that `result` alone has, in a type that `source` has too."""
    used = {t.dtype for t in source}
    anew = {t.dtype for t in result if t.op == "const" and t not in source}
    return max((_COARSER.get(d, SINGLE) for d in anew & used if d is not None), default=SINGLE)
