"""Layers whose units are masked, not cut: least squares on samples, for the methods from papers.

A unit that no layer reads might as well be gone. So a method may zero weights in a copy of the
model, layer by layer, and cut all units at the end (`bench/prune_baselines.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.prune.linear import Refittable, refittable
from graphopt.passes.prune.recurrent import Cell, cell
from graphopt.passes.prune.sampling import Draw

from graphopt.analyses.dims import Dimension
from graphopt.execution.staged import Staged

__all__ = ["Layer", "Sums", "damped", "layers"]

Array = np.ndarray[Any, Any]
#: Added to the diagonal of second moments, as a share of its mean.
DAMPING = 1e-2


@dataclasses.dataclass
class Sums:
    """Sums over rows of f f^T, f y^T, f and y: what least squares with a bias needs."""

    ff: Array
    fy: Array
    f: Array
    y: Array
    rows: int = 0

    @classmethod
    def zero(cls, features: int, outputs: int) -> Sums:
        shapes = [(features, features), (features, outputs), (features,), (outputs,)]
        return cls(*(np.zeros(shape) for shape in shapes))

    def add(self, f: Array, y: Array) -> None:
        """Rows f [rows, features] and y [rows, outputs]."""
        self.ff += f.T @ f
        self.fy += f.T @ y
        self.f += f.sum(0, dtype=np.float64)
        self.y += y.sum(0, dtype=np.float64)
        self.rows += len(f)

    @property
    def covariance(self) -> Array:
        return np.asarray(self.ff / self.rows - np.outer(self.f, self.f) / self.rows**2)

    @property
    def cross(self) -> Array:
        """Covariance of f and y."""
        return np.asarray(self.fy / self.rows - np.outer(self.f, self.y) / self.rows**2)

    def fit(self, prior: Array, kept: Array) -> tuple[Array, Array]:
        """Least squares, held to a prior: weight [outputs, features], 0 but for `kept`; bias."""
        at = np.flatnonzero(kept)
        inner = self.covariance[np.ix_(at, at)]
        weight = np.zeros_like(prior)
        off = self.cross[at] - inner @ prior[:, at].T
        weight[:, at] = prior[:, at] + np.linalg.solve(damped(inner), off).T
        return weight, (self.y - weight @ self.f) / self.rows


def damped(square: Array) -> Array:
    return np.asarray(
        square + (DAMPING * np.trace(square) / len(square) + 1e-12) * np.eye(len(square))
    )


@dataclasses.dataclass
class Layer:
    """y = W f(x) + b in groups; of a recurrent cell the gates, a group for each direction.

    Attributes:
        op: the operator.
        units: by dimension, the unit of each feature [groups, features], -1 for none.
    """

    op: Refittable | Cell
    units: dict[str, Array]

    @property
    def shifts(self) -> bool:
        """Whether it has a bias."""
        return isinstance(self.op, Cell) or self.op.can_shift

    def weights(self) -> list[tuple[Array, Array]]:
        """Weight [outputs, features] and bias of every group."""
        if isinstance(self.op, Refittable):
            matrix = self.op.matrix()
            return list(zip(matrix, self.op.bias().reshape(matrix.shape[:2]), strict=True))
        found = [self.op.weights(d) for d in range(len(self.op.reverse))]
        return [(np.concatenate([w, r], axis=1), b.sum(0)) for w, r, b in found]

    def store(self, model: ir.Model, made: list[tuple[Array, Array]]) -> None:
        """Put what is like `weights` into the model."""
        if isinstance(self.op, Refittable):
            bias = np.concatenate([b for _, b in made]) if self.shifts else None
            self.op.store(model, np.stack([w for w, _ in made]), bias)
        else:
            inner = self.op.weights(0)[0].shape[1]
            parts = [(w[:, :inner], w[:, inner:], np.stack([b, 0 * b])) for w, b in made]
            self.op.store(model, parts)

    def sums(self, original: Layer, was: Staged, now: Staged) -> list[Sums]:
        """Of every group, on samples: this model's inputs beside the original's W f(x) + b.

        A cell's states are the original's: what its own would be depends on the fit.
        """
        weights = original.weights()
        found = [Sums.zero(w.shape[1], len(w)) for w, _ in weights]
        mine, theirs = self.op, original.op
        if isinstance(mine, Refittable) and isinstance(theirs, Refittable):
            draw = Draw(theirs, weights[0][0].shape[1], was.runs, 0)
            pairs = zip(was.values([theirs.y]), now.values([mine.x]), strict=True)
            for (y,), (x,) in pairs:
                at = draw(y.shape)
                rows, wanted = theirs.features(x, y.shape, at), theirs.channels(y, at)
                for one, f, t, (_, b) in zip(found, rows, wanted, weights, strict=True):
                    # what a MatMul computes has not got its bias yet
                    one.add(f, t if theirs.adds is None else t + b.astype(t.dtype))
        elif isinstance(mine, Cell) and isinstance(theirs, Cell):
            for (x, h, *first), (actual,) in zip(
                was.values(theirs.values()), now.values(mine.values()[:1]), strict=True
            ):
                for d, (w, b) in enumerate(weights):
                    before, state = theirs.rows(x, h, first[0] if first else None, d)
                    wanted = np.concatenate([before, state], axis=1) @ w.T + b
                    inputs, _ = theirs.rows(actual, h, None, d)
                    found[d].add(np.concatenate([inputs, state], axis=1), wanted)
        return found


def layers(model: ir.Model, dims: Mapping[str, Dimension]) -> dict[str, Layer]:
    """The layers that read dimensions, by node name in graph order."""
    found: dict[str, Layer] = {}
    for node in model.graph:
        op: Refittable | Cell | str = refittable(node) or cell(node)
        if isinstance(op, str):
            continue
        for name, dim in dims.items():
            read = {
                (m.input, m.axis): m.positions
                for m in dim.members
                if m.node == node.name and not m.constant and (m.role == "reads" or _is(op, Cell))
            }
            unit = _of_linear(op, read) if isinstance(op, Refittable) else _of_cell(op, read)
            if unit is not None:
                found.setdefault(node.name or "", Layer(op, {})).units[name] = unit
    return found


def _is(op: Refittable | Cell, kind: type) -> bool:
    return isinstance(op, kind)


def _of_linear(op: Refittable, read: Mapping[tuple[str, int], Array]) -> Array | None:
    """Unit of each feature of a linear operator, or None where it reads no unit."""
    positions = next((p for (value, _), p in read.items() if value == op.x.name), None)
    if positions is None:
        return None
    groups, _, features = op.matrix().shape
    apart = positions.reshape(groups, -1)
    return np.repeat(apart, features // apart.shape[1], axis=1)


def _of_cell(op: Cell, read: Mapping[tuple[str, int], Array]) -> Array | None:
    """Likewise of a recurrent cell: what it reads may be its input, its state, or both."""
    x, y = op.values()[:2]
    inputs, states = read.get((x.name or "", 2)), read.get((y.name or "", 3))
    if inputs is None and states is None:
        return None
    w, r, _ = op.weights(0)
    parts = [
        np.full(width, -1) if units is None else units
        for units, width in ((inputs, w.shape[1]), (states, r.shape[1]))
    ]
    return np.tile(np.concatenate(parts), (len(op.reverse), 1))
