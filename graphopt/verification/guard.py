"""The guard: what a lossy model must still say, output by output, on real samples.

What each output is (scores, chances, an embedding, values) is read off the operator that makes it
and off what it says; `agreement` judges it accordingly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.budget import MAX_DISAGREEMENT
from graphopt.execution.runtime import run_each
from graphopt.reporting.records import FEW, Agreement
from graphopt.verification.agreement import (
    ALIKE,
    JUDGES,
    Array,
    Kind,
    Outputs,
    as_rows,
    chances_beside_values,
    distributed,
)
from graphopt.verification.found import counted_axis
from graphopt.verification.saturation import LOGITS, made_by, opened_with_logits, saturated

__all__ = ["Guard", "kind_of"]

#: Columns of which one is the largest in more rows than this are no classes.
_ONE_CLASS = 0.9
#: Rows of no known meaning are features if they are at least so wide, by whole vectors.
_WIDE, _VECTOR = 64, 32
#: Columns from which on a few may have another scale.
_MANY = 512
#: What ends in these, with this share of either sign at least, may be the logit of one thing.
_SUMS = frozenset({"Add", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"})
_EITHER = 0.1
_BY_OPERATOR: dict[str, Kind] = {
    "HardSigmoid": "chances",
    "LogSoftmax": "scores",
    "Sigmoid": "chances",
    "Softmax": "scores",
}


def kind_of(value: ir.Value, arrays: Sequence[Array]) -> Kind:
    """What an output is, from the operator that makes it and from what it says on samples."""
    if arrays[0].dtype.kind != "f":
        return "decisions"
    node = made_by(value)
    known = _BY_OPERATOR.get(node.op_type) if node is not None else None
    if chances_beside_values(arrays) is not None:
        return "detections"
    # else the last axis is no row of classes
    alike = len({a.shape[-1:] for a in arrays}) == 1 and not _follows_inputs(value)
    parts = [as_rows(a)[:256] if alike else a.reshape(-1, 1) for a in arrays if a.size]
    rows = np.concatenate(parts[:16] or [np.zeros((0, 1))])
    several = alike and rows.shape[1] >= 2
    if known == "chances" or (known == "scores" and several and distributed(rows)):
        return known
    if not several or not np.isfinite(rows).all() or not len(rows):
        linear = node is not None and node.op_type in _SUMS and rows.shape[1] == 1
        below = float((rows < 0).mean()) if len(rows) >= FEW else 0.0
        return "margins" if linear and _EITHER <= below <= 1 - _EITHER else "values"
    if distributed(rows):
        return "scores"
    if np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-2) and rows.min() < 0:
        return "embedding"
    # of thousands of classes some never come up, and one is "nothing"
    low, high = np.quantile(rows.std(axis=0), (0.01, 0.99) if rows.shape[1] >= _MANY else (0, 1))
    near = high <= ALIKE * low
    largest = np.bincount(rows.argmax(axis=1)).max() / len(rows)
    classes = len(rows) < FEW or largest <= _ONE_CLASS
    near = near and _rows_alike(arrays)
    if arrays[0].ndim not in (2, 3) or not (near and classes):
        return "values"
    width = rows.shape[1]
    return "features" if width >= _WIDE and width % _VECTOR == 0 else "logits"


def _rows_alike(arrays: Sequence[Array]) -> bool:
    """Whether the rows of a run have one scale, as logits do and channels of boxes do not."""
    if arrays[0].ndim != 3 or len({a.shape[1] for a in arrays}) > 1:
        return True
    scales = np.mean([np.abs(a).mean(axis=(0, 2)) for a in arrays], axis=0)
    some = scales[scales > 0]
    return not some.size or float(some.max()) <= ALIKE * float(some.min())


def _follows_inputs(value: ir.Value) -> bool:
    """Whether the last axis is as long as an axis of an input: time or pixels, not classes."""
    shape, graph = value.shape, value.graph
    last = shape[-1] if shape is not None and len(shape) else None
    if not isinstance(last, ir.SymbolicDim) or not last.value or not isinstance(graph, ir.Graph):
        return False
    return any(last == d for v in graph.inputs if v.shape is not None for d in v.shape)


class Guard:
    """The source's outputs on samples, and how far from them a lossy model may be.

    Args:
        model: the source.
        expected: its outputs, one mapping a run.
        probe: the runs' inputs.
        limit: share of decisions that may change.
    """

    def __init__(
        self,
        model: ir.Model,
        expected: Sequence[Outputs],
        probe: Sequence[Mapping[str, Array]],
        limit: float = MAX_DISAGREEMENT,
    ) -> None:
        self.model, self.expected, self.probe, self.limit = model, expected, probe, limit
        self.kinds: dict[str, Kind] = {}
        #: Of outputs whose number of rows follows from values, the axis of the rows.
        self.counted: dict[str, int] = {}
        self._turned = {
            name for name in (expected[0] if expected else ()) if self._time_first(name)
        }
        for value in model.graph.outputs:
            arrays = [run[value.name] for run in expected if value.name and value.name in run]
            if arrays and all(isinstance(a, np.ndarray) for a in arrays):
                self.kinds[value.name or ""] = self._kind(value, arrays)
        decided = any(kind in ("scores", "chances") for kind in self.kinds.values())
        states = self._states()
        for name, kind in self.kinds.items():
            if name in states:
                self.kinds[name] = "state"
            elif kind == "logits" and decided:  # coordinates, or what the scores are made of
                self.kinds[name] = "values"

    def _kind(self, value: ir.Value, arrays: Sequence[Array]) -> Kind:
        forms = [tuple(np.shape(feed[n]) for n in sorted(feed)) for feed in self.probe]
        axis = counted_axis(forms, arrays) if len(forms) == len(arrays) else None
        if axis is None:
            return kind_of(value, arrays)
        self.counted[value.name or ""] = axis
        return "found"

    def _states(self) -> set[str]:
        """Outputs of the form of an input, of which another says what matters: of all, none."""
        found = {
            name
            for name, kind in self.kinds.items()
            if kind in ("values", "logits", "detections") and self._returns(name)
        }
        return found if len(found) < len(self.kinds) else set()

    @cached_property
    def logits(self) -> dict[str, list[Array]]:
        """Of outputs too sure to show a margin, what goes into their Sigmoid or Softmax, by run."""
        blind = [
            name
            for name, kind in self.kinds.items()
            if saturated(kind, [run[name] for run in self.expected])
        ]
        return self._logits_of(blind)

    def _logits_of(self, blind: list[str]) -> dict[str, list[Array]]:
        if not blind:
            return {}
        with opened_with_logits(self.model, blind) as predict:
            runs = list(map(predict, self.probe))
        keys = {name: LOGITS.format(name) for name in blind}
        return {
            name: self.by_rows(name, runs, key)
            for name, key in keys.items()
            if all(key in r and r[key].shape == r[name].shape for r in runs)
        }

    def glimpse(self, runs: int, rows: int) -> Guard:
        """One that judges the same outputs on the first rows of the first runs alone."""
        part = copy.copy(self)
        part.probe = [{k: a[:rows] for k, a in feed.items()} for feed in self.probe[:runs]]
        part.expected = list(run_each(self.model, part.probe))
        part.logits = part._logits_of(list(self.logits))
        return part

    def opened(self, model: ir.Model) -> AbstractContextManager[Callable[[Outputs], Outputs]]:
        """A context: a function that runs `model` as users do, for what this judges."""
        return opened_with_logits(model, list(self.logits))

    def margins(self, name: str, made: Sequence[Outputs]) -> tuple[list[Any], list[Any]] | None:
        """The logits of an output, wanted and made, where the output itself shows no margins."""
        key = LOGITS.format(name)
        if name not in self.logits or not all(key in run for run in made):
            return None
        want, got = self.logits[name][: len(made)], self.by_rows(name, made, key)
        return (
            (want, got) if all(a.shape == b.shape for a, b in zip(want, got, strict=True)) else None
        )

    def _returns(self, output: str) -> bool:
        """Whether an output has the form of an input in every run, as a recurrent state has."""
        forms = [(run[output].shape, run[output].dtype) for run in self.expected]
        return any(
            forms == [(run[name].shape, run[name].dtype) for run in self.probe if name in run]
            for name in (self.probe[0] if self.probe else ())
        )

    def _time_first(self, output: str) -> bool:
        """Whether the rows of the inputs are the second axis of an output, as of recurrent ones."""
        for run, feeds in zip(self.expected, self.probe, strict=False):
            array = run[output]
            batches = {a.shape[0] for a in feeds.values() if np.ndim(a) > 1}
            if np.ndim(array) != 3 or array.shape[1] not in batches or array.shape[0] in batches:
                return False
        return bool(self.probe)

    def by_rows(self, name: str, runs: Iterable[Outputs], key: str = "") -> list[Any]:
        """An output of each run, or what is kept as `key`, the rows of the inputs first."""
        found = [run[key or name] for run in runs]
        if name in self.counted:
            return [np.moveaxis(a, self.counted[name], 0) for a in found]
        if name not in self._turned:
            return found
        return [a.swapaxes(0, 1) if np.ndim(a) == 3 else a for a in found]

    def judge(self, got: Iterable[Outputs], share: float = 1.0) -> dict[str, Agreement]:
        """How far each output agrees, on all runs, where this share of the limits may be used."""
        made = list(got)
        return {
            name: JUDGES[kind](
                self.by_rows(name, self.expected),
                self.by_rows(name, made),
                self.limit * share,
                share,
            )
            for name, kind in self.kinds.items()
        }
