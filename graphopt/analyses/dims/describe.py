"""Describing: the solver's labellings as dimensions with names, kinds, scopes and members."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims.axes import Axes, Role
from graphopt.analyses.dims.closure import Labelling
from graphopt.analyses.dims.dimension import Dimension, Dimensions, Frozen, Member, Plan
from graphopt.analyses.dims.solve import Solution
from graphopt.analyses.dims.streams import Place, is_residual
from graphopt.analyses.dims.system import Array
from graphopt.graph.constants import constant_value

__all__ = ["describe"]

#: Where several kinds are claimed for a dimension, the first of these.
KINDS = ("heads", "hidden", "head size", "groups", "channels", "features")
ANONYMOUS = re.compile(r"(onnx::.*|val_\d+|\d+|.*_\d{3,}|)$")


def describe(axes: Axes, solution: Solution, tied: tuple[str, ...]) -> Dimensions:
    """Everything the solution says, in terms of the model."""
    places = _places(axes, solution)
    kinds: dict[int, set[str]] = {}
    wholes = {int(solution.classes[m.whole]) for m in axes.system.merges}
    for axis, kind, via in axes.kinds:
        if axis >= 0 and (via is None or (via >= 0 and int(solution.classes[via]) in wholes)):
            kinds.setdefault(int(solution.classes[axis]), set()).add(kind)
    inside = {
        int(solution.classes[f]): int(solution.classes[m.whole])
        for m in axes.system.merges
        for f in m.factors
    }
    order = {node: k for k, node in enumerate(axes.tensors)}
    found: list[tuple[tuple[object, ...], Dimension, dict[int, Array]]] = []
    for labelling in solution.labellings:
        for labels in _split(labelling):
            made = _dimension(labels, axes, solution, places, kinds, order)
            if made is not None:
                found.append((made[0], made[1], labels))
    found.sort(key=lambda f: f[0])
    prunable: dict[str, Dimension] = {}
    plan: dict[str, dict[int, Array]] = {}
    outer = _outer(found, inside, kinds)
    named = []
    for _, d, _ in found:
        kind, scope = outer.get(id(d), (d.kind, d.scope))
        named.append(dataclasses.replace(d, kind=kind, scope=scope))
    for name, d, (_, _, labels) in zip(_unique(named), named, found, strict=True):
        prunable[name] = dataclasses.replace(d, name=name)
        plan[name] = labels
    frozen = tuple(_frozen(axes, solution, places, plan))
    return Dimensions(prunable, frozen, tied, Plan(axes, solution.classes, plan))


def _places(axes: Axes, solution: Solution) -> dict[int, list[Place]]:
    """Per class, where its axes are seen, in graph order."""
    places: dict[int, list[Place]] = {}
    classes = solution.classes.tolist()
    for order, (node, slots) in enumerate(axes.tensors.items()):
        for tensor in slots.values():
            constant = not tensor.output and constant_value(tensor.value) is not None
            for k, axis in enumerate(tensor.axes):
                if axis >= 0:
                    place = Place(order, node, tensor, k, constant)
                    places.setdefault(classes[axis], []).append(place)
    return places


def _split(labelling: Labelling) -> Iterator[dict[int, Array]]:
    """Units that occur in the same classes, equally often, are one dimension.

    A unit's places are hashed to 64 bits (a sum of random odd numbers, one per class, times how
    often it occurs there): two dimensions fall together with probability 2^-64.
    """
    signature = np.zeros(labelling.units, np.uint64)
    rng = np.random.default_rng(0)
    for c in sorted(labelling.labels):
        labels = labelling.labels[c]
        count = np.bincount(labels[labels >= 0], minlength=labelling.units).astype(np.uint64)
        signature += count * np.uint64(int(rng.integers(1, 1 << 62)) * 2 + 1)
    _, group = np.unique(signature, return_inverse=True)
    if group.max() == 0:
        yield labelling.labels
        return
    number = np.zeros(labelling.units, np.int64)
    for g in range(int(group.max()) + 1):
        mine = np.flatnonzero(group == g)
        number[mine] = np.arange(len(mine))
    split: list[dict[int, Array]] = [{} for _ in range(int(group.max()) + 1)]
    for c, labels in labelling.labels.items():
        owner = np.where(labels >= 0, group[labels], -1)
        for g in np.unique(owner[owner >= 0]).tolist():
            split[g][c] = np.where(owner == g, number[labels], -1)
    yield from split


def _dimension(
    labels: dict[int, Array],
    axes: Axes,
    solution: Solution,
    places: dict[int, list[Place]],
    kinds: dict[int, set[str]],
    order: dict[ir.Node, int],
) -> tuple[tuple[object, ...], Dimension] | None:
    """The dimension of these labels, if it has two units and weights; labels are renumbered."""
    size = 1 + max(int(a.max()) for a in labels.values())
    mine = sorted(
        ((p, c) for c in labels for p in places.get(c, ())),
        key=lambda pc: pc[0].key,
    )
    if size < 2 or not any(p.constant for p, _ in mine):
        return None
    roles = _roles([p for p, _ in mine], axes, solution, labels)
    if "reads" not in roles and "writes" not in roles:
        return None
    anchor = next(
        (k for k, (p, _) in enumerate(mine) if p.constant and roles[k] == "writes"),
        next((k for k in range(len(mine)) if roles[k] == "writes"), 0),
    )
    at = labels[mine[anchor][1]]
    units, first = np.unique(at[at >= 0], return_index=True)
    if len(units) == size:
        number = np.full(size + 1, -1)
        number[units[np.argsort(first)]] = np.arange(size)
        for c in labels:
            labels[c] = number[labels[c]]
    members = tuple(
        Member(p.name, p.tensor.value.name or "", p.axis, role, labels[c], p.constant)
        for (p, c), role in zip(mine, roles, strict=True)
    )
    claimed = set().union(*(kinds.get(c, set()) for c in labels))
    kind = next((k for k in KINDS if k in claimed), "features")
    residual = kind != "heads" and is_residual([p for p, _ in mine], roles, order)
    scope: Literal["inner", "residual"] = "residual" if residual else "inner"
    where = (*mine[anchor][0].key, int(np.argmax(labels[mine[anchor][1]] >= 0)), KINDS.index(kind))
    return where, Dimension(
        _base_name([p for p, _ in mine], roles, anchor), size, kind, scope, members
    )


def _roles(
    places: list[Place], axes: Axes, solution: Solution, labels: dict[int, Array]
) -> list[Role]:
    """Each place's role; weights that are transposed, cast or dequantized have their reader's."""
    roles: list[Role] = []
    for p in places:
        role: Role = "carries"
        for axis, stated, via in axes.roles.get((p.node, *p.tensor.slot), ()):
            if axis == p.axis and (
                via is None or (via >= 0 and int(solution.classes[via]) in labels)
            ):
                role = stated
                break
        roles.append(role)
    seen: dict[ir.Value, Role] = {}
    for k in range(len(places) - 1, -1, -1):
        p = places[k]
        if p.tensor.output:
            continue
        if roles[k] == "carries" and len(p.node.outputs) == 1:
            made = p.node.outputs[0]
            roles[k] = seen.get(made, "carries") if axes.fixed(made) else "carries"
        if roles[k] != "carries" and axes.fixed(p.tensor.value):
            seen.setdefault(p.tensor.value, roles[k])
    return roles


def _outer(
    found: list[tuple[tuple[object, ...], Dimension, dict[int, Array]]],
    inside: dict[int, int],
    kinds: dict[int, set[str]],
) -> dict[int, tuple[str, Literal["inner", "residual"]]]:
    """Kinds of dimensions that share an axis with another: KV groups, heads in them, groups.

    Of two dimensions whose product is an axis, one is enough in the inner scope: KV groups go
    before the query heads inside them, heads before the size of each (where they cannot go, that
    does), channels inside a group before whole groups.
    """
    result: dict[int, tuple[str, Literal["inner", "residual"]]] = {}
    owners: dict[int, list[Dimension]] = {}
    for _, d, labels in found:
        for c in labels:
            owners.setdefault(c, []).append(d)
    for c, sharing in owners.items():
        if len(sharing) < 2 or "heads" not in kinds.get(c, ()):
            continue
        heads = [d for d in sharing if d.kind == "heads"]
        if len(heads) == 2 and all(len(m) for m in (heads[0].members, heads[1].members)):
            first = max(heads, key=lambda d: sum(m.constant for m in d.members))
            other = heads[1] if first is heads[0] else heads[0]
            result[id(first)] = ("kv groups", first.scope)
            result[id(other)] = ("heads", "residual")
    for _, d, labels in found:
        if d.kind == "head size" and any(
            o.kind == "heads" and o.scope == "inner" for c in labels for o in owners[c]
        ):
            result[id(d)] = (d.kind, "residual")
        if d.kind == "groups":
            alone = all(
                len([o for o in owners[c] if o is not d]) == 0 for c in labels if c in owners
            )
            result[id(d)] = ("groups", d.scope if alone else "residual")
    return result


def _frozen(
    axes: Axes,
    solution: Solution,
    places: dict[int, list[Place]],
    plan: dict[str, dict[int, Array]],
) -> Iterator[Frozen]:
    """Axes with positions in no dimension: all of weights, one per class of the others."""
    live: dict[int, Array] = {}
    for labels in plan.values():
        for c, at in labels.items():
            live[c] = live.get(c, np.zeros(len(at), bool)) | (at >= 0)
    listed: list[tuple[int, Frozen]] = []
    for c, where in places.items():
        size = axes.system.sizes[c]
        free = live.get(c)
        if free is not None and free.all():
            continue
        why = solution.reasons.get(c)
        stuck = why >= 0 if why is not None else None
        if why is not None and stuck is not None and stuck.any():
            text = solution.texts[int(why[stuck][0])]
        else:
            text = "no weights are written or read along it"
        if free is not None:
            text = f"{int((~free).sum())} of {size} positions: {text}"
        weights = [p for p in where if p.constant]
        for p in weights or where[:1]:
            name = p.tensor.value.name or ""
            listed.append((p.order, Frozen(name, p.axis, text)))
    listed.sort(key=lambda f: (f[0], f[1].tensor, f[1].axis))
    yield from dict.fromkeys(f for _, f in listed)


def _base_name(places: list[Place], roles: list[Role], anchor: int) -> str:
    """The weight that writes it or, where an exporter has named that by number, the node."""
    name = places[anchor].tensor.value.name or ""
    if not ANONYMOUS.fullmatch(name):
        return name
    written = (p for p, r in zip(places, roles, strict=True) if r == "writes" and p.tensor.output)
    return next(written, places[anchor]).name


def _unique(found: list[Dimension]) -> list[str]:
    """Names, told apart by kind where a weight names several dimensions, then by number."""
    bases = [d.name for d in found]
    plain = [
        b if bases.count(b) == 1 else f"{b}:{d.kind}" for b, d in zip(bases, found, strict=True)
    ]
    seen: dict[str, int] = {}
    names = []
    for name in plain:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names
