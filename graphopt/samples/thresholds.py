"""Boundary values of tree ensembles: the numbers about which each column of an input is split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.attributes import attribute
from graphopt.graph.ensembles import DOMAIN, ENSEMBLES, Ensemble, Split, Unreadable

__all__ = ["Thresholds", "about", "categories_of", "thresholds_of"]

Array = np.ndarray[Any, Any]
#: By column, in ascending order; NaN last where a split says what becomes of it.
Thresholds = tuple[tuple[float, ...], ...]
#: Share of elements that lie between the thresholds rather than about one of them.
BETWEEN = 0.25
#: Values that are followed on the way to a tree.
LONGEST = 8


def thresholds_of(value: ir.Value) -> Thresholds:
    """What trees compare the columns of an input with, scaled as it is; () if none reads it."""
    found: dict[int, set[float]] = defaultdict(set)
    for split, scale, offset in _splits(value):
        by, to = (float(x[split.feature % x.size]) for x in (scale, offset))
        held = found[split.feature]
        asked = [t for t in split.members or (split.value,) if np.isfinite(t)]
        held.update(t / by + to for t in asked if by)
        if split.missing:
            held.add(np.nan)
    columns = range(max(found, default=-1) + 1)
    return tuple(tuple(sorted(found[c], key=lambda t: (t != t, t))) for c in columns)


def categories_of(value: ir.Value) -> frozenset[int]:
    """The columns of an input that trees ask, as they are, for one number or another."""
    return frozenset(
        split.feature
        for split, scale, offset in _splits(value)
        if split.mode in ("EQ", "NEQ", "MEMBER") and (scale == 1).all() and not offset.any()
    )


def _splits(value: ir.Value) -> Iterator[tuple[Split, Array, Array]]:
    """The splits that read an input, each with the scale and the offset that it is read with."""
    one, zero = np.ones(1), np.zeros(1)
    todo = [(value, one, zero)]
    for current, scale, offset in todo:
        for node, k in current.uses():
            if node.domain == DOMAIN and node.op_type in ENSEMBLES:
                yield from ((split, scale, offset) for split in _of(node))
            elif len(todo) < LONGEST and (
                node.op_type in ("Cast", "Identity") or (node.op_type, k) == ("Where", 2)
            ):
                todo.append((node.outputs[0], scale, offset))
            elif len(todo) < LONGEST and node.op_type == "Scaler" and scale is one:
                factor, shift = (np.array(attribute(node, k, one)) for k in ("scale", "offset"))
                todo.append((node.outputs[0], factor, shift))


def _of(node: ir.Node) -> Iterator[Split]:
    given = {a.name: a.value for a in node.attributes.values()}
    try:
        trees = Ensemble.read(node.op_type, given)
    except Unreadable:
        yield from _listed(given)
        return
    yield from trees.table.splits(trees.roots)


def _listed(given: Mapping[str, Any]) -> Iterator[Split]:
    """The splits of lists that are no trees: LightGBM's categories lead to one branch together."""
    names = ("nodes_modes", "nodes_featureids", "nodes_values")
    modes, features, values = (given.get(name, ()) for name in names)
    missing = given.get("nodes_missing_value_tracks_true") or [0] * len(modes)
    for mode, feature, value, tracks in zip(modes, features, values, missing, strict=False):
        if str(mode) != "LEAF":
            name = str(mode).removeprefix("BRANCH_")
            yield Split(name, feature, float(value), bool(tracks), -1, -1)


def about(
    thresholds: Thresholds, dtype: np.dtype[Any], shape: tuple[int, ...], rng: np.random.Generator
) -> Array:
    """Numbers at thresholds, just below, just above and between; N(0, 1) where there are none."""
    made: Array = rng.standard_normal(shape).astype(dtype)
    for column, given in enumerate(thresholds[: shape[-1] if shape else 0]):
        known = np.array(given, dtype)
        finite = known[np.isfinite(known)]
        if not known.size:
            continue
        drawn = rng.choice(known, shape[:-1])
        with np.errstate(over="ignore", under="ignore"):
            sides = [drawn, *(np.nextafter(drawn, dtype.type(end)) for end in (-np.inf, np.inf))]
        drawn = np.choose(rng.integers(3, size=shape[:-1]), sides)
        if finite.size:
            low, high = float(finite[0]), float(finite[-1])
            wide = rng.uniform(low - 1 - abs(low) / 8, high + 1 + abs(high) / 8, shape[:-1])
            drawn = np.where(rng.random(shape[:-1]) < BETWEEN, wide, drawn)
        made[..., column] = drawn
    return made
