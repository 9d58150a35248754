"""Importance scores of units from weights: L1, L2, geometric median (FPGM), activation, random.

A unit's score is its mean over every weight it carries (rows, columns or filters of each tensor
that writes, carries or reads the dimension), each tensor's scores first divided by their mean, so
that tensors of one dimension count alike and dimensions compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import Dimension, Member
from graphopt.context import Context
from graphopt.graph.constants import array_of

__all__ = ["MAGNITUDES", "Magnitude", "by_unit", "magnitude", "weights_of"]

Array = np.ndarray[Any, Any]
Magnitude = Literal["l1", "l2", "fpgm", "random"]


def _l1(array: Array, member: Member, size: int) -> Array:
    """|w|_1"""
    return by_unit(np.abs(array), member, size)


def _l2(array: Array, member: Member, size: int) -> Array:
    """|w|_2"""
    scores: Array = np.sqrt(by_unit(np.square(array), member, size))
    return scores


def _fpgm(array: Array, member: Member, size: int) -> Array:
    """Sum of distances to the other units (He et al., arXiv:1811.00250)."""
    slices = np.moveaxis(array, member.axis, 0).reshape(len(member.positions), -1)
    counts = np.bincount(member.positions[member.positions >= 0], minlength=size)
    units = np.zeros((size, int(counts.max(initial=1)), slices.shape[1]), slices.dtype)
    for unit in range(size):
        at = np.flatnonzero(member.positions == unit)
        units[unit, : len(at)] = slices[at]
    flat = units.reshape(size, -1)
    square = np.einsum("uw,uw->u", flat, flat, dtype=np.float64)
    distance = square[:, None] + square[None] - 2 * (flat @ flat.T)
    scores: Array = np.sqrt(np.maximum(distance, 0)).sum(axis=1)
    return scores


def by_unit(array: Array, member: Member, size: int) -> Array:
    """Per unit the sum of `array` over all its positions and every other axis."""
    others = tuple(k for k in range(array.ndim) if k != member.axis)
    sums = array.sum(axis=others, dtype=np.float64)
    here = member.positions >= 0
    return np.bincount(member.positions[here], sums[here], minlength=size)


MAGNITUDES: Mapping[str, Callable[[Array, Member, int], Array]] = {
    "l1": _l1,
    "l2": _l2,
    "fpgm": _fpgm,
}


def magnitude(kind: Magnitude, model: ir.Model, dim: Dimension, ctx: Context) -> Array:
    """Scores of the units of `dim`, mean 1 (all 1 if it carries no weight)."""
    if kind == "random":
        return ctx.rng.random(dim.size)
    found = []
    for value, member in weights_of(model, dim):
        scores = MAGNITUDES[kind](array_of(value), member, dim.size)
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
