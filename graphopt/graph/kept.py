"""Kept indices: which part of each source tensor a pruned model still has, in its metadata.

`graphopt.kept` holds `{"ranges": ["0-7,9/16", ...], "tensors": {name: {axis: k}}}`: along that axis
of the source model's tensor, of 16 indices, what is left are ranges[k]. A tensor that was
duplicated by a cut has its source's name under `"of"`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.provenance import KEPT
from graphopt.graph.traverse import all_graphs

__all__ = ["Kept", "kept_indices", "source_sizes"]

Array = np.ndarray[Any, Any]


def kept_indices(model: ir.Model) -> dict[str, dict[int, Array]]:
    """Per tensor and axis, the indices of the source model's tensor that are left, sorted."""
    return {n: {axis: i for axis, (i, _) in axes.items()} for n, axes in _axes(model).items()}


def source_sizes(model: ir.Model) -> dict[str, dict[int, int]]:
    """Per tensor and axis that was cut, how many indices the source model's tensor has."""
    return {n: {axis: size for axis, (_, size) in axes.items()} for n, axes in _axes(model).items()}


def _axes(model: ir.Model) -> dict[str, dict[int, tuple[Array, int]]]:
    """Per tensor and axis, the indices left and of how many."""
    data = _record(model)
    with contextlib.suppress(ValueError):
        ranges = [_indices(text) for text in data.get("ranges", ())]
        return {
            name: {int(axis): ranges[k] for axis, k in axes.items() if axis != "of"}
            for name, axes in data.get("tensors", {}).items()
        }
    return {}


def _record(model: ir.Model) -> dict[str, Any]:
    """What the model says was kept; nothing where other hands have damaged it."""
    with contextlib.suppress(ValueError):
        found = json.loads(model.metadata_props.get(KEPT, "{}"))
        if isinstance(found, dict):
            return found
    return {}


class Kept:
    """The record of a model while it is being cut."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.tensors = _axes(model)
        data = _record(model)
        self.of = {n: a["of"] for n, a in data.get("tensors", {}).items() if "of" in a}

    def note(self, source: str, name: str, masks: Sequence[Array | None]) -> None:
        """Tensor `source` became `name`, with only these positions of its axes."""
        axes = dict(self.tensors.get(source, {}))
        for axis, mask in enumerate(masks):
            if mask is not None:
                index, size = axes.get(axis, (np.arange(len(mask)), len(mask)))
                axes[axis] = index[mask], size
        if axes and name:
            self.tensors[name] = axes
            if name != source:
                self.of[name] = self.of.get(source, source)

    def write(self) -> None:
        """Store the record, without tensors that are gone."""
        present = {
            v
            for g in all_graphs(self.model.graph)
            for v in (*g.initializers, *(o.name for n in g for o in n.outputs))
        }
        number: dict[str, int] = {}
        tensors: dict[str, dict[str, Any]] = {}
        for name, axes in self.tensors.items():
            if name not in present:
                continue
            tensors[name] = {
                str(axis): number.setdefault(f"{_text(index)}/{size}", len(number))
                for axis, (index, size) in sorted(axes.items())
            }
            if name in self.of:
                tensors[name]["of"] = self.of[name]
        self.model.metadata_props[KEPT] = json.dumps(
            {"ranges": list(number), "tensors": tensors}, separators=(",", ":")
        )


def _text(index: Array) -> str:
    """Sorted indices as ranges, both ends included: "0-7,9"."""
    edges = np.flatnonzero(np.diff(index) != 1) + 1
    parts = np.split(index, edges)
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts if len(p))


def _indices(text: str) -> tuple[Array, int]:
    parts, _, size = text.partition("/")
    found: list[int] = []
    for part in parts.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return np.array(found, dtype=np.int64), int(size)
