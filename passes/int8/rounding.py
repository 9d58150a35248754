"""Weight rounding by second-order error (GPTQ), and bias correction of what that leaves.

Errors of one weight are made up for by the others (`graphopt.calibration.rounding`). What is left
of the mean, (r - w) E[x], is taken off the bias where the node has one that becomes an integer
(Nagel et al., Data-free quantization, ICCV 2019). A row is changed only where its error falls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.plan import Plan

from graphopt.analyses.linear import Linear, linear_of
from graphopt.calibration.moments import Moments, rows_of
from graphopt.calibration.ranges import groups
from graphopt.calibration.rounding import Order, compensated
from graphopt.context import Context
from graphopt.execution.observe import observe
from graphopt.execution.runtime import Arrays
from graphopt.graph.constants import weight_of

__all__ = ["Refined", "learn", "refine"]

Array = np.ndarray[Any, Any]

#: Samples that are observed, rows of one run, and the longest row: the time grows with its cube.
#: Up to 640 a ConvNeXt-tiny takes 2 s of processor time longer and a MobileNetV2 1.5 s.
RUNS, ROWS, LONGEST = 16, 512, 640


def learn(model: ir.Model, ctx: Context, plan: Plan) -> dict[str, Moments]:
    """What each product and convolution of `plan` multiplies, by node name."""
    wanted: dict[str, list[Linear]] = {}
    for node in (*plan.nodes, *plan.dynamic):
        op = linear_of(node)
        if isinstance(op, str) or op.data != 0 or not op.x.name or op.shared or op.groups > 1:
            continue
        if not op.stacked and prod(op.shape) // op.out_channels <= LONGEST:
            wanted.setdefault(op.x.name, []).append(op)
    first = next(iter(ctx.samples or ()), None)
    if not wanted or first is None or ctx.samples is None:
        return {}
    found: dict[str, Moments] = {}
    rng = np.random.default_rng(ctx.seed)
    for part in groups(model, list(wanted), first)[0]:
        runs: Iterable[Arrays] = islice(ctx.samples, RUNS)
        runs = ctx.track(runs, RUNS, "observing what weights multiply")
        for arrays in observe(model, part, runs):
            for name, array in arrays.items():
                for op in wanted[name]:
                    rows = rows_of(op, array, ROWS, rng)
                    if not len(rows) or not np.isfinite(rows).all():
                        continue
                    key = op.node.name or ""
                    if key not in found:
                        found[key] = Moments.zero(1, rows.shape[1])
                    found[key].add(rows[None])
    return found


@dataclasses.dataclass(frozen=True)
class Refined:
    """A weight's integers at these scales, and what its node's bias gains."""

    integers: Array
    scales: Array
    shift: Array


def refine(
    plan: Plan,
    weights: Mapping[ir.Node, tuple[Array, Array]],
    seen: Mapping[str, Moments],
    steps: Mapping[str, float],
    top: int,
) -> dict[str, Refined]:
    """Integers that leave less error on the outputs, by node name.

    Args:
        plan: what becomes integer.
        weights: the nearest integers, and their scales.
        seen: what each node multiplies.
        steps: the step each activation is rounded to, by its name, where it is known. What its
            rounding adds is multiplied too, in every direction alike: it keeps weights from making
            up for each other along directions that samples do not take.
        top: the largest integer.
    """
    out: dict[str, Refined] = {}
    kinds = {**plan.nodes, **plan.dynamic}
    for node, (integers, scales) in weights.items():
        kind, moments = kinds[node], seen.get(node.name or "")
        if moments is None or kind.weight is None or kind.axis is None or scales.ndim != 1:
            continue
        tensor = weight_of(node.inputs[kind.weight])
        assert tensor is not None
        w = np.moveaxis(tensor.array(), kind.axis, 0)
        shape, w = w.shape, w.reshape(len(scales), -1).astype(np.float64)
        near = np.moveaxis(integers, kind.axis, 0).reshape(w.shape)
        (h,), (mean,) = moments.second, moments.mean
        x = node.inputs[kind.data[0]]
        step = steps.get(x.name or "", 0.0) if x is not None else 0.0
        h = h + np.eye(len(h)) * step**2 / 12
        grid = scales.astype(np.float64)[:, None]
        chosen = compensated(w, near, grid, Order.of(h), -top, top)
        back = np.moveaxis(chosen.reshape(shape), 0, kind.axis).astype(np.int8)
        shift = -((chosen * grid - w) @ mean)
        out[node.name or ""] = Refined(np.ascontiguousarray(back), scales, shift)
    return out
