"""Whether a merged model says what the models say that it was made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes, sized
from graphopt.execution.runtime import run
from graphopt.samples import synthetic
from graphopt.samples.inputs import inputs_of
from graphopt.verification.comparison import compare_outputs

__all__ = ["merged_error"]

#: Rows of the first dynamic axis and elements of others, run by run.
SIZES = ((2, 8), (5, 13))


def merged_error(models: Sequence[ir.Model], merged: ir.Model, combine: str) -> float:
    """The largest relative L2 difference of any output, on drawn inputs of two sizes; inf if
    integers differ."""
    expected, got = [], []
    for seed, (rows, others) in enumerate(SIZES):
        shapes, _ = bind_shapes(merged, sized(merged, rows, others))
        feeds = next(iter(synthetic(merged, seed=seed, shapes=shapes, runs=1)))
        parts = [run(m, {i.name: feeds[i.name] for i in inputs_of(m)}) for m in models]
        found = run(merged, feeds)
        expected.append(dict(zip(found, _combined(parts, combine), strict=True)))
        got.append(found)
    compared = compare_outputs(expected, got)
    return math.inf if any(compared.changed.values()) else compared.worst


def _combined(parts: Sequence[Mapping[str, Any]], combine: str) -> list[Any]:
    if combine == "none":
        return [x for part in parts for x in part.values()]
    made = []
    for values in zip(*(p.values() for p in parts), strict=True):
        if combine == "concat":
            made.append(np.concatenate(values, -1))
            continue
        if combine == "vote":
            width = values[0].shape[-1]
            values = tuple(np.eye(width, dtype=v.dtype)[v.argmax(-1)] for v in values)
        made.append(np.mean(np.stack(values), 0, dtype=np.float64).astype(values[0].dtype))
    return made
