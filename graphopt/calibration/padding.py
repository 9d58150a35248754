"""Padding: tokens that an attention mask leaves out, which no fit and no loss should count.

Sequences of a batch are filled up to one length. What a layer makes of the filling reaches no
output, and where samples are short it is most of the rows: units would be chosen, and weights
fitted or trained, for what nobody reads. Which input is the mask is not a matter of its name: it
holds zeros and ones, and what else is put in at its zeros changes no output at its ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import Dimensions, dimensions
from graphopt.context import Context
from graphopt.execution.runtime import Arrays, opened

__all__ = ["Padding", "padding_of"]

Array = np.ndarray[Any, Any]
#: Name of a value, and its axis of channels.
Rowed = tuple[str, int]
#: Runs of the samples in which a mask must have shown itself.
FIRST = 32
#: How far outputs may move, relative to their largest, when the filling is another one.
SAME = 1e-3


@dataclasses.dataclass(frozen=True)
class Padding:
    """The tokens that count.

    Attributes:
        mask: the input that holds ones for them.
        masks: for each run of the samples, bool [batch, steps].
        turned: by name and channel axis (1 or -1) of a value that has a row per token, whether
            steps come before the batch.
    """

    mask: str
    masks: Sequence[Array]
    turned: Mapping[Rowed, bool]

    def by_token(self, name: str) -> bool:
        """Whether a value has a row of channels for each token, in the mask's order."""
        return self.turned.get((name, -1)) is False

    def rows(self, value: Rowed, run: int, at: Array | None) -> Array | None:
        """Which rows of a value count, its channels last, bool; None where rows are not tokens.

        Args:
            value: its name and axis of channels.
            run: which run of the samples.
            at: spatial positions that are looked at.
        """
        turned = self.turned.get(value)
        if turned is None or (turned and at is not None):
            return None
        mask = self.masks[run].T if turned else self.masks[run]
        return (mask if at is None else mask[:, at]).ravel()


def padding_of(model: ir.Model, samples: Iterable[Arrays], ctx: Context) -> Padding | None:
    """What the samples hold of filling; None if there is none, or it is not certain.

    Args:
        model: the model in `ctx`.
        samples: feeds, one run each.
        ctx: for the model's dimensions.
    """
    dims: Dimensions | None = None
    for value in model.graph.inputs:
        name = value.name or ""
        if value.shape is None or len(value.shape) != 2:
            continue
        full = next((f for f in islice(samples, FIRST) if name in f and _is_mask(f[name])), None)
        if full is None:
            continue
        dims = dims or ctx.get(dimensions)
        turned = {
            rowed: order
            for other in model.graph.inputs
            if other is not value and _beside(full, other.name or "", name)
            for rowed, order in _tokens(model, other, dims)
        }
        if turned and _without_influence(model, name, full, turned):
            return Padding(name, [np.asarray(f[name]) != 0 for f in samples], turned)
    return None


def _is_mask(array: Array) -> bool:
    return bool(np.isin(array, (0, 1)).all() and array.any() and not array.all())


def _beside(feeds: Arrays, name: str, mask: str) -> bool:
    """Whether an input has something for each place of the mask."""
    return name in feeds and feeds[name].shape[:2] == feeds[mask].shape


def _tokens(model: ir.Model, given: ir.Value, dims: Dimensions) -> Iterator[tuple[Rowed, bool]]:
    """Values whose axes, but for one of channels, are the first two of `given`.

    An input for each place of the mask, such as ids; the mask itself may be taken to where it is
    used by indices.
    """
    axes, classes = dims.plan.axes, dims.plan.classes

    def known(value: ir.Value) -> list[int] | None:
        """The class of each axis, -1 for one of size 1; None if an axis has no size."""
        found = axes.of(value)
        if found is None or any(a < -1 for a in found[0]):
            return None
        return [int(classes[a]) if a >= 0 else -1 for a in found[0]]

    wanted = [c for c in (known(given) or ())[:2] if c >= 0]
    if len(wanted) == 0 or len(set(wanted)) < len(wanted):
        return
    flat = {
        int(classes[m.whole]): factors
        for m in axes.system.merges
        for factors in [[int(classes[f]) for f in m.factors]]
        if sorted(factors) == sorted(wanted)
    }
    for node in model.graph:
        for value in node.outputs:
            found = known(value)
            if found is None or len(found) < 2:
                continue
            for channel in (1, -1):
                rows = [c for k, c in enumerate(found) if k != channel % len(found) and c >= 0]
                rows = flat.get(rows[0], rows) if len(rows) == 1 else rows
                if sorted(rows) == sorted(wanted):
                    yield (value.name or "", channel), rows != wanted


def _without_influence(
    model: ir.Model, name: str, feeds: Arrays, turned: Mapping[Rowed, bool]
) -> bool:
    """Whether outputs at the mask's ones stay the same when something else is at its zeros."""
    mask = np.asarray(feeds[name]) != 0
    other = dict(feeds)
    for key, array in feeds.items():
        if key != name and _beside(feeds, key, name):
            other[key] = array.copy()
            other[key][~mask] = np.resize(array[mask][::-1], (int((~mask).sum()), *array.shape[2:]))
    with opened(model) as predict:
        before, after = predict(feeds), predict(other)
    for key, array in before.items():
        if array.dtype.kind not in "fiub":
            return False
        a, b = array.astype(np.float64), after[key].astype(np.float64)
        if turned.get((key, -1)) is False and array.size == mask.size * array.shape[-1]:
            a, b = (v.reshape(mask.size, -1)[mask.ravel()] for v in (a, b))
        if not np.abs(a - b).max(initial=0) <= SAME * np.abs(a).max(initial=1e-30):
            return False
    return True
