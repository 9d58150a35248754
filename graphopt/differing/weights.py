"""Weights of two models side by side: which are the same, which changed, and by how much."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.differing.flow import Flow, form_of
from graphopt.differing.matching import Match
from graphopt.graph.evaluation import evaluate
from graphopt.graph.kept import kept_indices
from graphopt.graph.traverse import all_graphs

__all__ = ["WeightChange", "Weights", "compare_weights"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class WeightChange:
    """A tensor that is another in the second model.

    Attributes:
        name, other: what it is called in the first and in the second model.
        node: a node of the first model that reads it.
        before, after: element type and shape, as "FLOAT 64x3x7x7".
        rel_l2: ||a - b|| / ||a||, of what both have; None where that cannot be said.
        max_abs: largest absolute difference, likewise.
        share: share of the elements that differ, likewise.
        note: what was compared, where it is not all of it as it lies.
    """

    name: str
    other: str
    node: str
    before: str
    after: str
    rel_l2: float | None = None
    max_abs: float | None = None
    share: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Weights:
    """All tensors of two models.

    Attributes:
        same: how many are equal, bit for bit.
        changed: those that are not, the most changed first.
        gone, new: names of tensors that only the first, or only the second model has.
    """

    same: int
    changed: tuple[WeightChange, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]


def compare_weights(found: Match) -> Weights:
    """Pair the tensors that twins read in one place, then those of one name, and compare them."""
    a, b = found.a, found.b
    kept = kept_indices(b.model)
    pairs = list(_pairs(found))
    seen = {p for p, _, _ in pairs}, {q for _, q, _ in pairs}
    here, there = _initializers(a), _initializers(b)
    for name, value in here.items():
        if value not in seen[0] and name in there and there[name] not in seen[1]:
            pairs.append((value, there[name], ""))
    digests = {b.digests(t) for v in there.values() if (t := v.const_value) is not None}
    same, changed = 0, []
    told_a, told_b = set(), set()
    for p, q, node in pairs:
        if p in told_a:
            continue
        told_a.add(p)
        told_b.add(q)
        change = _change(a, b, p, q, node, kept)
        same += change is None
        changed += [change] if change is not None else []
    gone = [n for n, v in here.items() if v not in told_a]
    moved = [n for n in gone if (t := here[n].const_value) is not None and a.digests(t) in digests]
    gone = [n for n in gone if n not in set(moved)]
    held = {a.digests(t) for v in here.values() if (t := v.const_value) is not None}
    new = [
        n
        for n, v in there.items()
        if v not in told_b and (v.const_value is None or b.digests(v.const_value) not in held)
    ]
    changed.sort(key=lambda c: -(c.rel_l2 if c.rel_l2 is not None else math.inf))
    return Weights(same + len(moved), tuple(changed), tuple(gone), tuple(new))


def _pairs(found: Match) -> Iterator[tuple[ir.Value, ir.Value, str]]:
    """Constants that twins read in the same place; in the second model maybe dequantized."""
    a, b = found.a, found.b
    for x, y in enumerate(found.to):
        if y is None:
            continue
        for p, q in zip(a.reads[x], b.reads[y], strict=False):
            if p is None or q is None or a.constant(p) is None:
                continue
            if b.constant(q) is not None or _dequantized(b, q) is not None:
                yield p, q, a.names[x]


def _initializers(flow: Flow) -> dict[str, ir.Value]:
    found: dict[str, ir.Value] = {}
    for graph in all_graphs(flow.model.graph):
        for name, value in graph.initializers.items():
            found.setdefault(name, value)
    return found


def _dequantized(flow: Flow, value: ir.Value) -> Array | None:
    """The numbers that DequantizeLinear makes of a constant."""
    k = flow.maker(value)
    if k is None or flow.nodes[k].op_type != "DequantizeLinear":
        return None
    tensors = [flow.constant(v) for v in flow.reads[k]]
    if any(t is None for t in tensors):
        return None
    arrays = [t.numpy() for t in tensors if t is not None]
    made = evaluate(flow.nodes[k], arrays, dict(flow.model.graph.opset_imports))
    return made[0] if made else None


def _change(
    a: Flow, b: Flow, p: ir.Value, q: ir.Value, node: str, kept: dict[str, dict[int, Array]]
) -> WeightChange | None:
    s, t = a.constant(p), b.constant(q)
    assert s is not None
    if t is not None and a.digests(s) == b.digests(t):
        return None
    name, other = p.name or "", q.name or ""
    before = form_of(s)
    note = ""
    if t is not None:
        after = form_of(t)
        new = _numbers(t)
    else:
        k = b.maker(q)
        stored = b.constant(b.reads[k][0]) if k is not None else None
        after = form_of(stored) if stored else "quantized"
        other = (b.reads[k][0].name or other) if k is not None and b.reads[k][0] else other  # type: ignore[union-attr]
        note = "compared as it is dequantized"
        new = _dequantized(b, q)
    old = _numbers(s)
    if old is not None and new is not None and old.shape != new.shape:
        cut = kept.get(other) or kept.get(name) or {}
        for axis, indices in cut.items():
            if axis < old.ndim and indices.size and indices.max() < old.shape[axis]:
                old = old.take(indices, axis)
        if cut and old.shape == new.shape:
            note = "of what was kept"
    if old is None or new is None or old.shape != new.shape:
        return WeightChange(name, other, node, before, after)
    rel, most, share = _distance(old, new)
    return WeightChange(name, other, node, before, after, rel, most, share, note)


def _numbers(tensor: ir.TensorProtocol) -> Array | None:
    """A tensor's elements, None where they are no numbers."""
    if tensor.dtype == ir.DataType.STRING:
        return None
    array = tensor.numpy()
    return array if array.dtype.kind in "biuf" else array.astype(np.float32)


def _distance(old: Array, new: Array) -> tuple[float, float, float]:
    """Relative L2, largest difference, share of elements that differ; a few MB at a time."""
    square = diff = most = differ = 0.0
    flat_old, flat_new = old.reshape(-1), new.reshape(-1)
    for at in range(0, flat_old.size, 1 << 20):
        p: Array = flat_old[at : at + (1 << 20)].astype(np.float64)
        q: Array = flat_new[at : at + (1 << 20)].astype(np.float64)
        differ += np.count_nonzero(p != q)
        finite = np.isfinite(p) & np.isfinite(q)
        d = p[finite] - q[finite]
        square += float(p[finite] @ p[finite])
        diff += float(d @ d)
        most = max(most, float(np.abs(d).max(initial=0.0)))
    rel = math.sqrt(diff / square) if square else (math.inf if diff else 0.0)
    return rel, most, differ / max(flat_old.size, 1)
