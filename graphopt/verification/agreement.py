"""Task agreement: whether a lossy model still says the same, each output judged by what it is.

    decisions    integers, booleans, text           equal, element by element
    scores       one class of several in each row    the same top class; of written lines of such
                                                     rows also the same text, repeats collapsed
    chances      a probability of one thing each     the same side of 0.3, 0.5 and 0.7
    margins      one sum of either sign each         as values, and on the same side of zero
    embedding    rows of unit length                 the angle between the two
    values       anything else                       error of each channel relative to its spread;
                                                     of few the worst
    state        values that the next run may take   the same, within a wider limit

An error of the whole tensor says little: a column of scores beside pixel coordinates is lost in it.
Rows of no known meaning are taken for scores that are values too (logits: both must agree), or,
where they are as wide as features are, for features (either reading will do).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.budget import MAX_DISAGREEMENT
from graphopt.reporting.records import FEW, Agreement
from graphopt.verification.saturation import LOGITS, made_by, opened_with_logits, saturated

__all__ = [
    "MAX_ERROR",
    "MAX_TURN",
    "STATE",
    "THRESHOLDS",
    "TURNED",
    "Guard",
    "Kind",
    "as_rows",
    "distributed",
    "is_text",
    "kind_of",
    "near",
    "spread_error",
    "turn_of",
    "weighty",
]

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Any]
Kind = Literal[
    "decisions", "scores", "logits", "chances", "margins", "embedding", "values", "features",
    "state",
]  # fmt: skip

#: What lossy steps may change of what is not decided, where decisions may change by 1 %:
#: 1 - cosine of embeddings, error over spread of values.
MAX_TURN, MAX_ERROR = 0.01, 0.1
#: Features whose top class is believed must be this close in angle too; logits of either sign this
#: close in value, and states, of which other outputs say what matters.
TURNED, NEAR, STATE = 0.05, 0.5, 0.15
#: Columns of which one is the largest in more rows than this are no classes.
_ONE_CLASS = 0.9
#: Rows of no known meaning are features if they are at least so wide, by whole vectors.
_WIDE, _VECTOR = 64, 32
#: Columns whose scales differ by more are no scores of one kind (coordinates beside chances).
_ALIKE = 30
#: Columns from which on a few may have another scale.
_MANY = 512
#: Up to so many channels each is a figure of its own, such as a mark or a coordinate.
EACH = 16
#: Rows from which on a channel has a spread of its own.
SEVERAL = 4
#: Labels that last longer than this many steps, in the mean, are no letters.
LASTS = 3
THRESHOLDS = (0.3, 0.5, 0.7)
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
    near = high <= _ALIKE * low
    largest = np.bincount(rows.argmax(axis=1)).max() / len(rows)
    classes = len(rows) < FEW or largest <= _ONE_CLASS
    if arrays[0].ndim not in (2, 3) or not (near and classes):
        return "values"
    width = rows.shape[1]
    return "features" if width >= _WIDE and width % _VECTOR == 0 else "logits"


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
        self._turned = {
            name for name in (expected[0] if expected else ()) if self._time_first(name)
        }
        for value in model.graph.outputs:
            arrays = [run[value.name] for run in expected if value.name and value.name in run]
            if arrays and all(isinstance(a, np.ndarray) for a in arrays):
                self.kinds[value.name or ""] = kind_of(value, arrays)
        decided = any(kind in ("scores", "chances") for kind in self.kinds.values())
        for name, kind in self.kinds.items():
            if kind in ("values", "logits") and len(self.kinds) > 1 and self._returns(name):
                self.kinds[name] = "state"
            elif kind == "logits" and decided:  # coordinates, or what the scores are made of
                self.kinds[name] = "values"

    @cached_property
    def logits(self) -> dict[str, list[Array]]:
        """Of outputs too sure to show a margin, what goes into their Sigmoid or Softmax, by run."""
        blind = [
            name
            for name, kind in self.kinds.items()
            if saturated(kind, [run[name] for run in self.expected])
        ]
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
        if name not in self._turned:
            return found
        return [a.swapaxes(0, 1) if np.ndim(a) == 3 else a for a in found]

    def judge(self, got: Iterable[Outputs], share: float = 1.0) -> dict[str, Agreement]:
        """How far each output agrees, on all runs, where this share of the limits may be used."""
        made = list(got)
        return {
            name: _JUDGES[kind](
                self.by_rows(name, self.expected),
                self.by_rows(name, made),
                self.limit * share,
                share,
            )
            for name, kind in self.kinds.items()
        }


def as_rows(a: Array) -> Array:
    """As rows of the last axis, in float64."""
    return a.reshape(-1, a.shape[-1] if a.ndim else 1).astype(np.float64)


def distributed(rows: Array) -> bool:
    """Whether each row is a distribution, or its logarithm."""
    if rows.min(initial=0) >= -1e-6:
        return bool(np.allclose(rows.sum(axis=1), 1, atol=1e-2))
    if rows.max(initial=0) > 1e-6:
        return False
    with np.errstate(over="ignore"):
        return bool(np.allclose(np.exp(rows).sum(axis=1), 1, atol=1e-2))


def _decided(kind: str, pairs: Iterable[tuple[Any, Any]], limit: float) -> Agreement:
    """Agreement of decisions: the share of elements that differ, among as many of the rarer kind.

    Where nearly all say the same (no note, no box, blank), those that do not are what matters.
    """
    wrong = 0
    wanted = []
    for a, b in pairs:
        wanted.append(np.ravel(a))
        wrong += int(np.size(a)) if np.shape(a) != np.shape(b) else int((a != b).sum())
    n = weighty(wanted)
    return Agreement(kind, n, min(wrong, n), min(wrong / n, 1.0) if n else 0.0, limit)


def weighty(decisions: Sequence[Array]) -> int:
    """How many decisions count: twice those that are not of the most frequent kind."""
    every = np.concatenate(decisions) if decisions else np.zeros(0)
    counts = np.unique(every, return_counts=True)[1]
    rare = len(every) - int(counts.max(initial=0))
    return min(len(every), max(2 * rare, FEW))


def _decisions(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    return _decided("decisions", zip(want, got, strict=True), limit)


def _chances(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    at = [
        _decided("chances", ((a > t, b > t) for a, b in zip(want, got, strict=True)), limit)
        for t in THRESHOLDS
    ]
    return max(at, key=lambda one: one.figure)


def _scores(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    tops = [(a.argmax(-1), b.argmax(-1)) for a, b in zip(want, got, strict=True)]
    single = _decided("scores", tops, limit)
    if not is_text([a for a, _ in tops]):
        return single
    lines = [(x, y) for a, b in tops if a.shape == b.shape for x, y in zip(a, b, strict=True)]
    wrong = sum(not np.array_equal(_collapsed(x), _collapsed(y)) for x, y in lines)
    whole = Agreement("sequences", len(lines), wrong, wrong / len(lines), limit)
    return max(single, whole, key=lambda one: one.figure)


def is_text(tops: Sequence[Array]) -> bool:
    """Whether rows of top classes [lines, steps] are written lines: labels stand for a step or two.

    Labels that last (speech or none, a state of sleep) are decisions of each step by itself, and
    so are those of two classes.
    """
    if any(a.ndim != 2 or a.shape[1] < 2 for a in tops):
        return False
    labels, counts = np.unique(np.concatenate([a.ravel() for a in tops]), return_counts=True)
    if len(labels) < 3:
        return False
    usual = labels[counts.argmax()]
    first = [np.diff(a, axis=1, prepend=-1) != 0 for a in tops]
    begun = sum(int((f & (a != usual)).sum()) for f, a in zip(first, tops, strict=True))
    return bool(counts.sum() - counts.max() <= LASTS * begun)


def _collapsed(labels: Array) -> Array:
    """A sequence without repeats, as connectionist temporal classification reads it."""
    return labels[np.r_[True, labels[1:] != labels[:-1]]] if labels.size else labels


def _embedding(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    return Agreement("embedding", len(want), None, turn_of(want, got), MAX_TURN * share)


def turn_of(want: list[Any], got: list[Any]) -> float:
    """1 - the cosine between rows, the mean over all."""
    turns = []
    for a, b in zip(want, got, strict=True):
        x, y = as_rows(a), as_rows(b)
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosine = np.divide((x * y).sum(axis=1), lengths, out=np.ones(len(x)), where=lengths > 0)
        turns.append(1 - cosine)
    return float(np.concatenate(turns).mean()) if turns else 0.0


def _values(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    return Agreement("values", len(want), None, spread_error(want, got), MAX_ERROR * share)


def spread_error(want: list[Any], got: list[Any], each: int = EACH) -> float:
    """RMS error of each channel over its standard deviation: the worst of few, the mean of many.

    Few are as many as `each`.
    Channels are the axis whose parts differ most in scale; one that never varies counts by the
    spread of all, and so do all where there are too few rows to tell.
    """
    axis = _channels(want)

    def flat(arrays: list[Any]) -> Array:
        parts = [np.moveaxis(np.atleast_1d(a), axis, -1) for a in arrays]
        if len({p.shape[-1] for p in parts}) > 1:  # no axis has one size in all runs
            parts = [p.reshape(-1, 1) for p in parts]
        return np.concatenate([p.reshape(-1, p.shape[-1]).astype(np.float64) for p in parts])

    x, y = flat(want), flat(got)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(finite, x, 0), np.where(finite, y, 0)
    error = np.sqrt(((x - y) ** 2).mean(axis=0))
    several = len(x) >= SEVERAL
    spread, whole = (
        x.std(axis=0) * several,
        float(x.std()) or float(np.abs(x).max(initial=0)) or 1.0,
    )
    spread = np.where(spread > 1e-3 * whole, spread, whole)
    if not error.size:
        return 0.0
    shares = np.minimum(error / spread, 1e6)
    return float(shares.max() if shares.size <= each else shares.mean())


def _channels(arrays: list[Any]) -> int:
    """The axis along which scales differ most, of those with one size in all runs."""
    first = np.atleast_1d(arrays[0])
    best, chosen = 0.0, first.ndim - 1
    for axis in range(first.ndim):
        sizes = {np.atleast_1d(a).shape[axis] for a in arrays}
        if len(sizes) > 1 or not 2 <= first.shape[axis] <= 4096:
            continue
        others = tuple(k for k in range(first.ndim) if k != axis)
        power = np.log(np.abs(first.astype(np.float64)).mean(axis=others) + 1e-12)
        if float(power.std()) > best + 1e-9:
            best, chosen = float(power.std()), axis
    return chosen


def near(want: Sequence[Array]) -> float:
    """How far logits may be off as values: those of one sign (marks of 1 to 5) may be no logits."""
    low = min((float(a.min(initial=0)) for a in want), default=0.0)
    high = max((float(a.max(initial=0)) for a in want), default=0.0)
    return NEAR if low < 0 < high else MAX_ERROR


def _logits(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    """As scores, and as values within a wider limit: the worse of the two."""
    values = dataclasses.replace(_values(want, got, limit, share), limit=near(want) * share)
    if any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return values
    return max(_scores(want, got, limit, share), values, key=lambda one: one.over)


def _margins(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    """As values, and as decisions by their sign: the worse of the two."""
    pairs = ((a > 0, b > 0) for a, b in zip(want, got, strict=True))
    signs, values = _decided("chances", pairs, limit), _values(want, got, limit, share)
    return max(signs, values, key=lambda one: one.over)


def _state(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    return Agreement("values", len(want), None, spread_error(want, got, 0), STATE * share)


def _features(want: list[Any], got: list[Any], limit: float, share: float) -> Agreement:
    """As values, or as scores whose rows have not turned far: the better of the two."""
    values = _values(want, got, limit, share)
    if any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return values
    scores, turn = _scores(want, got, limit, share), turn_of(want, got)
    if values.over <= 1 or max(scores.over, turn / TURNED / share) >= values.over:
        return values
    if turn / TURNED / share > scores.over:
        return Agreement("embedding", len(want), None, turn, TURNED * share)
    return dataclasses.replace(scores, kind="scores")


_JUDGES: dict[Kind, Callable[[list[Any], list[Any], float, float], Agreement]] = {
    "decisions": _decisions,
    "scores": _scores,
    "logits": _logits,
    "chances": _chances,
    "margins": _margins,
    "embedding": _embedding,
    "values": _values,
    "features": _features,
    "state": _state,
}
