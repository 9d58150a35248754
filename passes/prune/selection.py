"""Index sets of a cut: which positions of which value stay, and what changes downstream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import Dimension

__all__ = ["Selection", "changed", "select", "selection"]

Array = np.ndarray[Any, Any]
#: By value name and axis, the positions that stay.
Selection = dict[str, dict[int, Array]]


def selection(dims: Mapping[str, Dimension], kept: Mapping[str, Array]) -> Selection:
    """Where values lose positions: one stays if all dimensions it belongs to keep its unit."""
    masks: dict[tuple[str, int], Array] = {}
    for name, units in kept.items():
        stays = np.zeros(dims[name].size + 1, bool)
        stays[units] = True
        stays[-1] = True  # positions of no unit have index -1
        for member in dims[name].members:
            mask = stays[member.positions]
            key = (member.input, member.axis)
            masks[key] = masks[key] & mask if key in masks else mask
    found: Selection = {}
    for (value, axis), mask in masks.items():
        found.setdefault(value, {})[axis] = np.flatnonzero(mask)
    return found


def select(array: Array, axes: Mapping[int, Array] | None) -> Array:
    """The positions of `array` that stay."""
    for axis, positions in (axes or {}).items():
        array = np.take(array, positions, axis=axis)
    return array


def changed(model: ir.Model, dims: Mapping[str, Dimension], kept: Mapping[str, Array]) -> set[str]:
    """Names of the main graph's values that are no longer what they were, but for what was cut.

    Nodes that read a dimension lose terms of their sums; so does all that follows from them.
    """
    readers = {m.node for n in kept for m in dims[n].members if m.role == "reads"}
    found: set[str] = set()
    for node in model.graph:
        if node.name in readers or any(v is not None and v.name in found for v in node.inputs):
            found.update(o.name for o in node.outputs if o.name)
    return found
