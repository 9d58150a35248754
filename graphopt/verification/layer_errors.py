"""Layer errors: where two models that share provenance part, value by value, worst first.

Two values are the same layer if they have the same name, or if the node that makes the one came
from the node that makes the other (see `graphopt.graph.provenance`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.calibration.ranges import groups
from graphopt.errors import SamplesError
from graphopt.execution.observe import observe
from graphopt.graph.provenance import sources

__all__ = ["LayerError", "layer_errors", "same_values"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class LayerError:
    """How far one value of the second model is from the same value of the first.

    Attributes:
        node: name of the node of the first model that makes it.
        op_type: that node's operator.
        output: its name in the first model.
        other: its name in the second model.
        rel_l2: ||a - b|| / ||a|| over all samples.
        max_abs: largest absolute difference.
        added: by how much rel_l2 is above the largest among the layers it is computed from: what
            this layer brought in itself.
    """

    node: str
    op_type: str
    output: str
    other: str
    rel_l2: float
    max_abs: float
    added: float


def layer_errors(
    a: ir.Model, b: ir.Model, samples: Iterable[Mapping[str, Array]]
) -> list[LayerError]:
    """The error of every float value that both models have, worst first.

    Values that differ in shape or type are left out. Samples are gone through once per group of
    values that may be in memory together.

    Raises:
        SamplesError: there are no samples.
    """
    first = next(iter(samples), None)
    if first is None:
        raise SamplesError("there are no samples to compare layers on; give --samples")
    pairs = same_values(a, b)
    made = {o.name: node for node in a.graph for o in node.outputs}
    sums: dict[str, list[float]] = {}
    parts, _ = groups(a, list(pairs), first)
    for group in parts:
        others = [pairs[name] for name in group]
        for x, y in zip(observe(a, group, samples), observe(b, others, samples), strict=True):
            for name, other in zip(group, others, strict=True):
                _add(sums, name, x[name], y[other])
    errors = {n: _ratio(square, diff) for n, (square, diff, _) in sums.items()}
    before = _before(a, errors)
    found = [
        LayerError(
            made[name].name or name,
            made[name].op_type,
            name,
            pairs[name],
            errors[name],
            sums[name][2],
            errors[name] - before[name],
        )
        for name in errors
    ]
    return sorted(found, key=lambda e: (-e.rel_l2, e.output))


def same_values(a: ir.Model, b: ir.Model) -> dict[str, str]:
    """Names of float values of `a` that `b` has too, each with its name there, in graph order."""
    there: dict[str, str] = {}
    by_source: dict[str, ir.Node] = {}
    order = {node.name: k for k, node in enumerate(a.graph) if node.name}
    for node in b.graph:
        there.update((o.name, o.name) for o in node.outputs if o.name and _is_float(o))
        known = [n for n in sources(node) if n in order]
        if known:
            by_source[max(known, key=order.__getitem__)] = node
    pairs = {}
    for node in a.graph:
        twin = by_source.get(node.name or "")
        for k, value in enumerate(node.outputs):
            if not value.name or not _is_float(value):
                continue
            if value.name in there:
                pairs[value.name] = value.name
            elif twin is not None and len(twin.outputs) > k:
                other = twin.outputs[k]
                if other.name and _is_float(other):
                    pairs[value.name] = other.name
    return pairs


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def _add(sums: dict[str, list[float]], name: str, x: Array, y: Array) -> None:
    if x.shape != y.shape or x.dtype.kind != "f" or y.dtype.kind != "f" or x.size == 0:
        return
    p, q = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    finite = np.isfinite(p) & np.isfinite(q)
    p, q = p[finite], q[finite]
    total = sums.setdefault(name, [0.0, 0.0, 0.0])
    total[0] += float(p @ p)
    total[1] += float((p - q) @ (p - q))
    total[2] = max(total[2], float(np.abs(p - q).max(initial=0.0)))


def _ratio(square: float, diff: float) -> float:
    if square > 0:
        return math.sqrt(diff / square)
    return 0.0 if diff == 0 else math.inf


def _before(model: ir.Model, errors: Mapping[str, float]) -> dict[str, float]:
    """Per compared value, the largest error among the compared values it is computed from."""
    reached: dict[ir.Value, float] = {}
    found: dict[str, float] = {}
    for node in model.graph:
        given = max((reached.get(v, 0.0) for v in node.inputs if v is not None), default=0.0)
        for value in node.outputs:
            name = value.name or ""
            if name in errors:
                found[name] = given
                reached[value] = errors[name]
            else:
                reached[value] = given
    return found
