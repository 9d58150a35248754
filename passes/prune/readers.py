"""Linear operators that read a dimension, with what they read on samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.compensation import known_terms
from graphopt.passes.prune.linear import Refittable, refittable
from graphopt.passes.prune.reconstruct import Reader
from graphopt.passes.prune.recurrent import Cell, cell
from graphopt.passes.prune.sampling import FEATURES_MOST, Draw

from graphopt.analyses.dims import Dimension
from graphopt.calibration.moments import Moments
from graphopt.calibration.padding import Padding
from graphopt.context import Context
from graphopt.execution.runtime import Arrays
from graphopt.execution.staged import Staged

__all__ = ["readers"]

Array = np.ndarray[Any, Any]
#: An operator and, per value it reads units from, the unit of each channel.
Reading = tuple[Refittable | Cell, dict[str, Array]]


def readers(
    model: ir.Model,
    dims: Mapping[str, Dimension],
    samples: Iterable[Arrays],
    ctx: Context,
    padding: Padding | None = None,
) -> Iterator[tuple[str, list[Reader]]]:
    """Each dimension's name with its linear readers (none where nothing linear reads it)."""
    nodes = {n.name: n for n in model.graph}
    place = {n: k for k, n in enumerate(model.graph)}
    found = {name: _readings(dim, nodes) for name, dim in dims.items()}
    names = list(dims)
    with Staged(model, samples) as run:
        for k, name in enumerate(names):
            made: list[Reader] = []
            for op, units in found[name]:
                made += _observe(op, units, _values(op, place), run, ctx, padding)
            yield name, made
            later = [op for n in names[k + 1 :] for op, _ in found[n]]
            run.forget([v for op in later for v in _values(op, place)])


def _readings(dim: Dimension, nodes: Mapping[str | None, ir.Node]) -> list[Reading]:
    """Operators whose sums run over `dim`: linear ones, and recurrent ones with such states."""
    found: dict[str, Reading] = {}
    for member in dim.members:
        node = nodes.get(member.node)
        if node is None or member.constant:
            continue
        op: Refittable | Cell | str = refittable(node) or cell(node)
        if isinstance(op, Refittable):
            reads = member.role == "reads" and member.input == op.x.name
            if reads and op.matrix().shape[2] <= FEATURES_MOST:
                found.setdefault(member.node, (op, {}))[1][member.input] = member.positions
        elif isinstance(op, Cell):
            x, y = op.values()[:2]
            if (member.input == x.name and member.axis == 2) or (
                member.input == y.name and member.axis == 3
            ):
                found.setdefault(member.node, (op, {}))[1][member.input] = member.positions
    return list(found.values())


def _values(op: Refittable | Cell, place: Mapping[ir.Node, int]) -> list[ir.Value]:
    return op.values() if isinstance(op, Cell) else [op.x, op.y, *known_terms(op, place)]


def _observe(
    op: Refittable | Cell,
    units: Mapping[str, Array],
    values: list[ir.Value],
    run: Staged,
    ctx: Context,
    padding: Padding | None,
) -> list[Reader]:
    """The operator as readers: covariance of its features, variance of the sum it goes into."""
    if isinstance(op, Cell):
        x, y = (units.get(v.name or "") for v in values[:2])
        return op.readers(x, y, run.values(values))
    w = op.matrix()
    groups, outputs, features = w.shape
    moments = Moments.zero(groups, features)
    total, square, count = np.zeros(groups * outputs), np.zeros(groups * outputs), 0
    draw = Draw(op, features, run.runs, ctx.seed)
    waiting: list[Array] = []
    samples = 0
    for number, (inputs, result, *terms) in enumerate(run.values(values)):
        samples += result.shape[0]
        at = draw(result.shape)
        keep = padding.rows((op.y.name or "", op.channel_axis), number, at) if padding else None
        some = slice(None) if keep is None else keep
        waiting.append(op.features(inputs, result.shape, at)[:, some])
        if sum(f.shape[1] for f in waiting) >= features:  # each sum takes a square of features
            moments.add(np.concatenate(waiting, axis=1))
            waiting.clear()
        for term in terms:
            result = result + term
        rows = op.channels(result, at)[:, some].transpose(1, 0, 2).reshape(-1, groups * outputs)
        rows = rows.astype(np.float64)
        total, square, count = total + rows.sum(0), square + (rows**2).sum(0), count + len(rows)
    if waiting:
        moments.add(np.concatenate(waiting, axis=1))
    energy = float((square / max(count, 1) - (total / max(count, 1)) ** 2).sum())
    covariance = moments.covariance()
    if moments.rows < features:
        for each in covariance:
            _shrink(each, samples)  # positions of one sample are no draws of their own
    (positions,) = units.values()
    unit = np.repeat(positions.reshape(groups, -1), features * groups // len(positions), axis=1)
    return [Reader(w[g], covariance[g], unit[g], max(energy, 1e-30)) for g in range(groups)]


def _shrink(covariance: Array, draws: int) -> None:
    """Oracle approximating shrinkage towards the mean variance (Chen et al., arXiv:0907.4698).

    Fewer rows than features leave directions in which nothing varies on them: what a unit there
    costs would be nothing, and what the rest makes up for it everything.

    Args:
        covariance: [features, features], changed in place.
        draws: how many independent ones it was estimated from.
    """
    n, trace, square = len(covariance), np.trace(covariance), float(np.vdot(covariance, covariance))
    spread = (draws + 1 - 2 / n) * (square - trace**2 / n)
    share = min(1.0, ((1 - 2 / n) * square + trace**2) / max(spread, 1e-300))
    covariance *= 1 - share
    np.einsum("ii->i", covariance)[:] += share * trace / n
