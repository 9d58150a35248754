"""Verification: is the graph valid, and did the outputs stay as they were.

*Equal* means, per output: relative L2 difference at most max(1e-5, 4 x the difference that the
runtime's own optimizations make on the source), and at most 0.1; of each channel at most 1 % of
itself; integers and booleans the same element by element, NaN and Inf at the same positions, and
outputs in one order. Where every edit is proved, what rounding the inputs moves the source by is no
difference either: inputs that saturate it leave nothing else of an output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.execution.runtime import in_parts, opened, run_each
from graphopt.graph.attributes import attribute
from graphopt.graph.traverse import all_nodes
from graphopt.io.skeleton import Skeleton, skeleton_of
from graphopt.reporting.records import OutputError

__all__ = ["FLOOR", "Comparison", "Judge", "compare_outputs", "same_forms"]

Outputs = Mapping[str, np.ndarray[Any, Any]]
#: Smallest relative L2 difference that counts: about 100 float32 roundings.
FLOOR = 1e-5
#: How many times the runtime's own noise still counts as equal.
NOISE_FACTOR = 4.0
#: How many times what rounding the inputs moves, where every edit is proved: each layer rounds.
ROUNDING_FACTOR = 16.0
_SPACINGS = {
    ir.DataType.FLOAT: 2.0**-23,
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
}
#: What still counts as equal at most: a model that differs by more from itself tells nothing apart.
MOST_NOISE = 0.1
#: Bytes of weights above which the noise is taken as none: the runtime's optimizations copy them.
NOISE_LIMIT = 2 << 30


#: A channel (along axis 1 or the last) may differ by this much of itself, where it is not lost in
#: the roundings of the whole.
PART, LOST = 1e-2, 1e-5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one set of outputs differs from another, per output.

    Attributes:
        errors: figures of each output.
        broken: what makes the two incomparable; "" if they compare.
        parts: relative L2 difference of the worst channel of each output.
        changed: share of the elements that differ, of outputs that are integers or booleans.
    """

    errors: dict[str, OutputError]
    broken: str = ""
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    changed: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest relative L2 difference; inf if shapes, types or NaN positions differ."""
        if self.broken:
            return math.inf
        return max((e.rel_l2 for e in self.errors.values()), default=0.0)


class Judge:
    """The source model's outputs on the probe inputs, and what counts as equal to them.

    Args:
        source: the model everything is compared with; it is not changed.
        probe: the inputs, a few runs.
        extra: runs at other sizes and values, on which exact passes are compared too; those that
            the source does not run on are left out.

    Attributes:
        source: its outputs on `probe`, one mapping per run.
        beyond: its outputs on `extra`.
        unable: why the source cannot be run here; "" if it can.
    """

    def __init__(
        self,
        source: ir.Model | Skeleton,
        probe: Sequence[Outputs],
        extra: Sequence[Outputs] = (),
    ) -> None:
        self.probe = probe
        self._skeleton = skeleton_of(source)
        self.unable = ""
        self.source: list[Outputs] = []
        self.beyond: list[Outputs] = []
        self.extra: list[Outputs] = []
        try:
            with opened(self._skeleton, optimize=False) as predict:
                self.source += map(predict, probe)
                for feeds in extra:
                    with contextlib.suppress(ModelError):
                        self.beyond.append(predict(feeds))
                        self.extra.append(feeds)
        except ModelError as error:
            self.unable = str(error)

    @cached_property
    def noise(self) -> Comparison:
        """The difference the runtime's own optimizations make, run when first asked for."""
        if sum(one.tensor.nbytes for one in self._skeleton.held) > NOISE_LIMIT:
            return Comparison({})
        try:
            feeds = [*self.probe, *self.extra]
            compared = compare_outputs(self.all, run_each(self._skeleton, feeds, optimize=True))
        except ModelError:
            return Comparison({})
        return Comparison({}) if compared.broken else compared

    @cached_property
    def costly(self) -> bool:
        """Whether each run reads all weights anew: what is proved is then not run as well."""
        return in_parts(self._skeleton)

    @cached_property
    def rounded(self) -> list[Outputs]:
        """The source's outputs on all inputs, each moved by a rounding of what it computes in."""
        rng, unit = np.random.default_rng(0), _spacing(self._skeleton.model)
        runs = (*self.probe, *self.extra)
        feeds = [{n: _moved(a, unit, rng) for n, a in run.items()} for run in runs]
        return list(run_each(self._skeleton, feeds))

    @property
    def all(self) -> list[Outputs]:
        """The source's outputs on `probe`, then on `extra`."""
        return [*self.source, *self.beyond]

    @property
    def silent(self) -> list[str]:
        """Outputs that are empty or NaN on every run: agreeing about them means nothing."""
        names = dict.fromkeys(n for run in self.source for n in run)
        return [n for n in names if all(_says_nothing(run[n]) for run in self.source)]

    def outputs(self, model: ir.Model | Skeleton) -> list[Outputs]:
        """The model's outputs on `probe`, then on `extra`, with the runtime's optimizations off."""
        return list(run_each(model, [*self.probe, *self.extra]))

    def as_deployed(self, model: ir.Model | Skeleton) -> list[Outputs]:
        """The model's outputs on `probe` as users run it: lossy kernels are in what is optimized.

        Integer products are fused there, and activations rounded for them.
        """
        return list(run_each(model, self.probe, optimize=True))

    def equal(self, compared: Comparison) -> bool:
        """Whether a comparison passes the equality rule of this module."""
        if compared.broken:
            return False
        close = all(e.rel_l2 <= FLOOR for e in compared.errors.values())
        if (
            close
            and not any(compared.changed.values())
            and not any(part > PART for part in compared.parts.values())
        ):
            return True
        noise = self.noise
        return (
            all(e.rel_l2 <= self.tolerance(name) for name, e in compared.errors.items())
            and all(
                part <= max(PART, NOISE_FACTOR * noise.parts.get(name, 0.0))
                for name, part in compared.parts.items()
            )
            and all(
                share <= NOISE_FACTOR * noise.changed.get(name, 0.0)
                for name, share in compared.changed.items()
            )
        )

    def rounds_alike(self, compared: Comparison, runs: slice) -> bool:
        """Whether a comparison on these runs is within what rounding does to the source there."""
        if compared.broken:
            return False
        try:
            moved = compare_outputs(self.all[runs], self.rounded[runs])
        except ModelError:
            return False
        return not moved.broken and all(
            found.get(name, 0.0) <= ROUNDING_FACTOR * x
            for found, own in (
                (_figures(compared), _figures(moved)),
                (compared.parts, moved.parts),
                (compared.changed, moved.changed),
            )
            for name, x in own.items()
        )

    def tolerance(self, output: str) -> float:
        """The largest relative L2 difference that still counts as equal."""
        noise = self.noise.errors.get(output)
        return max(FLOOR, min(NOISE_FACTOR * noise.rel_l2, MOST_NOISE)) if noise else FLOOR


def compare_outputs(expected: Iterable[Outputs], got: Iterable[Outputs]) -> Comparison:
    """Compare two streams of outputs run by run; sums are accumulated in float64."""
    sums: dict[str, _Sums] = {}
    for a, b in zip(expected, got, strict=True):
        if list(a) != list(b):
            return Comparison({}, f"outputs {', '.join(a)} became {', '.join(b)}")
        for name in a:
            broken = sums.setdefault(name, _Sums()).add(a[name], b[name])
            if broken:
                return Comparison({}, f"output {name}: {broken}")
    return Comparison(
        {name: s.result() for name, s in sums.items()},
        parts={name: s.part() for name, s in sums.items()},
        changed={name: s.differ / s.count for name, s in sums.items() if s.count},
    )


def _figures(compared: Comparison) -> dict[str, float]:
    return {name: error.rel_l2 for name, error in compared.errors.items()}


def _spacing(model: ir.Model) -> float:
    """From 1 to the next number of the coarsest type that a model is given or casts to."""
    given = {v.dtype for v in model.graph.inputs}
    casts = {attribute(n, "to", 1) for n in all_nodes(model.graph) if n.op_type == "Cast"}
    kinds = given | {ir.DataType(to) for to in casts}
    return max(size for kind, size in _SPACINGS.items() if kind in {*kinds, ir.DataType.FLOAT})


def _moved(x: Any, unit: float, rng: np.random.Generator) -> Any:
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        return x
    return (x * (1 + unit * rng.choice((-1, 1), x.shape))).astype(x.dtype)


def same_forms(expected: Iterable[Outputs], got: Iterable[Outputs]) -> str:
    """What differs in names, order, shapes or types of outputs, run by run; "" if nothing does."""
    for a, b in zip(expected, got, strict=True):
        if list(a) != list(b):
            return f"outputs {', '.join(a)} became {', '.join(b)}"
        for name in a:
            x, y = np.shape(a[name]), np.shape(b[name])
            if isinstance(a[name], np.ndarray) and x != y:
                return f"output {name}: shape {list(x)} became {list(y)}"
    return ""


def _says_nothing(a: Any) -> bool:
    if not isinstance(a, np.ndarray):
        return False
    return a.size == 0 or (a.dtype.kind == "f" and bool(np.isnan(a).all()))


@dataclasses.dataclass
class _Sums:
    """Running sums of one output: |a|^2, |b|^2, |a-b|^2, a.b, max |a-b|, top-1 agreement."""

    aa: float = 0.0
    bb: float = 0.0
    dd: float = 0.0
    ab: float = 0.0
    worst: float = 0.0
    rows: int = 0
    agree: int = 0
    count: int = 0
    differ: int = 0
    channels: dict[int, Any] = dataclasses.field(default_factory=dict)

    def add(self, a: Any, b: Any) -> str:
        """Add one run; returns what makes the two incomparable, or "" if they compare."""
        if _rows_of(a) is not None and (isinstance(b, np.ndarray) or _keys(a) == _keys(b)):
            a, b = _rows_of(a), b if isinstance(b, np.ndarray) else _rows_of(b)
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            return "" if _same_sequence(a, b) else "sequence elements differ"
        if a.shape != b.shape:
            return f"shape {list(a.shape)} became {list(b.shape)}"
        if a.dtype != b.dtype:
            return f"type {a.dtype} became {b.dtype}"
        if a.dtype.kind in "OSU":
            return "" if np.array_equal(a, b) else "text differs"
        if a.dtype.kind in "biu":
            self.count += a.size
            self.differ += int((a != b).sum())
        self._add_channels(a, b)
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        if a.dtype.kind not in "biu":
            fx, fy = np.isfinite(x), np.isfinite(y)
            if not np.array_equal(x[~fx], y[~fy], equal_nan=True) or not np.array_equal(fx, fy):
                return "NaN or Inf at other positions"
            x, y = x[fx], y[fy]
        d = x - y
        self.aa += float(x @ x)
        self.bb += float(y @ y)
        self.dd += float(d @ d)
        self.ab += float(x @ y)
        self.worst = max(self.worst, float(np.abs(d).max(initial=0.0)))
        if _looks_like_logits(a):
            self.rows += math.prod(a.shape[:-1])
            self.agree += int((a.argmax(-1) == b.argmax(-1)).sum())
        return ""

    def _add_channels(self, a: Any, b: Any) -> None:
        """Sums of |a|^2 and |a-b|^2 of each channel, along axis 1 and the last."""
        if a.dtype.kind != "f" or a.ndim < 2 or a.size == 0:
            return
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.nan_to_num(a.astype(np.float64) - b, nan=0, posinf=0, neginf=0) ** 2
            power = np.nan_to_num(a.astype(np.float64), nan=0, posinf=0, neginf=0) ** 2
        for axis in {1, a.ndim - 1}:
            others = tuple(k for k in range(a.ndim) if k != axis)
            sums = np.stack([power.sum(axis=others), apart.sum(axis=others)])
            known = self.channels.get(axis)
            if known is None:
                self.channels[axis] = sums
            elif known.shape == sums.shape:
                self.channels[axis] = known + sums

    def part(self) -> float:
        """Relative L2 difference of the worst channel that is not lost in the whole's roundings."""
        worst = 0.0
        for power, apart in self.channels.values():
            if power.size < 2:
                continue
            heard = np.sqrt(apart) > LOST * np.sqrt(power.sum() / power.size)
            if heard.any():
                ratio = np.sqrt(apart[heard]) / np.maximum(np.sqrt(power[heard]), 1e-150)
                worst = max(worst, float(ratio.max()))
        return worst

    def result(self) -> OutputError:
        """The figures of this output."""
        norm, diff = math.sqrt(self.aa), math.sqrt(self.dd)
        rel = diff / norm if norm > 0 else (0.0 if diff == 0 else math.inf)
        lengths = math.sqrt(self.aa * self.bb)
        return OutputError(
            rel_l2=rel,
            max_abs=self.worst,
            sqnr_db=_decibels(rel),
            cosine=self.ab / lengths if lengths > 0 else (1.0 if diff == 0 else 0.0),
            top1=self.agree / self.rows if self.rows else None,
        )


def _decibels(rel: float) -> float:
    if rel == 0:
        return math.inf
    return -math.inf if rel == math.inf else -20 * math.log10(rel)


def _looks_like_logits(a: np.ndarray[Any, Any]) -> bool:
    return a.dtype.kind == "f" and a.ndim in (2, 3) and a.shape[-1] >= 2 and a.size > 0


def _keys(a: Any) -> Any:
    """Of a list of dictionaries (a ZipMap's), the keys of each."""
    return [list(row) for row in a] if _rows_of(a) is not None else None


def _rows_of(a: Any) -> np.ndarray[Any, Any] | None:
    """A list of dictionaries of numbers as the matrix that it was made of."""
    if not isinstance(a, list) or not a or not all(isinstance(row, dict) for row in a):
        return None
    return np.array([list(row.values()) for row in a], np.float32)


def _same_sequence(a: Any, b: Any) -> bool:
    return (
        isinstance(a, list)
        and isinstance(b, list)
        and len(a) == len(b)
        and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    )
