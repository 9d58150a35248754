"""Sensitivity: how far the outputs move when one layer alone is changed, as measured on samples.

One unit for every pass: the squared relative L2 error of the worst output,

    sum |y - y'|^2 / sum |y|^2,

whose root is what reports tell and budgets limit. Squares, since errors of different layers that
know nothing of each other add up so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.execution.runtime import Arrays, run_each

__all__ = ["movement", "sensitivities"]

K = TypeVar("K")
#: What counts for outputs that broke (new NaN or Inf): a thousand times their own size.
BROKEN = 1e6


def sensitivities(
    model: ir.Model, feeds: Sequence[Arrays], changes: Iterable[tuple[K, ir.Model]]
) -> dict[K, float]:
    """By key, how far the outputs of each changed model lie from those of `model` on `feeds`."""
    expected = list(run_each(model, feeds))
    return {key: movement(expected, run_each(changed, feeds)) for key, changed in changes}


def movement(expected: Iterable[Arrays], got: Iterable[Arrays]) -> float:
    """Squared relative L2 error of the worst float output; equal NaN and Inf are no error."""
    off: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for before, after in zip(expected, got, strict=True):
        for name, a in before.items():
            if a.dtype.kind != "f":
                continue
            b = after[name]
            if a.shape != b.shape:  # its size follows from values
                whole = float(np.square(a.astype(np.float64)).sum())
                off[name] += whole
                size[name] += whole
                continue
            alike = (a == b) | (np.isnan(a) & np.isnan(b))
            x, y = (np.where(alike & ~np.isfinite(a), 0, v).astype(np.float64) for v in (a, b))
            off[name] += float(np.square(x - y).sum())
            size[name] += float(np.square(x).sum())
    worst = [off[name] / max(size[name], 1e-300) for name in off]
    return max((w if w < BROKEN else BROKEN for w in worst), default=0.0)
