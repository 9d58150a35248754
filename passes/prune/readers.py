"""Readers: the linear operators that read a dimension, with what they read on samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.gram import Moments
from graphopt.passes.prune.linear import Linear, linear
from graphopt.passes.prune.reconstruct import Reader
from graphopt.passes.prune.refit import (
    FEATURES_MOST,
    ROWS_LEAST,
    ROWS_PER_FEATURE,
    known_terms,
)

from graphopt.analyses.dims import Dimension
from graphopt.context import Context
from graphopt.runtime import Arrays
from graphopt.staged import Staged

__all__ = ["readers"]

Array = np.ndarray[Any, Any]


def readers(
    model: ir.Model, dims: Mapping[str, Dimension], samples: Iterable[Arrays], ctx: Context
) -> Iterable[tuple[str, list[Reader]]]:
    """Each dimension's name with its linear readers (none where nothing linear reads it)."""
    nodes = {n.name: n for n in model.graph}
    place = {n: k for k, n in enumerate(model.graph)}
    found = {name: _operators(dim, nodes) for name, dim in dims.items()}
    names = list(dims)
    with Staged(model, samples) as run:
        for k, name in enumerate(names):
            made: list[Reader] = []
            for op, units in found[name]:
                made += _observe(op, units, known_terms(op, place), run, ctx)
            yield name, made
            later = [op for n in names[k + 1 :] for op, _ in found[n]]
            run.forget([v for op in later for v in (op.x, op.y, *known_terms(op, place))])


def _operators(dim: Dimension, nodes: Mapping[str | None, ir.Node]) -> list[tuple[Linear, Array]]:
    """Linear operators that read `dim`, with the unit of each of their input's channels."""
    found = []
    for member in dim.members:
        node = nodes.get(member.node)
        if node is None or member.role != "reads" or member.constant:
            continue
        op = linear(node)
        if not isinstance(op, Linear) or op.x.name != member.input:
            continue
        if op.matrix().shape[2] <= FEATURES_MOST:
            found.append((op, member.positions))
    return found


def _observe(
    op: Linear, units: Array, terms: list[ir.Value], run: Staged, ctx: Context
) -> list[Reader]:
    """The operator's groups as readers: covariance of the features, variance of the output sum."""
    w = op.matrix()
    groups, outputs, features = w.shape
    moments = Moments.zero(groups, features + 1, 0)
    total, square, count = np.zeros(groups * outputs), np.zeros(groups * outputs), 0
    rng = np.random.default_rng(ctx.seed)
    some: int | None = None
    for x, y, *added in run.values([op.x, op.y, *terms]):
        there = op.positions(y.shape)
        if some is None:
            wanted = max(ROWS_LEAST, ROWS_PER_FEATURE * features)
            some = min(there, -(-wanted // (run.runs * len(y))))
        at = None if some >= there else np.sort(rng.choice(there, some, replace=False))
        f = op.features(x, y.shape, at)
        f = np.concatenate([f, np.ones((*f.shape[:2], 1), f.dtype)], axis=2)
        moments.add(f, np.zeros((*f.shape[:2], 0), f.dtype))
        for term in added:
            y = y + term
        rows = op.channels(y, at).transpose(1, 0, 2).reshape(-1, groups * outputs)
        rows = rows.astype(np.float64)
        total, square, count = total + rows.sum(0), square + (rows**2).sum(0), count + len(rows)
    if not count:
        return []
    energy = float((square / count - (total / count) ** 2).sum())
    second = moments.ff / moments.rows
    mean = second[:, -1, :-1]
    covariance = second[:, :-1, :-1] - mean[:, :, None] * mean[:, None, :]
    unit = np.repeat(units.reshape(groups, -1), features * groups // len(units), axis=1)
    return [Reader(w[g], covariance[g], unit[g], max(energy, 1e-30)) for g in range(groups)]
