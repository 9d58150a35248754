"""Weights to round, what they multiply, and how much errors of each output matter.

How much is from the Fisher matrix (`graphopt.execution.gradients`): an error e of a weight adds
1/2 e^T F e to the outputs' divergence. Of the diagonal of F, F[o, k] ~ u[o] H[k, k]. Of a
convolution half of that is believed (in octaves) and columns have one step: what is behind a Relu
and silent on samples has no gradient, and speaks up when errors are large.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.linear import Linear, linear_of
from graphopt.calibration.moments import Moments, rows_of
from graphopt.context import Progress
from graphopt.entropy.integers import TAPS
from graphopt.execution.gradients import backward
from graphopt.execution.staged import Staged
from graphopt.packing.rounding import GROUP, Layer
from graphopt.samples import Feeds

__all__ = ["layers_of"]

Array = np.ndarray[Any, Any]

#: Smaller tensors stay as they are.
SMALLEST = 16
#: Rows of one run that moments are taken of, in all, and samples that gradients are.
ROWS, GRADIENTS = 16384, 384
#: Wider matrices are rounded as if their columns were independent.
WIDEST = 6144


def layers_of(
    model: ir.Model, samples: Sequence[Feeds], seed: int, progress: Progress
) -> list[Layer]:
    """Every float32 weight that the outputs follow, by name, with what rounding it does.

    Raises:
        MissingExtra: torch, which gradients need, is not installed.
        ModelError: it does not know an operator of the model.
    """
    fisher, rows = _fisher(model, samples, seed, progress)
    found: list[Layer] = []
    seconds = _seconds(model, samples, fisher, seed)
    for name, op, second in seconds:
        progress("looking at what layers multiply", len(found), len(fisher))
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        array = tensor.numpy().astype(np.float64)
        grid = fisher.pop(name) / rows
        turned = isinstance(op, Linear) and not op.out_axis < op.in_axis
        if turned:
            w, f = array.T, grid.T
        else:
            w, f = (a.reshape(-1, len(second)) for a in (array, grid))
        kernel = op.kernel if isinstance(op, Linear) else ()
        taps = int(np.prod(kernel)) if 1 < np.prod(kernel) <= TAPS else GROUP
        u = _calm(f.sum(axis=1) / max(float(np.trace(second)), 1e-30))
        if kernel:
            u = np.sqrt(u * np.exp(np.log(u).mean()))
        h = None if len(second) > WIDEST else second
        found.append(Layer(name, w, taps, turned, array.shape, h, u, even=bool(kernel)))
    for name, grid in fisher.items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        array = tensor.numpy().astype(np.float64)
        first_axis = next((n for n in array.shape if n > 1), 1)
        matrix = array.size // first_axis >= GROUP
        w = array.reshape(first_axis if matrix else -1, array.size // first_axis if matrix else 1)
        f = grid.reshape(w.shape).mean(axis=1) / rows
        u = _calm(f) if matrix else np.full(len(w), f.mean())
        found.append(Layer(name, w, GROUP if matrix else 1, False, array.shape, None, u))
    return found


def _calm(u: Array) -> Array:
    """What few samples say of single outputs, drawn to what they say of all."""
    calm: Array = 0.85 * u + 0.15 * u.mean() + 1e-30
    return calm


def _fisher(
    model: ir.Model, samples: Sequence[Feeds], seed: int, progress: Progress
) -> tuple[dict[str, Array], int]:
    """The diagonal of the Fisher matrix by initializer, summed over rows; how many rows."""
    sums: dict[str, Array] = {}
    rows = 0
    for step in backward(model, samples, loss="drawn", seed=seed):
        rows += step.rows
        progress("measuring what errors do", min(rows, GRADIENTS), GRADIENTS)
        for name, gradient in step.weights.items():
            square = np.square(gradient, dtype=np.float64)
            sums[name] = sums[name] + square if name in sums else square
        if rows >= GRADIENTS:
            break
    inputs = {v.name for v in model.graph.inputs}
    held = model.graph.initializers
    kept = {
        n: f
        for n, f in sums.items()
        if n in held
        and n not in inputs
        and (tensor := held[n].const_value) is not None
        and tensor.dtype == ir.DataType.FLOAT
        and tensor.size >= SMALLEST
        and f.any()
        and np.isfinite(tensor.numpy()).all()
    }
    return kept, rows


def _seconds(
    model: ir.Model, samples: Sequence[Feeds], names: dict[str, Array], seed: int
) -> Iterator[tuple[str, Linear | None, Array]]:
    """For each weight of a linear operator: its name, the operator, E[x x^T]."""
    wanted: list[tuple[str, Linear | None, ir.Value]] = []
    seen: set[str] = set()
    for node in model.graph:
        op = linear_of(node)
        if isinstance(op, str):
            continue
        plain = op.weight.is_initializer() and not (op.stacked or op.left or op.turned)
        plain = plain and op.groups == 1 and node.op_type not in ("Gather", "ConvTranspose")
        name = op.weight.name or ""
        if plain and name in names and name not in seen:
            seen.add(name)
            wanted.append((name, op, op.x))
        again = node.inputs[2] if node.op_type in ("LSTM", "GRU", "RNN") else None
        if again is not None and again.name in names and again.name not in seen:
            seen.add(again.name)
            wanted.append((again.name, None, node.outputs[0]))
    rng = np.random.default_rng(seed)
    with Staged(model.clone(), samples) as staged:
        values = {v.name: v for v in staged.model.graph.inputs}
        values.update({o.name: o for n in staged.model.graph for o in n.outputs})
        most = max(1, ROWS // max(staged.runs, 1))
        for k, (name, given, value) in enumerate(wanted):
            moments: Moments | None = None
            for (x,) in staged.values([values[value.name]]):
                flat = x.reshape(-1, x.shape[-1])
                rows = flat if given is None else rows_of(given, x, most, rng)
                moments = moments or Moments.zero(1, rows.shape[1])
                moments.add(rows[None])
            staged.forget([values[v.name] for *_, v in wanted[k + 1 :]])
            if moments is not None and np.isfinite(moments.ff).all():
                yield name, given, moments.second[0]


def first(samples: Any, most: int) -> list[Feeds]:
    """The first runs of samples, of at most so many rows."""
    found: list[Feeds] = []
    rows = 0
    for feeds in islice(samples, most):
        found.append(feeds)
        rows += max((len(a) for a in feeds.values() if a.ndim), default=1)
        if rows >= most:
            break
    return found
