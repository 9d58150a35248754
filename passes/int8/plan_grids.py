"""Grids for a plan: calibrate what it reads and writes, share where operators only move values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.grid import Grid, activation_grid, quantize, weight_scales
from graphopt.passes.int8.operators import Operator
from graphopt.passes.int8.plan import Plan

from graphopt.calibration.ranges import Range
from graphopt.graph.constants import weight_of
from graphopt.target import Int8Scheme

__all__ = ["make_grids", "make_weights", "observed", "read_grid"]

Array = np.ndarray[Any, Any]

#: A value outside every sample's reach: nothing was observed.
NOTHING = Range(0.0, 0.0)


def observed(plan: Plan) -> list[str]:
    """Names of the activations whose range the plan needs."""
    names: dict[str, None] = {}
    for value in _values(plan):
        if weight_of(value) is None and value.name:
            names[value.name] = None
    return list(names)


def make_grids(plan: Plan, ranges: Mapping[str, Range], scheme: Int8Scheme) -> dict[ir.Value, Grid]:
    """One grid per value the plan rounds; values joined by "same" operators share theirs."""
    values = _values(plan)
    parent = {v: v for v in values}

    def root(value: ir.Value) -> ir.Value:
        while parent[value] is not value:
            value = parent[value]
        return value

    fixed: dict[ir.Value, Range] = {}
    for node, kind in plan.nodes.items():
        if kind.fixed is not None:
            fixed[plan.output(node)] = kind.fixed
        if kind.output == "same":
            together = [*_data(node, kind), *_results(plan, node)]
            for value in together[1:]:
                parent[root(value)] = root(together[0])
    wide = _wide_values(plan, values)
    joined: dict[ir.Value, Range] = {}
    for value in values:
        found = fixed.get(value) or _range(value, ranges)
        key = root(value)
        joined[key] = found if key not in joined else joined[key].join(found)
    return {
        v: activation_grid(
            joined[root(v)],
            scheme.wide if v in wide else scheme.activation,
            symmetric=scheme.symmetric_activation,
        )
        for v in values
    }


def read_grid(grid: Grid, node: ir.Node, plan: Plan, scheme: Int8Scheme) -> Grid:
    """The grid on which `node` reads a value that is on `grid`: one of its own type."""
    dtype = scheme.wide if node in plan.wide else scheme.activation
    if grid.dtype == dtype:
        return grid
    return activation_grid(grid.span, dtype, symmetric=scheme.symmetric_activation)


def _wide_values(plan: Plan, values: Collection[ir.Value]) -> set[ir.Value]:
    """Values of 16 bits: made by a wide node, or by a float one and read by wide ones alone."""
    if not plan.wide:
        return set()
    made = plan.made_by()
    narrow = {v for n, k in plan.nodes.items() if n not in plan.wide for v in _data(n, k)}
    return {v for v in values if (made[v] in plan.wide if v in made else v not in narrow)}


def make_weights(
    plan: Plan, grids: Mapping[ir.Value, Grid], scheme: Int8Scheme
) -> dict[ir.Node, tuple[Array, Array]]:
    """Integers and scales of every weight of the plan.

    A channel whose weights are so small that its bias would overflow 32 bits gets a larger scale.
    """
    bits = 7 if scheme.reduce_range else 8
    out = {}
    for node, kind in (*plan.nodes.items(), *plan.dynamic.items()):
        if kind.weight is None:
            continue
        tensor = weight_of(node.inputs[kind.weight])
        assert tensor is not None
        array = tensor.array()
        axis = kind.axis if scheme.per_channel else None
        scales = weight_scales(array, axis, bits=bits)
        bias = None if kind.bias is None else weight_of(node.inputs[kind.bias])
        if bias is not None and node in plan.nodes:
            step = read_grid(grids[_data(node, kind)[0]], node, plan, scheme).scale
            peak = np.abs(bias.array().reshape(-1))
            least = (peak if scales.ndim else peak.max(initial=0)) / (step * 2**30)
            scales = np.maximum(scales, least).astype(np.float32)
        out[node] = (quantize(array, scales, axis, top=2 ** (bits - 1) - 1), scales)
    return out


def _values(plan: Plan) -> list[ir.Value]:
    found: dict[ir.Value, None] = {}
    for node, kind in plan.nodes.items():
        found.update(dict.fromkeys(_data(node, kind)))
        if kind.output != "either":
            found.update(dict.fromkeys(_results(plan, node)))
    return list(found)


def _data(node: ir.Node, kind: Operator) -> list[ir.Value]:
    return [v for i in kind.data if (v := node.inputs[i]) is not None]


def _results(plan: Plan, node: ir.Node) -> list[ir.Value]:
    if node in plan.clamps:
        return [plan.output(node)]
    return [o for o in node.outputs if o.name]


def _range(value: ir.Value, ranges: Mapping[str, Range]) -> Range:
    tensor = weight_of(value)
    if tensor is not None:
        array = tensor.array()
        return Range(float(array.min()), float(array.max())) if array.size else NOTHING
    return ranges.get(value.name or "", NOTHING)
