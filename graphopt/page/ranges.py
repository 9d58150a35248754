"""Calibration as it came out: what quantized values look like on samples, and their ranges."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphOptError
from graphopt.execution.observe import observe
from graphopt.graph.constants import constant_array
from graphopt.page.charts import histogram
from graphopt.page.html import element, section

__all__ = ["range_section"]

Array = np.ndarray[Any, Any]

RUNS, BINS, SHOWN = 8, 60, 24


def range_section(model: ir.Model, samples: Iterable[Mapping[str, Array]]) -> str:
    """Histograms of the values that `model` quantizes with fixed scales; "" if there are none."""
    ranges = _ranges(model)
    if not ranges:
        return ""
    try:
        runs = list(observe(model, ranges, itertools.islice(iter(samples), RUNS)))
    except (GraphOptError, KeyError):
        return ""
    charts: list[tuple[float, str]] = []
    for name, (low, high) in ranges.items():
        values = np.concatenate([run[name].astype(np.float64).ravel() for run in runs])
        values = values[np.isfinite(values)]
        if values.size:
            counts, edges = np.histogram(values, BINS)
            clipped = float(np.mean((values < low) | (values > high)))
            charts.append((clipped, histogram(name, edges.tolist(), counts.tolist(), low, high)))
    charts.sort(key=lambda c: -c[0])
    hint = (
        f"What is quantized with a fixed scale, on {len(runs)} runs, the most clipped first: bars "
        "are counts by square root, the shade is the range that was chosen, red lies outside."
    )
    shown = [chart for _, chart in charts[:SHOWN]]
    more = len(charts) - len(shown)
    rest = element("p", f"{more} more clip less.", class_="more") if more else ""
    return section("Calibration", hint, element("div", *shown, class_="charts"), rest)


def _ranges(model: ir.Model) -> dict[str, tuple[float, float]]:
    """The range that each QuantizeLinear of the main graph with one constant scale can hold."""
    found: dict[str, tuple[float, float]] = {}
    for node in model.graph:
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
            continue
        scale, zero = (constant_array(v) for v in (*node.inputs[1:3], None)[:2])
        value = node.inputs[0]
        if scale is None or scale.size != 1 or value.name is None or value.producer() is None:
            continue
        dtype = zero.dtype if zero is not None else np.dtype(np.uint8)
        if dtype.kind not in "iu":
            continue
        limits, at = np.iinfo(dtype), float(zero.ravel()[0]) if zero is not None else 0.0
        step = float(scale.ravel()[0])
        found[value.name] = ((limits.min - at) * step, (limits.max - at) * step)
    return found
