"""Figures of a model: size, nodes, parameters and MACs as written, latency timed on the target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx_ir as ir

from graphopt.analyses.cost import cost
from graphopt.backend import Arrays, Backend, Timing, backend_of
from graphopt.context import Context
from graphopt.errors import PassError
from graphopt.execution.runtime import open_session
from graphopt.formats import load, save
from graphopt.io.reading import source_of
from graphopt.io.writing import size_of
from graphopt.measuring.statistics import verdict
from graphopt.reporting.records import Figures
from graphopt.target import Target
from graphopt.verification.graph import fingerprint

__all__ = ["Gauge", "file_bytes", "objection", "remark"]

#: Lowered artifacts kept for the next comparison: the source, the model before and after a step.
KEPT = 3


class Gauge:
    """Measures models for one target; a context manager, since lowered artifacts need a folder.

    Args:
        target: where models will run.
        measure: time models, if the target can be measured on this machine.
        seconds: about how long one comparison may take.
    """

    def __init__(self, target: Target, measure: bool, seconds: float) -> None:
        self._target = target
        self._backend: Backend | None = backend_of(target)
        self._timed = measure and target.measured and self._backend is not None
        self.seconds = seconds
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lowered: dict[int, Path] = {}
        self._count = 0

    def __enter__(self) -> Gauge:
        self._folder = tempfile.TemporaryDirectory(prefix="graphopt-")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
        self._lowered.clear()

    def figures(
        self, model: ir.Model, shapes: Mapping[str, tuple[int, ...]], path: Path | None = None
    ) -> Figures:
        """Bytes (of the file at `path`, or as it would be written), nodes, params, MACs, peak."""
        found = Context(model, target=self._target, shapes=shapes).get(cost)
        return Figures(
            bytes=size_of(model) if path is None else file_bytes(path, model),
            nodes=sum(1 for _ in model.graph.all_nodes()),
            params=found.params,
            macs=found.macs,
            peak_activation_bytes=found.peak_activation_bytes,
        )

    def ratio(self, a: ir.Model, b: ir.Model, feeds: Arrays) -> Timing | None:
        """Latency of `b` over `a`, timed in interleaved pairs; None if nothing is timed."""
        if not self._timed or self._backend is None:
            return None
        first, second = self._lower(a), self._lower(b)
        return self._backend.measure(first, second, feeds, self._target, self.seconds)

    def evaluate(self, model: ir.Model, function: Callable[..., float]) -> float:
        """What the user's function returns for a model that runs as it will on the target."""
        path = self._lower(model)
        if self._backend is not None and self._target.measured:
            predict: Callable[[Arrays], Any] = self._backend.session(path, self._target)
        else:
            session = open_session(path, optimize=True)
            names = [o.name for o in session.get_outputs()]

            def predict(feeds: Arrays) -> dict[str, Any]:
                return dict(zip(names, session.run(names, dict(feeds)), strict=True))

        try:
            return float(function(predict))
        except Exception as error:
            raise PassError(
                f"the evaluation function raised {type(error).__name__}: {error}"
            ) from error

    def _lower(self, model: ir.Model) -> Path:
        """The artifact for a model; the same graph over the same tensors is lowered once."""
        assert self._folder is not None
        key = fingerprint(model)
        if key not in self._lowered:
            self._count += 1
            folder = Path(self._folder.name, str(self._count))
            folder.mkdir()
            path = folder / "model.onnx"
            if self._backend is None:
                save(model, path)
            else:
                path = self._backend.lower(model, self._target, path)
            self._lowered[key] = path
            if len(self._lowered) > KEPT:
                oldest = next(iter(self._lowered))
                _remove(self._lowered.pop(oldest))
        return self._lowered[key]


def objection(timing: Timing | None) -> str:
    """Why a timed step may not stay: "" unless it is slower beyond noise."""
    if timing is None or verdict(timing) != "slower":
        return ""
    low, high = timing.ci
    return f"slower on the target: {timing.ratio:.3f}x the latency (95 %: {low:.3f}-{high:.3f})"


def remark(timing: Timing | None) -> list[str]:
    """What must be said about a timing that allows no verdict."""
    if timing is None or verdict(timing) != "noisy":
        return []
    return [f"no verdict on speed: the machine's noise is {timing.spread:.0%}"]


def file_bytes(path: Path, model: ir.Model | None = None) -> int:
    """Bytes of a model file and of its external data; `model` is what it holds, if known.

    Of a model that was not read from ONNX (a .pt2 file, a function, the format of a plugin) it is
    what it would weigh as .onnx.
    """
    if model is None and path.suffix == ".pt2":
        return path.stat().st_size
    source = source_of(model) if model is not None else None
    if model is not None and (path.suffix == ".pt2" or not path.is_file()):
        return size_of(model)
    if source is None or not source.path.samefile(path):
        source = source_of(load(path))
    if source is not None:
        return source.bytes
    return path.stat().st_size if model is None else size_of(model)


def _remove(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
