"""Which calibrator's range an activation gets: the one that leaves the least error, as measured.

A channel's rounding error e_c reaches the outputs of what reads it through that channel's weights.
Errors of different elements are nearly independent, so what a range costs is

    sum over channels c of |W_c|^2 E[e_c^2]

measured on samples. Where no reader has weights every channel counts the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.grid import activation_grid
from graphopt.passes.int8.plan import Plan

from graphopt.calibration.ranges import Observed, Range, groups
from graphopt.context import Context
from graphopt.execution.observe import observe
from graphopt.execution.runtime import Arrays
from graphopt.graph.constants import weight_of
from graphopt.samples import Samples

__all__ = ["best_ranges"]

Array = np.ndarray[Any, Any]

#: Samples, positions of one run, and values at all of these, that errors are measured on at most.
RUNS, PLACES, VALUES = 8, 4096, 1 << 18


def best_ranges(
    model: ir.Model,
    ctx: Context,
    plan: Plan,
    samples: Samples,
    seen: Sequence[Mapping[str, Observed]],
) -> list[dict[str, Range]]:
    """The range of each observed activation, of those of `calibrate_folds`."""
    scheme, folds = ctx.target.int8, len(seen) - 1
    first = next(iter(samples), None)
    if scheme is None or first is None:
        return [{n: s.range for n, s in one.items()} for one in seen]
    weighed = _weighed(plan)
    rng = np.random.default_rng(ctx.seed)
    errors = [{n: np.zeros(len(s.candidates)) for n, s in one.items()} for one in seen]
    taken: dict[int, list[int]] = {}  # by run: the folds that are measured on it
    for number in range(2 * RUNS if folds else RUNS):
        knows = [k for k in range(folds + 1) if k == 0 or number % folds != k - 1]
        taken[number] = [k for k in knows if sum(k in t for t in taken.values()) < RUNS]
    names = list(dict.fromkeys(n for one in seen for n in one))
    for part in groups(model, names, first)[0]:
        runs: Iterable[Arrays] = islice(samples, len(taken))
        for number, arrays in enumerate(observe(model, part, runs)):
            for name, array in arrays.items():
                axis, energy = weighed.get(name, (-1, None))
                x = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
                places = max(1, min(PLACES, VALUES // max(x.shape[1], 1)))
                x = x[rng.choice(len(x), places, replace=False)] if len(x) > places else x
                x = np.where(np.isfinite(x), x, 0).astype(np.float32)
                each = energy if energy is not None and len(energy) == x.shape[1] else 1.0

                def error(to: Range, x: Array = x, each: Array | float = each) -> float:
                    grid = activation_grid(
                        to, scheme.activation, symmetric=scheme.symmetric_activation
                    )
                    off = np.clip(np.rint(x / grid.scale) * grid.scale, *_ends(grid.span)) - x
                    return float(np.sum(np.square(off).mean(axis=0) * each))

                known: dict[Range, float] = {}
                for k in taken[number]:
                    for i, to in enumerate(seen[k][name].candidates if name in seen[k] else ()):
                        known[to] = known[to] if to in known else error(to)
                        errors[k][name][i] += known[to]
    return [
        {n: s.candidates[int(np.argmin(errors[k][n]))] for n, s in one.items()}
        for k, one in enumerate(seen)
    ]


def _ends(span: Range) -> tuple[float, float]:
    return span.lo, span.hi


def _weighed(plan: Plan) -> dict[str, tuple[int, Array]]:
    """By activation: its channel axis, and the squared weights that read each channel."""
    found: dict[str, tuple[int, Array]] = {}
    for node, kind in plan.nodes.items():
        value = node.inputs[0]
        weight = weight_of(node.inputs[kind.weight]) if kind.weight is not None else None
        if weight is None or value is None or not value.name:
            continue
        array = np.square(weight.array(), dtype=np.float64)
        if node.op_type == "Conv":
            axis = 1
            inside = array.sum(axis=tuple(range(2, array.ndim)))
            groups_ = node.attributes.get_int("group", 1)
            split = inside.reshape(groups_, -1, inside.shape[1]).sum(axis=1)
            energy = split.reshape(-1)
        elif kind.axis is None:
            continue
        else:
            axis, energy = -1, array.sum(axis=kind.axis)
        if value.name in found and len(found[value.name][1]) == len(energy):
            energy = energy + found[value.name][1]
        found[value.name] = (axis, energy)
    return found
