"""Verification: is the graph valid, and did the outputs stay as they were.

*Equal* means, per output: relative L2 difference at most max(1e-5, 4 x the difference that the
runtime's own optimizations make on the source), and NaN and Inf at the same positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.execution.runtime import run_each
from graphopt.io.skeleton import Skeleton, skeleton_of
from graphopt.reporting.records import OutputError

__all__ = ["FLOOR", "Comparison", "Judge", "compare_outputs"]

Outputs = Mapping[str, np.ndarray[Any, Any]]
#: Smallest relative L2 difference that counts: about 100 float32 roundings.
FLOOR = 1e-5
#: How many times the runtime's own noise still counts as equal.
NOISE_FACTOR = 4.0
#: Bytes of weights above which the noise is taken as none: the runtime's optimizations copy them.
NOISE_LIMIT = 2 << 30


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one set of outputs differs from another, per output."""

    errors: dict[str, OutputError]
    broken: str = ""

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

    Attributes:
        source: its outputs, one mapping per run.
        noise: per output, the relative L2 difference the runtime's own optimizations make.
        unable: why the source cannot be run here; "" if it can.
    """

    def __init__(self, source: ir.Model | Skeleton, probe: Sequence[Outputs]) -> None:
        self.probe = probe
        source = skeleton_of(source)
        self.unable = ""
        self.source: list[Outputs] = []
        self.noise: dict[str, float] = {}
        try:
            self.source = self.outputs(source)
        except ModelError as error:
            self.unable = str(error)
            return
        if sum(one.tensor.nbytes for one in source.held) > NOISE_LIMIT:
            return
        try:
            optimized = list(run_each(source, probe, optimize=True))
        except ModelError:
            return
        compared = compare_outputs(self.source, optimized)
        if not compared.broken:
            self.noise = {n: e.rel_l2 for n, e in compared.errors.items()}

    def outputs(self, model: ir.Model | Skeleton) -> list[Outputs]:
        """The model's outputs on the probe inputs, with the runtime's optimizations off."""
        return list(run_each(model, self.probe))

    def equal(self, compared: Comparison) -> bool:
        """Whether a comparison passes the equality rule of this module."""
        return not compared.broken and all(
            e.rel_l2 <= self.tolerance(name) for name, e in compared.errors.items()
        )

    def tolerance(self, output: str) -> float:
        """The largest relative L2 difference that still counts as equal."""
        return max(FLOOR, NOISE_FACTOR * self.noise.get(output, 0.0))


def compare_outputs(expected: Iterable[Outputs], got: Iterable[Outputs]) -> Comparison:
    """Compare two streams of outputs run by run; sums are accumulated in float64."""
    sums: dict[str, _Sums] = {}
    for a, b in zip(expected, got, strict=True):
        if a.keys() != b.keys():
            return Comparison({}, f"outputs {', '.join(a)} became {', '.join(b)}")
        for name in a:
            broken = sums.setdefault(name, _Sums()).add(a[name], b[name])
            if broken:
                return Comparison({}, f"output {name}: {broken}")
    return Comparison({name: s.result() for name, s in sums.items()})


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

    def add(self, a: Any, b: Any) -> str:
        """Add one run; returns what makes the two incomparable, or "" if they compare."""
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            return "" if _same_sequence(a, b) else "sequence elements differ"
        if a.shape != b.shape:
            return f"shape {list(a.shape)} became {list(b.shape)}"
        if a.dtype != b.dtype:
            return f"type {a.dtype} became {b.dtype}"
        if a.dtype.kind in "OSU":
            return "" if np.array_equal(a, b) else "text differs"
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


def _same_sequence(a: Any, b: Any) -> bool:
    return (
        isinstance(a, list)
        and isinstance(b, list)
        and len(a) == len(b)
        and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    )
