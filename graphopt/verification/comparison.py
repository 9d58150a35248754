"""Figures of a difference of outputs: relative L2, worst channel, SQNR, cosine and top-1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphopt.reporting.records import OutputError

__all__ = ["Comparison", "Outputs", "compare_outputs", "same_forms"]

Outputs = Mapping[str, np.ndarray[Any, Any]]
#: Share of the whole below which the difference of a channel is lost in the roundings.
LOST = 1e-5


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
