"""Scores: what each unit of a dimension is worth, from the weights it carries.

A unit's score is its mean over every weight it carries (rows, columns or filters of each tensor
that writes, carries or reads the dimension), each tensor's scores first divided by their mean, so
that tensors of one dimension count alike and dimensions compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.linear import array_of

from graphopt.analyses.dims import Dimension, Member
from graphopt.context import Context

__all__ = ["MAGNITUDES", "Magnitude", "magnitude", "weights_of"]

Array = np.ndarray[Any, Any]
Magnitude = Literal["l1", "l2", "fpgm", "random"]


def _l1(units: Array) -> Array:
    """|w|_1"""
    scores: Array = np.abs(units).sum(axis=1)
    return scores


def _l2(units: Array) -> Array:
    """|w|_2"""
    scores: Array = np.sqrt((units**2).sum(axis=1))
    return scores


def _fpgm(units: Array) -> Array:
    """Sum of distances to the other units (He et al., arXiv:1811.00250)."""
    square = (units**2).sum(axis=1)
    distance = square[:, None] + square[None] - 2 * units @ units.T
    scores: Array = np.sqrt(np.maximum(distance, 0)).sum(axis=1)
    return scores


MAGNITUDES: Mapping[str, Callable[[Array], Array]] = {"l1": _l1, "l2": _l2, "fpgm": _fpgm}


def magnitude(kind: Magnitude, model: ir.Model, dim: Dimension, ctx: Context) -> Array:
    """Scores of the units of `dim`, mean 1 (all 1 if it carries no weight)."""
    if kind == "random":
        return ctx.rng.random(dim.size)
    found = []
    for value, member in weights_of(model, dim):
        scores = MAGNITUDES[kind](_units(array_of(value), member, dim.size))
        if scores.sum() > 0:
            found.append(scores / scores.mean())
    return np.mean(found, axis=0) if found else np.ones(dim.size)


def weights_of(model: ir.Model, dim: Dimension) -> list[tuple[ir.Value, Member]]:
    """The constant tensors of two axes or more that carry the dimension."""
    nodes = {n.name: n for n in model.graph.all_nodes()}
    found = []
    for member in dim.members:
        if not member.constant:
            continue
        value = next(
            v for v in nodes[member.node].inputs if v is not None and v.name == member.input
        )
        if value.shape is not None and len(value.shape) >= 2:
            found.append((value, member))
    return found


def _units(array: Array, member: Member, size: int) -> Array:
    """[units, weights of one unit]: slices of `array`, those of a unit's positions side by side."""
    slices = (
        np.moveaxis(array, member.axis, 0).reshape(len(member.positions), -1).astype(np.float64)
    )
    counts = np.bincount(member.positions[member.positions >= 0], minlength=size)
    units = np.zeros((size, int(counts.max(initial=1)), slices.shape[1]))
    for unit in range(size):
        at = np.flatnonzero(member.positions == unit)
        units[unit, : len(at)] = slices[at]
    return units.reshape(size, -1)
