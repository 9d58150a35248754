"""Operators without a price in the cost table: what the model as it is spends on them.

They are profiled in the whole model, since runtimes merge them into the operators around them.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from graphopt.analyses.cost import cost
from graphopt.backend import backend_of
from graphopt.context import Context
from graphopt.graph.provenance import sources
from graphopt.pipeline.prepare import Setting
from graphopt.searching.branches import Cutter
from graphopt.target import Target

__all__ = ["Unpriced", "neighbours", "others_of"]


class Unpriced(NamedTuple):
    """A node: its milliseconds, its output's bytes, dimensions it carries, what it was made of."""

    ms: float
    size: float
    carried: tuple[str, ...]
    made_of: frozenset[str]


def neighbours(
    model: ir.Model, priced: Mapping[str, ir.Node]
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By priced node, the priced nodes whose results reach it, and those its result reaches."""
    reach: dict[ir.Value, set[str]] = defaultdict(set)
    before: dict[str, set[str]] = {}
    after: dict[str, set[str]] = {name: set() for name in priced}
    for node in model.graph:
        come = set().union(*(reach[v] for v in node.inputs if v is not None))
        name = node.name or ""
        if name in priced:
            before[name] = come
            for one in come:
                after[one].add(name)
            come = {name}
        for value in node.outputs:
            reach[value] = come
    return before, after


def others_of(
    plain: ir.Model,
    setting: Setting,
    target: Target,
    cutter: Cutter,
    dims: Mapping[str, Any],
) -> list[Unpriced]:
    """The nodes of `plain` without a price, each with its own time or, if it is fused, none."""
    carried: dict[str, dict[str, None]] = defaultdict(dict)
    outputs = {(n.name, v.name) for n in setting.source.model.graph for v in n.outputs}
    for name, dim in dims.items():
        for m in dim.members:
            if (m.node, m.input) in outputs:
                carried[m.node][name] = None
    copy = plain.clone()
    priced = {s for n in cutter.nodes.values() for s in (n.name, *sources(n)) if s}
    sizes = cost(Context(copy, shapes=setting.shapes)).nodes
    rows: list[Unpriced] = []
    skipped: set[int] = set()
    for j, node in enumerate(list(copy.graph)):
        names = (node.name or "", *sources(node))
        if any(n in priced for n in names):
            skipped.add(j)
        size = float(sizes[node.name or ""].output_bytes or 0) if node.name in sizes else 0.0
        own = dict.fromkeys(d for n in names for d in carried.get(n, ()))
        made_of = frozenset(sources(node) or (node.name or "",))
        rows.append(Unpriced(0.0, size, tuple(own), made_of))
        node.name = f"p{j}n"
        for i, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"p{j}v{i}"
    backend = backend_of(target) if target.measured else None
    if backend is not None:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = backend.lower(copy, target, Path(folder, "model.onnx"))
            times = backend.profile(path, setting.feeds, target)
        named = {name: int(m[1]) for name in times if (m := re.match(r"p(\d+)[nv]", name))}
        timed, last = set(named.values()), 0
        for name, ms in times.items():
            j = last = named.get(name, last)
            if name not in named:  # one that the runtime fused, of nodes right behind the last
                j = next((k for k in range(last + 1, len(rows)) if k not in timed), last)
            if name not in named or j not in skipped:
                rows[j] = rows[j]._replace(ms=rows[j].ms + ms)
    return rows
