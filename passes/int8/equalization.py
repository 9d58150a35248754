"""Equalization (SmoothQuant, cross-layer): magnitude moved from activations into weights.

    LayerNorm(x; g, b) W       =  LayerNorm(x; g / s, b / s) (s W)        SmoothQuant
    relu(conv(x; U, c)) * W    =  relu(conv(x; U / s, c / s)) * (s W)     cross-layer equalization
    x * W                      =  (x / s) * (s W)                         where no producer takes s

exactly, for any s > 0 per channel. One outlying channel then no longer takes the levels of all the
others. s = peak(activation)^a / peak(weight)^(1 - a), with the a that leaves the least error in the
products that read the activation, measured on samples, a = none included. A channel that samples
hardly show (a dead unit) is no smaller than its neighbours: the next input may wake it.

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

from graphopt.analyses.linear import linear_of
from graphopt.calibration.ranges import Feeds, groups
from graphopt.context import Context
from graphopt.execution.observe import observe
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, Names
from graphopt.graph.constants import constant_array, constant_value, weight_of

__all__ = ["balance"]

Array = np.ndarray[Any, Any]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
#: Runs, rows of the activation and columns of the products that the error is measured on.
RUNS, ROWS, COLUMNS = 32, 512, 1024
#: Scales are worth an edit if they leave less than this share of the squared error; a node that
#: divides by them is worth it from this share.
GAIN, NODE_GAIN = 0.5, 0.25
#: A channel counts as this much of the median one, at least.
LEAST = 1 / 16
#: Operators f with f(s x) = s f(x) for s > 0 per channel, whose channels stay where they are.
HOMOGENEOUS = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu", "MaxPool", "PRelu", "Relu"}
)

#: A constant of a node: the node, the position of the input, the axis of its channels.
Constant = tuple[ir.Node, int, int]


@dataclasses.dataclass(frozen=True)
class Site:
    """An activation that can be scaled per channel.

    Attributes:
        value: the activation.
        axis: its channel axis.
        divided: constants to divide by s: of its producer, and the means of normalizations that
            read it. None of its producer: a new node divides.
        readers: weights to multiply by s, with the axis of their input channels.
    """

    value: ir.Value
    axis: int
    divided: tuple[Constant, ...]
    readers: tuple[Constant, ...]
    absorbed: bool = True


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
            if not site.absorbed:
                _divide(model, names, site, 1 / scale)
            edits += 1
    if edits:
        some = "1 activation was" if edits == 1 else f"{edits} activations were"
        ctx.note(f"{some} balanced against the weights that read them.")
        ctx.invalidate()
    return edits


def _sites(graph: ir.Graph, plan: Plan) -> dict[str, Site]:
    found: dict[str, Site] = {}
    for node in graph:
        own, axis = _scalable(node)
        if not own:
            continue
        value = node.outputs[0]
        while node.op_type != "LayerNormalization" and (after := _homogeneous(value)) is not None:
            value = after.outputs[0]
        readers, means = _readers(value, axis, plan)
        if readers and value.name and not value.is_graph_output():
            found[value.name] = Site(value, axis, (*own, *means), tuple(readers))
    covered = {reader for site in found.values() for reader, _, _ in site.readers}
    made = plan.made_by()
    alone: dict[ir.Value, list[Constant]] = {}
    for node, kind in plan.nodes.items():
        x, reader = node.inputs[0], _reader(node, plan)
        if node not in covered and kind.data == (0,) and reader and x is not None and x not in made:
            alone.setdefault(x, []).append(reader)
    for value, readers in alone.items():
        axis = 1 if readers[0][0].op_type == "Conv" else -1
        if value.name and weight_of(value) is None and len({r[0].op_type for r in readers}) == 1:
            found[value.name] = Site(value, axis, (), tuple(readers), absorbed=False)
    return found


def _scalable(node: ir.Node) -> tuple[list[Constant], int]:
    """The constants of `node` that scale its output per channel, and that output's channel axis."""
    axis = 1
    if node.domain not in ("", "ai.onnx"):
        return [], axis
    if node.op_type == "LayerNormalization":
        gamma = constant_value(node.inputs[1])
        normal = gamma is not None and len(gamma.shape) == 1  # normalized along the last axis alone
        several = len([o for o in node.outputs if o.uses()]) > 1
        own, axis = [(node, 1, 0), (node, 2, 0)] if normal and not several else [], -1
    elif node.op_type == "BatchNormalization":
        own = [(node, 1, 0), (node, 2, 0)] if len(node.outputs) == 1 else []
    else:
        op = linear_of(node) if node.op_type in ("Conv", "Gemm") else ""
        if isinstance(op, str) or op.alpha != 1 or op.beta != 1:
            return [], axis
        row = constant_value(op.bias)
        if op.bias is not None and (row is None or row.shape[-1:] != (op.out_channels,)):
            return [], axis
        own = [(node, op.at, op.out_axis)]
        own += [(node, 2, len(row.shape) - 1)] if row is not None else []
    own = [o for o in own if len(node.inputs) > o[1] and node.inputs[o[1]] is not None]
    return (own, axis) if all(_own(n, p) for n, p, _ in own) else ([], axis)


def _homogeneous(value: ir.Value) -> ir.Node | None:
    """The homogeneous operator that alone reads `value`."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].idx != 0:
        return None
    node = uses[0].node
    known = node.op_type in HOMOGENEOUS and node.domain in ("", "ai.onnx")
    return node if known and len(node.outputs) == 1 else None


def _readers(value: ir.Value, axis: int, plan: Plan) -> tuple[list[Constant], list[Constant]]:
    """The users' constants to multiply and to divide; none if some user is of another kind."""
    flat = value.shape is not None and len(value.shape) == 2  # the second axis is the last
    readers: list[Constant] = []
    means: list[Constant] = []
    for use in value.uses():
        node = use.node
        if not flat and (axis == 1) != (node.op_type in ("BatchNormalization", "Conv")):
            return [], []
        if use.idx == 0 and node.op_type == "BatchNormalization" and len(node.outputs) == 1:
            if not (_own(node, 1) and _own(node, 3)):
                return [], []
            readers.append((node, 1, 0))
            means.append((node, 3, 0))
        elif use.idx == 0 and (reader := _reader(node, plan)) is not None:
            readers.append(reader)
        else:
            return [], []
    return readers, means


def _reader(node: ir.Node, plan: Plan) -> Constant | None:
    """The weight of a node of `plan` that can be scaled along its input channels."""
    kind = plan.dynamic.get(node) or plan.nodes.get(node)
    if kind is None or kind.weight is None or not _own(node, kind.weight):
        return None
    if node.op_type == "Conv":
        return None if node.attributes.get_int("group", 1) != 1 else (node, kind.weight, 1)
    return None if kind.axis is None else (node, kind.weight, 1 - kind.axis)


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
            rows = flat[:: min(step, len(flat))].copy()
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
    heavy = _floored(np.max([np.abs(w).max(axis=1) for w in weights], axis=0))
    light = _floored(peak)
    plain = _error(rows, stacked)
    best, chosen = (GAIN if site.absorbed else NODE_GAIN) * plain, None
    for alpha in ALPHAS:
        scale = (light**alpha / heavy ** (1 - alpha)).astype(np.float32)
        scale /= np.exp(np.mean(np.log(scale)))
        if not np.isfinite(scale).all() or scale.min() <= 0:
            continue
        error = _error(rows / scale, stacked * scale[:, None])
        if error < best:
            best, chosen = error, scale
    return chosen


def _floored(peaks: Array) -> Array:
    seen = peaks[peaks > 0]
    return np.maximum(peaks, LEAST * float(np.median(seen)) if len(seen) else 1.0)


def _error(x: Array, w: Array) -> float:
    """Squared error of x w with x on 256 levels of one grid and w on 255 per column."""
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = max((hi - lo) / 255, 1e-30)
    steps = np.maximum(np.abs(w).max(axis=0) / 127, 1e-30)
    off = np.rint(x / step) * step @ (np.rint(w / steps) * steps) - x @ w
    return float(np.square(off, dtype=np.float64).sum())


def _matrix(node: ir.Node, position: int, axis: int) -> Array:
    """The weight as [input channels, everything else]; of a normalization the factors."""
    weight = weight_of(node.inputs[position])
    assert weight is not None
    if node.op_type == "BatchNormalization":
        variance = constant_array(node.inputs[4])
        assert variance is not None
        return np.diag(weight.array() / np.sqrt(variance + attribute(node, "epsilon")))
    array = np.moveaxis(weight.array(), axis, 0)
    return array.reshape(array.shape[0], -1)


def _divide(model: ir.Model, names: Names, site: Site, factor: Array) -> None:
    """Let the readers read the activation times `factor`, from a new node."""
    at = site.readers[0][0]
    weight = weight_of(at.inputs[1])
    assert weight is not None
    behind = 0 if site.axis == -1 else len(weight.shape) - 2
    builder = Builder(model, at, names)
    column = factor.astype(np.float32).reshape(-1, *[1] * behind)
    scale = builder.constant(column, f"{site.value.name}_scale")
    made = builder.node("Mul", [site.value, scale]).outputs[0]
    made.type, made.shape = site.value.type, site.value.shape
    for node, _, _ in site.readers:
        node.replace_input_with(0, made)


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
