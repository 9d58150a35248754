"""Dimension: units that can be removed, and every place that carries them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from graphopt.analyses.dims.axes import Axes, Role
from graphopt.analyses.dims.system import Array

__all__ = ["Dimension", "Dimensions", "Frozen", "Member", "Plan"]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """An axis of a tensor, seen at a node, that carries a dimension.

    Attributes:
        node: name of the node.
        input: name of the tensor, one of the node's inputs or outputs.
        axis: which axis of the tensor.
        role: "reads" (the node contracts or reduces it), "writes" (it makes it), or "carries".
        positions: int64, for each position of the axis its unit, or -1 if it has none.
        constant: the tensor is an initializer or a Constant: weights that get sliced.
    """

    node: str
    input: str
    axis: int
    role: Role
    positions: Array
    constant: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Dimension:
    """Units that occur at the same places, and can be removed one by one.

    Attributes:
        name: stable and unique, from the weight (or node) that first writes it.
        size: number of units.
        kind: "channels", "features", "hidden", "heads", "kv groups", "head size" or "groups".
        scope: "inner", or "residual" where removing units touches what scope="all" allows: the
            width of a residual stream, the size of heads that can go themselves, groups besides
            what is inside them.
        members: every axis that carries it, in graph order.
    """

    name: str
    size: int
    kind: str
    scope: Literal["inner", "residual"]
    members: tuple[Member, ...]


@dataclasses.dataclass(frozen=True)
class Frozen:
    """An axis (or some positions of it) that cannot be pruned, and why."""

    tensor: str
    axis: int
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What the cut needs: per dimension and class of axes, the unit of each position."""

    axes: Axes
    classes: Array
    labels: dict[str, dict[int, Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Dimensions:
    """Everything that can be pruned in a model, and why the rest cannot.

    Attributes:
        prunable: dimensions by name, in graph order.
        frozen: axes that stay, with reasons: every axis of weights, and one for each set of axes
            that are the same.
        tied: weights with several uses that are pruned as one.
    """

    prunable: dict[str, Dimension]
    frozen: tuple[Frozen, ...]
    tied: tuple[str, ...]
    plan: Plan

    def to_json(self) -> dict[str, Any]:
        """`{dims: [{name, size, kind, scope, units, members}], frozen, tied}`.

        `units` is the number of units again; a member's `positions` are runs
        `[start, stop, unit, repeat]`: position p in [start, stop) belongs to unit
        `unit + (p - start) // repeat`. Positions in no run belong to none.
        """
        return {
            "dims": [
                {
                    "name": d.name,
                    "size": d.size,
                    "kind": d.kind,
                    "scope": d.scope,
                    "units": d.size,
                    "members": [
                        {
                            "node": m.node,
                            "input": m.input,
                            "axis": m.axis,
                            "role": m.role,
                            "constant": m.constant,
                            "positions": runs(m.positions),
                        }
                        for m in d.members
                    ],
                }
                for d in self.prunable.values()
            ],
            "frozen": [dataclasses.asdict(f) for f in self.frozen],
            "tied": list(self.tied),
        }


def runs(positions: Array) -> list[list[int]]:
    """Positions as runs `[start, stop, unit, repeat]` (see `Dimensions.to_json`)."""
    n = len(positions)
    if n == 0:
        return []
    edges = np.flatnonzero(np.diff(positions)) + 1
    starts = np.concatenate(([0], edges))
    stops = np.concatenate((edges, [n]))
    steps = [
        (a, b, u)
        for a, b, u in zip(starts.tolist(), stops.tolist(), positions[starts].tolist(), strict=True)
        if u >= 0
    ]
    found: list[list[int]] = []
    for a, b, u in steps:
        if found:
            start, stop, unit, repeat = found[-1]
            if stop == a and b - a == repeat and unit + (a - start) // repeat == u:
                found[-1][1] = b
                continue
        found.append([a, b, u, b - a])
    return found
