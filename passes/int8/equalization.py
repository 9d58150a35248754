"""Equalization (SmoothQuant, cross-layer): magnitude moved from activations into weights.

    LayerNorm(x; g, b) W       =  LayerNorm(x; g / s, b / s) (s W)        SmoothQuant
    relu(conv(x; U, c)) * W    =  relu(conv(x; U / s, c / s)) * (s W)     cross-layer equalization

exactly, for any s > 0 per channel. One outlying channel then no longer takes the levels of all the
others. s = peak(activation)^a / peak(weight)^(1 - a), with the a that leaves the least error in the
products that read the activation, measured on samples, a = none included.

Xiao et al., SmoothQuant (ICML 2023); Nagel et al., Data-free quantization (ICCV 2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.plan import Plan

from graphopt.calibration.ranges import Feeds, groups
from graphopt.context import Context
from graphopt.execution.observe import observe
from graphopt.graph.building import Builder, Names
from graphopt.graph.constants import constant_value, weight_of

__all__ = ["balance"]

Array = np.ndarray[Any, Any]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
#: Runs, rows of the activation and columns of the products that the error is measured on.
RUNS, ROWS, COLUMNS = 2, 256, 1024
#: Scales are worth an edit if they leave less than this share of the squared error.
GAIN = 0.5
HOMOGENEOUS = frozenset({"Relu", "LeakyRelu"})


@dataclasses.dataclass(frozen=True)
class Site:
    """An activation that can be scaled per channel.

    Attributes:
        value: the activation.
        axis: its channel axis.
        divided: constants of its producer to divide by s, and the axis of their channels.
        readers: nodes whose weight is multiplied by s, with the axis of its input channels.
    """

    value: ir.Value
    axis: int
    divided: tuple[tuple[ir.Node, int, int], ...]
    readers: tuple[tuple[ir.Node, int, int], ...]


def balance(model: ir.Model, ctx: Context, plan: Plan) -> int:
    """Scale what gains from it in the regions of `plan`; returns the edits made."""
    sites = _sites(model.graph, plan)
    if not sites or ctx.samples is None:
        return 0
    first = next(iter(ctx.samples), None)
    if first is None:
        return 0
    names = Names(model)
    edits = 0
    parts, _ = groups(model, list(sites), first)
    for part in parts:
        for name, (rows, peak) in _seen(model, ctx, sites, part).items():
            site = sites[name]
            scale = _best(site, rows, peak)
            if scale is None or not ctx.edit("Balance", site.readers[0][0]):
                continue
            for node, position, axis in site.divided:
                _scale(model, names, node, position, axis, 1 / scale)
            for node, position, axis in site.readers:
                _scale(model, names, node, position, axis, scale)
            edits += 1
    if edits:
        ctx.note(f"{edits} activations were balanced against the weights that read them.")
        ctx.invalidate()
    return edits


def _sites(graph: ir.Graph, plan: Plan) -> dict[str, Site]:
    found: dict[str, Site] = {}
    for node in graph:
        producer, value = node, node.outputs[0]
        if node.op_type == "LayerNormalization":
            gamma = constant_value(node.inputs[1])
            if gamma is None or len(gamma.shape) != 1:  # normalized along the last axis alone
                continue
            if len([o for o in node.outputs if o.uses()]) > 1:
                continue
            axis, own = -1, [(node, 1, 0), (node, 2, 0)]
        elif node.op_type == "Conv" and node in plan.nodes:
            uses = list(value.uses())
            if len(uses) == 1 and uses[0].node.op_type in HOMOGENEOUS:
                producer, value = uses[0].node, uses[0].node.outputs[0]
            if node.outputs[0].is_graph_output():
                continue
            axis, own = 1, [(node, 1, 0), (node, 2, 0)]
        else:
            continue
        own = [o for o in own if len(node.inputs) > o[1] and node.inputs[o[1]] is not None]
        readers = _readers(value, plan)
        if (
            not readers
            or value.is_graph_output()
            or not value.name
            or producer.domain not in ("", "ai.onnx")
            or not all(_own(n, p) for n, p, _ in (*own, *readers))
        ):
            continue
        found[value.name] = Site(value, axis, tuple(own), tuple(readers))
    return found


def _readers(value: ir.Value, plan: Plan) -> list[tuple[ir.Node, int, int]]:
    """The users of `value` and their weights' input axes; empty if some user is of another kind."""
    found = []
    for use in value.uses():
        kind = plan.dynamic.get(use.node) or plan.nodes.get(use.node)
        if kind is None or kind.weight is None or use.idx != 0:
            return []
        if use.node.op_type == "Conv":
            if use.node.attributes.get_int("group", 1) != 1:
                return []
            axis = 1
        elif kind.axis is None:
            return []
        else:
            axis = 1 - kind.axis
        found.append((use.node, kind.weight, axis))
    return found


def _own(node: ir.Node, position: int) -> bool:
    """Whether the constant is this node's alone, as it stands."""
    value = node.inputs[position]
    return value is not None and constant_value(value) is not None and len(list(value.uses())) == 1


def _seen(
    model: ir.Model, ctx: Context, sites: dict[str, Site], names: list[str]
) -> dict[str, tuple[Array, Array]]:
    """Rows [n, channels] and peaks [channels] of each activation."""
    assert ctx.samples is not None
    runs: Iterable[Feeds] = list(islice(ctx.samples, RUNS))
    found: dict[str, tuple[Array, Array]] = {}
    for arrays in observe(model, names, runs):
        for name, array in arrays.items():
            flat = np.moveaxis(array, sites[name].axis, -1).reshape(
                -1, array.shape[sites[name].axis]
            )
            if not np.isfinite(flat).all() or not len(flat):
                continue
            peak = np.abs(flat).max(axis=0)
            step = max(1, len(flat) * RUNS // ROWS)
            rows = flat[::step].copy()
            # the extremes decide the grid: keep the row of each tensor-wide peak
            top = np.unravel_index(np.abs(flat).argmax(), flat.shape)[0]
            rows = np.concatenate([rows, flat[top : top + 1]])
            if name in found:
                rows = np.concatenate([found[name][0], rows])
                peak = np.maximum(found[name][1], peak)
            found[name] = (rows, peak)
    return found


def _best(site: Site, rows: Array, peak: Array) -> Array | None:
    """The scales that leave the least error in the products, or None."""
    weights = [_matrix(n, p, axis) for n, p, axis in site.readers]
    if any(w.shape[0] != rows.shape[1] for w in weights):
        return None
    stacked = np.concatenate([w[:, :: max(1, w.shape[1] // COLUMNS)] for w in weights], axis=1)
    heavy = np.maximum(np.max([np.abs(w).max(axis=1) for w in weights], axis=0), 1e-8)
    light = np.maximum(peak, 1e-5 * max(float(peak.max()), 1e-30))
    plain = _error(rows, stacked)
    best, chosen = GAIN * plain, None
    for alpha in ALPHAS:
        scale = (light**alpha / heavy ** (1 - alpha)).astype(np.float32)
        scale /= np.exp(np.mean(np.log(scale)))
        if not np.isfinite(scale).all() or scale.min() <= 0:
            continue
        error = _error(rows / scale, stacked * scale[:, None])
        if error < best:
            best, chosen = error, scale
    return chosen


def _error(x: Array, w: Array) -> float:
    """Squared error of x w with x on 256 levels of one grid and w on 255 per column."""
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = max((hi - lo) / 255, 1e-30)
    steps = np.maximum(np.abs(w).max(axis=0) / 127, 1e-30)
    off = np.rint(x / step) * step @ (np.rint(w / steps) * steps) - x @ w
    return float(np.square(off, dtype=np.float64).sum())


def _matrix(node: ir.Node, position: int, axis: int) -> Array:
    """The weight as [input channels, everything else]."""
    weight = weight_of(node.inputs[position])
    assert weight is not None
    array = np.moveaxis(weight.array(), axis, 0)
    return array.reshape(array.shape[0], -1)


def _scale(
    model: ir.Model, names: Names, node: ir.Node, position: int, axis: int, factor: Array
) -> None:
    """Multiply one constant of `node` along an axis."""
    old = node.inputs[position]
    tensor = constant_value(old)
    assert old is not None
    assert tensor is not None
    array = tensor.numpy()
    shape = [-1 if k == axis else 1 for k in range(array.ndim)]
    made = (array.astype(np.float64) * factor.reshape(shape)).astype(array.dtype)
    name = old.name or "weight"
    node.replace_input_with(position, Builder(model, node, names).constant(made, name))
    if old.is_initializer() and not old.uses() and old.name:
        model.graph.initializers.pop(old.name, None)
