"""Precision: how far an operator's outputs move on samples where its inputs have 16 bits.

Each operator runs beside itself, on the same inputs with some of them rounded:

    y = f(x, w),    y' = f(x, round(w)),    error = |y' - y| / |y|

What a format's steps account for is small; where terms cancel it is not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from itertools import islice

import numpy as np
import onnx_ir as ir

from graphopt.calibration.ranges import groups
from graphopt.execution.observe import observe
from graphopt.execution.runtime import Arrays
from graphopt.graph.building import Builder, Names

__all__ = ["MOST", "rounding_errors"]

#: Errors of outputs, in roundings of one number, up to which a format serves an operator.
MOST = 16.0
#: Runs of samples that errors are measured on.
RUNS = 4


def rounding_errors(
    model: ir.Model,
    places: Mapping[ir.Node, Collection[int]],
    dtype: ir.DataType,
    samples: Iterable[Arrays],
) -> dict[ir.Node, float]:
    """By node of the main graph, the relative L2 error of its worst output.

    Args:
        model: it is not changed.
        places: positions of float32 inputs to round, by node. Nodes with subgraphs are left out.
        dtype: FLOAT16 or BFLOAT16.
        samples: feeds; the first few are run.

    Returns:
        inf where an output is not finite that was, 0 where there are no floats to compare.
    """
    feeds = list(islice(samples, RUNS))
    twins: dict[str, tuple[ir.Node, str]] = {}
    clone = model.clone()
    names = Names(clone)
    for node, same in zip(list(model.graph), list(clone.graph), strict=True):
        if node not in places or any(a.type in _GRAPHS for a in node.attributes.values()):
            continue
        builder = Builder(clone, same, names)
        inputs = list(same.inputs)
        for i in places[node]:
            small = builder.node("Cast", [inputs[i]], {"to": dtype.value}).outputs[0]
            inputs[i] = builder.node("Cast", [small], {"to": ir.DataType.FLOAT.value}).outputs[0]
        twin = builder.node(
            same.op_type,
            inputs,
            dict(same.attributes),
            domain=same.domain,
            outputs=len(same.outputs),
        )
        for a, b in zip(same.outputs, twin.outputs, strict=True):
            if not a.name:
                b.name = ""
            elif a.dtype in (None, ir.DataType.FLOAT):
                b.type, b.shape = a.type, a.shape
                twins[a.name] = node, b.name or ""
    if not twins or not feeds:
        return {}
    off, size = dict.fromkeys(twins, 0.0), dict.fromkeys(twins, 0.0)
    for group in groups(clone, list(twins), feeds[0])[0]:
        wanted = [*group, *(twins[name][1] for name in group)]
        for arrays in observe(clone, wanted, feeds):
            for name in group:
                a, b = arrays[name], arrays[twins[name][1]]
                if a.dtype == np.float32:
                    kept = np.isfinite(a)
                    before, after = (v[kept].astype(np.float64) for v in (a, b))
                    off[name] += float(np.square(after - before).sum())
                    size[name] += float(np.square(before).sum())
    found: dict[ir.Node, float] = {}
    for name, (node, _) in twins.items():
        error = math.sqrt(off[name] / size[name]) if size[name] else 0.0
        found[node] = max(found.get(node, 0.0), error if math.isfinite(error) else math.inf)
    return found


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
