"""Ranges: the least and greatest value each activation takes on samples, streamed.

Memory does not grow with the number of samples: what is kept per value is a few numbers (or one
histogram of fixed size), and values are observed in groups whose arrays together stay below
`GROUP_BYTES`, so that a large model's activations are never all alive at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.observe import observe

__all__ = ["Range", "groups", "minmax"]

#: Arrays of this many bytes may be alive at once while observing.
GROUP_BYTES = 192 << 20

Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Range:
    """The closed interval [lo, hi] that a value is represented in."""

    lo: float
    hi: float

    def join(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.lo, other.lo), max(self.hi, other.hi))


def minmax(
    model: ir.Model, names: Iterable[str], samples: Iterable[Feeds]
) -> dict[str, Range | None]:
    """The range of each named value over all samples; None where it was never finite or empty.

    NaN and Inf are left out: a masked score of minus infinity is no magnitude to represent.
    """
    found: dict[str, Range | None] = dict.fromkeys(names)
    for group in groups(model, list(found), samples):
        for arrays in observe(model, group, samples):
            for name, array in arrays.items():
                seen = _span(array)
                before = found[name]
                if seen is not None:
                    found[name] = seen if before is None else before.join(seen)
    return found


def groups(
    model: ir.Model, names: Sequence[str], samples: Iterable[Feeds], limit: int = GROUP_BYTES
) -> list[list[str]]:
    """`names` in groups whose arrays, on the largest of the first samples, stay below `limit`.

    Sizes come from static shapes; a value of unknown shape counts as the largest known one.
    """
    values = {v.name: v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    values.update({o.name: o for node in model.graph for o in node.outputs})
    free = max((_elements(s) for s in _first(samples)), default=1)
    sizes = {n: _size(values[n], free) for n in names}
    known = max((s for s in sizes.values() if s is not None), default=limit // 16)
    out: list[list[str]] = []
    used = limit
    for name in names:
        size = sizes[name]
        size = known if size is None else size
        if used + size > limit or not out:
            out.append([])
            used = 0
        out[-1].append(name)
        used += size
    return out


def _first(samples: Iterable[Feeds]) -> list[Feeds]:
    for feed in samples:
        return [feed]
    return []


def _elements(feed: Feeds) -> int:
    return max((int(a.shape[0]) if a.ndim else 1 for a in feed.values()), default=1)


def _size(value: ir.Value, batch: int) -> int | None:
    """Bytes of a value of static shape; one unbound axis is taken to be the batch."""
    if value.shape is None:
        return None
    fixed = [d for d in value.shape if isinstance(d, int)]
    unbound = len(value.shape) - len(fixed)
    if unbound > 1:
        return None
    return 4 * int(np.prod(fixed, dtype=np.int64)) * (batch if unbound else 1)


def _span(array: np.ndarray[Any, Any]) -> Range | None:
    if array.size == 0:
        return None
    lo, hi = float(array.min()), float(array.max())
    if not (np.isfinite(lo) and np.isfinite(hi)):
        finite = array[np.isfinite(array)]
        if finite.size == 0:
            return None
        lo, hi = float(finite.min()), float(finite.max())
    return Range(lo, hi)
