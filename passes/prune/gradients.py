"""Gradient scores: what the loss does when a unit goes, by derivatives of a gate on it.

A gate z on a unit multiplies it wherever it is read; at z = 1 it changes nothing, at z = 0 the unit
is gone. For operators that read it by weights w the gate's derivative is that of the weights,

    gamma = d loss / d z = sum over w that read it of (d loss / d w) w

    taylor   E|gamma|       the loss to first order (Molchanov et al., arXiv:1611.06440), of the
                            labels or of the model's own answers
    fisher   1/2 E[gamma^2] the divergence from the original to second order (Theis et al.,
                            arXiv:1801.05787), with labels drawn from the model's own outputs

(`graphopt.execution.gradients` says why). Both are in units of the loss, so units of different
layers compare as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.scores import by_unit, weights_of

from graphopt.analyses.dims import Dimension, Member
from graphopt.context import Context
from graphopt.execution.gradients import backward
from graphopt.execution.runtime import Arrays
from graphopt.graph.constants import array_of

__all__ = ["Gradient", "gradient_scores"]

Array = np.ndarray[Any, Any]
Gradient = Literal["taylor", "fisher"]


def gradient_scores(
    kind: Gradient,
    model: ir.Model,
    dims: Mapping[str, Dimension],
    samples: Iterable[Arrays],
    ctx: Context,
) -> dict[str, Array]:
    """Per dimension the score of each unit, from one backward pass over the samples."""
    gates = {name: _gates(model, dim) for name, dim in dims.items()}
    scores = {name: np.zeros(dim.size) for name, dim in dims.items()}
    rows = 0
    loss: Literal["own", "drawn"] = "own" if kind == "taylor" else "drawn"
    for step in backward(model, samples, loss=loss, seed=ctx.seed):
        rows += step.rows
        for name, tensors in gates.items():
            gamma = np.zeros(dims[name].size)
            for weight, array, member in tensors:
                if weight in step.weights:
                    gamma += by_unit(step.weights[weight] * array, member, len(gamma))
            scores[name] += np.abs(gamma) if kind == "taylor" else gamma**2 / 2
    found = {name: total / max(rows, 1) for name, total in scores.items()}
    for name, total in found.items():
        if not total.any():
            ctx.note(f"no gradient reaches what reads '{name}': its units count as equal")
            others = [float(t.mean()) for t in found.values() if t.any()]
            found[name] = np.full(len(total), np.mean(others) if others else 1.0)
    return found


def _gates(model: ir.Model, dim: Dimension) -> list[tuple[str, Array, Member]]:
    """The weights that read a dimension or, if none do, those that write it."""
    held = weights_of(model, dim)
    reads = [(v, m) for v, m in held if m.role == "reads"]
    chosen = reads or [(v, m) for v, m in held if m.role == "writes"]
    return [(v.name or "", array_of(v), m) for v, m in chosen]
