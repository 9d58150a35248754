"""Weight rounding by second-order error (GPTQ): what one weight loses the others make up for.

With H = E[x x^T] over samples, a row w of the weight rounded to r moves its output by

    E[((r - w) x)^2]  =  (r - w) H (r - w)^T

Rounding each weight to its nearest step ignores what inputs have in common. Here weights are
rounded one after another, and the error of each is taken up by those still to come, in closed form
(optimal brain quantization in a fixed order; Frantar et al., GPTQ, ICLR 2023; what AdaRound finds
by gradients). What is left of the mean, (r - w) E[x], is taken off the bias where the node has one
that becomes an integer (Nagel et al., Data-free quantization, ICCV 2019). A row is changed only
where the error above falls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.plan import Plan
from graphopt.passes.int8.weights import weight_of
from graphopt.passes.svd.moments import patches

from graphopt.calibration.ranges import groups
from graphopt.context import Context
from graphopt.execution.observe import observe
from graphopt.execution.runtime import Arrays

__all__ = ["Order", "Refined", "Second", "compensated", "errors", "learn", "refine"]

Array = np.ndarray[Any, Any]

#: Samples that are observed, rows of one run, and the longest row: the time grows with its cube.
#: Up to 640 a ConvNeXt-tiny takes 2 s of processor time longer and a MobileNetV2 1.5 s.
RUNS, ROWS, LONGEST = 16, 512, 640
#: Added to the diagonal of H, relative to its mean: few samples leave it singular.
DAMP = 0.01
#: Columns rounded before the ones behind them are told.
BLOCK = 64


@dataclasses.dataclass
class Second:
    """Sums over rows x: of x x^T, of x, and how many rows there were."""

    square: Array
    total: Array
    rows: int = 0

    def add(self, rows: Array) -> None:
        """Take in rows [n, k]."""
        self.square += rows.T @ rows
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.rows += len(rows)


def learn(model: ir.Model, ctx: Context, plan: Plan) -> dict[str, Second]:
    """What each product and convolution of `plan` multiplies, by node name."""
    wanted: dict[str, list[tuple[ir.Node, tuple[int, ...]]]] = {}
    for node, kind in (*plan.nodes.items(), *plan.dynamic.items()):
        weight = weight_of(node.inputs[kind.weight]) if kind.weight is not None else None
        value = node.inputs[0]
        if weight is None or value is None or not value.name or kind.axis is None:
            continue
        if len(list(weight.root.uses())) > 1 or weight.root.is_graph_output():
            continue
        if int(np.prod(weight.shape)) // weight.shape[kind.axis] > LONGEST:
            continue
        if node.attributes.get_int("group", 1) == 1:
            wanted.setdefault(value.name, []).append((node, weight.shape))
    first = next(iter(ctx.samples or ()), None)
    if not wanted or first is None or ctx.samples is None:
        return {}
    found: dict[str, Second] = {}
    rng = np.random.default_rng(ctx.seed)
    for part in groups(model, list(wanted), first)[0]:
        runs: Iterable[Arrays] = islice(ctx.samples, RUNS)
        runs = ctx.track(runs, RUNS, "observing what weights multiply")
        for arrays in observe(model, part, runs):
            for name, array in arrays.items():
                for node, shape in wanted[name]:
                    rows = _rows(node, array, shape, rng)
                    if not len(rows) or not np.isfinite(rows).all():
                        continue
                    size = rows.shape[1]
                    key = node.name or ""
                    if key not in found:
                        found[key] = Second(np.zeros((size, size)), np.zeros(size))
                    found[key].add(rows)
    return found


def _rows(node: ir.Node, x: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if node.op_type == "Conv":
        flat = patches(node, x, shape[2:], rng)
    else:
        flat = x.reshape(-1, x.shape[-1])
    if len(flat) > ROWS:
        flat = flat[np.sort(rng.choice(len(flat), ROWS, replace=False))]
    return flat.astype(np.float32, copy=False)


@dataclasses.dataclass(frozen=True)
class Refined:
    """A weight's integers at these scales, and what its node's bias gains."""

    integers: Array
    scales: Array
    shift: Array


def refine(
    plan: Plan,
    weights: Mapping[ir.Node, tuple[Array, Array]],
    seen: Mapping[str, Second],
    top: int,
) -> dict[str, Refined]:
    """Integers that leave less error on the outputs, by node name."""
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
        h = moments.square / max(moments.rows, 1)
        steps = scales.astype(np.float64)[:, None]
        rounded = compensated(w, steps, Order.of(h), -top, top)
        better = errors(rounded * steps - w, h) < errors(near * steps - w, h)
        chosen = np.where(better[:, None], rounded, near)
        mean = moments.total / max(moments.rows, 1)
        back = np.moveaxis(chosen.reshape(shape), 0, kind.axis).astype(np.int8)
        shift = -((chosen * steps - w) @ mean)
        out[node.name or ""] = Refined(np.ascontiguousarray(back), scales, shift)
    return out


def errors(off: Array, h: Array) -> Array:
    """E[(off x)^2] of each row of off [o, k]."""
    return np.asarray(np.einsum("oi,oi->o", off @ h, off))


@dataclasses.dataclass(frozen=True)
class Order:
    """The order weights are rounded in, by falling H[k, k], and what each asks of later ones.

    Attributes:
        h: the second moment H [k, k].
        places: the columns in that order.
        upper: the upper Cholesky factor of the inverse of H, in that order.
    """

    h: Array
    places: Array
    upper: Array

    @classmethod
    def of(cls, h: Array) -> Order:
        """From a second moment, singular or not."""
        places = np.argsort(-np.diag(h), kind="stable")
        sorted_ = h[np.ix_(places, places)]
        damp = max(DAMP * float(np.mean(np.diag(h))), 1e-12)
        return cls(h, places, np.linalg.cholesky(np.linalg.inv(sorted_ + np.eye(len(h)) * damp)).T)


def compensated(w: Array, steps: Array, order: Order, low: Array | int, high: Array | int) -> Array:
    """Integers for w [o, k] in `steps`, between `low` and `high` (these broadcast against w)."""
    places, upper = order.places, order.upper
    left, steps = w[:, places].copy(), np.broadcast_to(steps, w.shape)[:, places]
    low, high = (np.broadcast_to(a, w.shape)[:, places] for a in (low, high))
    done = np.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        stop = min(start + BLOCK, left.shape[1])
        off = np.empty((len(left), stop - start))
        for k in range(start, stop):
            done[:, k] = np.clip(np.rint(left[:, k] / steps[:, k]), low[:, k], high[:, k])
            off[:, k - start] = (left[:, k] - done[:, k] * steps[:, k]) / upper[k, k]
            left[:, k + 1 : stop] -= off[:, k - start, None] * upper[k, k + 1 : stop]
        left[:, stop:] -= off @ upper[start:stop, stop:]
    out = np.empty_like(done)
    out[:, places] = done
    return out
