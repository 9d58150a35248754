"""Nonlinear response reconstruction: a fit that counts what gets through the ReLU behind it.

Where the original's output lies on a flat side of the activation, the fitted one may lie anywhere
on that side. Majorize and minimize (Zhang et al., arXiv:1505.06798): there the present output takes
the target's place, as far as it is on that side; least squares for these targets; and again. But
for the ridge no sweep makes the error behind the activation larger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.least_squares import Gram

from graphopt.graph.constants import array_of, is_constant

__all__ = ["Rows", "fit_rectified", "sloped_range"]

Array = np.ndarray[Any, Any]

#: Sweeps at most; fewer where one gains less than the share `GAIN` of the error.
SWEEPS, GAIN = 8, 0.02


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows to fit to.

    Attributes:
        features: [groups, rows, n].
        wanted: sums to reach [groups, rows, m].
        known: what the sums have already, like `wanted`, or 0.
        share: of the rows to fit on; the others are held out where a ridge is chosen.
    """

    features: Array
    wanted: Array
    known: Array | float
    share: float

    def only(self, keep: Array | None) -> Rows:
        """Those of the rows where `keep` (bool) holds; all if None."""
        if keep is None:
            return self
        known = self.known[:, keep] if isinstance(self.known, np.ndarray) else self.known
        return Rows(self.features[:, keep], self.wanted[:, keep], known, self.share)


def sloped_range(value: ir.Value) -> tuple[float, float] | None:
    """The range outside of which nothing that reads the value changes with it, or None."""
    if value.is_graph_output() or not value.uses():
        return None
    found = {_sloped(use.node) for use in value.uses()}
    return found.pop() if len(found) == 1 else None


def _sloped(node: ir.Node) -> tuple[float, float] | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Relu", "Clip"):
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds = [-np.inf, np.inf]
    for k, value in enumerate(node.inputs[1:3]):
        if value is not None:
            if not is_constant(value):
                return None
            bounds[k] = float(array_of(value))
    return bounds[0], bounds[1]


def fit_rectified(
    gram: Gram,
    rows: Callable[[], Iterable[Rows]],
    weight: Array,
    bias: Array | None,
    sloped: tuple[float, float],
) -> tuple[Array, Array | None]:
    """Weight [groups, m, n] and bias [groups * m] with less error behind the activation.

    Args:
        gram: has the rows, and has been fitted.
        rows: the same rows, as often as asked.
        weight: what `gram.fit` found.
        bias: likewise.
        sloped: range in which the activation is not flat.
    """
    low, high = sloped
    error, best = np.inf, (weight, bias)
    for _ in range(SWEEPS):
        w = weight.astype(np.float32).transpose(0, 2, 1)
        b = np.float32(0) if bias is None else bias.reshape(len(w), 1, -1).astype(np.float32)
        cross, now = np.zeros((), np.float64), 0.0
        for part in rows():
            got, y = part.features @ w + b + part.known, part.wanted
            now += float(np.square(np.clip(got, low, high) - np.clip(y, low, high)).sum())
            y = np.where(y <= low, np.minimum(got, low), y)
            y = np.where(y >= high, np.maximum(got, high), y)
            cross = cross + gram.cross(part.features, y - part.known)
        gained = now <= error * (1 - GAIN)
        if now < error:
            error, best = now, (weight, bias)
        if not gained:
            break
        weight, bias = gram.fit_again(cross)
    return best
