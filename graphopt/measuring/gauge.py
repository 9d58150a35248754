"""Latency of models on a target: each lowered once and timed in a process of its own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.backend import Arrays, Backend, Timing, backend_of
from graphopt.blame import described
from graphopt.deploy.manifest import read_manifest
from graphopt.errors import PassError
from graphopt.execution.caches import Caches
from graphopt.execution.runtime import open_session
from graphopt.formats import save
from graphopt.measuring.statistics import compare_times, known, verdict
from graphopt.measuring.worker import Served, alternate, keep_feeds, served
from graphopt.target import Target

__all__ = ["Gauge", "Holder", "objection", "remark"]

#: Lowered artifacts kept for the next comparison: the source, the model before and after a step.
KEPT = 3


class Holder(Protocol):
    """Whatever holds a model that does not change; it is told apart by identity."""

    model: ir.Model


class Gauge:
    """Measures models for one target; a context manager, since it holds files and processes.

    Args:
        target: where models will run; only one that is `measured` is timed.
        seconds: about how long one comparison may take.
    """

    def __init__(self, target: Target, seconds: float) -> None:
        self._target = target
        self._backend: Backend | None = backend_of(target)
        self._timed = target.measured and self._backend is not None
        self._seconds = seconds
        self._stack = contextlib.ExitStack()
        self._lowered: dict[Holder, _Lowered] = {}
        self._count = 0

    def __enter__(self) -> Gauge:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-"))
        self._folder = Path(folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in self._lowered.values():
            one.close()
        self._lowered.clear()
        self._stack.close()

    def ratio(self, a: Holder, b: Holder, feeds: Arrays) -> Timing | None:
        """Latency of `b` over `a`, in processes that take turns; None if nothing is timed.

        Turns end when the ratio is known well, or after about the seconds of this gauge.
        """
        if not self._timed:
            return None
        times, _ = alternate(self._pair(a, b, feeds), self._seconds, enough=known)
        return compare_times(times[:, 0], times[:, 1], times[:, 2])

    def quicker(self, a: Holder, b: Holder, feeds: Arrays) -> tuple[float, float]:
        """Milliseconds of each model's quicker runs in the same turns; the target is measured.

        A tenth of the runs are quicker still: who else is on the machine counts for little.
        """
        _, runs = alternate(self._pair(a, b, feeds), self._seconds)
        first, second = (float(np.quantile(times, 0.1)) for times in runs)
        return first, second

    def _pair(self, a: Holder, b: Holder, feeds: Arrays) -> list[Served]:
        pair = []
        for one in (a, b):
            lowered = self._lower(one)
            file = keep_feeds(Caches(one.model).held(feeds), lowered.path.parent)
            pair.append(lowered.serve(self._target, file))
        return pair

    def evaluate(self, one: Holder, function: Callable[..., float]) -> float:
        """What the user's function returns for a model that runs as it will on the target."""
        path = self._lower(one).path
        if self._backend is not None and self._target.measured:
            opened = self._backend.session(path, self._target, beside=True)
            predict: Callable[[Arrays], Any] = opened
        else:
            session = open_session(path, optimize=True)
            names = [o.name for o in session.get_outputs()]

            def predict(feeds: Arrays) -> dict[str, Any]:
                return dict(zip(names, session.run(names, dict(feeds)), strict=True))

        try:
            return float(function(Caches(one.model).around(predict)))
        except Exception as error:
            raise PassError(f"the evaluation function raised {described(error)}") from error

    def _lower(self, one: Holder) -> _Lowered:
        """The artifact for a model, lowered once; the oldest goes."""
        if one not in self._lowered:
            self._count += 1
            folder = self._folder / str(self._count)
            folder.mkdir()
            path = folder / "model.onnx"
            if self._backend is None:
                save(one.model, path)
            else:
                path = self._backend.lower(one.model, self._target, path)
            if len(self._lowered) >= KEPT:
                self._lowered.pop(next(iter(self._lowered))).close()
        else:
            path = self._lowered[one].path
        self._lowered[one] = self._lowered.pop(one, _Lowered(path))  # the newest is last
        return self._lowered[one]


class _Lowered:
    """An artifact, and the process that serves it once it is timed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = contextlib.ExitStack()
        self._served: Served | None = None

    def serve(self, target: Target, feeds: Path) -> Served:
        """The process, stopped until its turn comes."""
        if self._served is None:
            opened = served(self.path, target, feeds, read_manifest(self.path))
            self._served = self._stack.enter_context(opened)
        return self._served

    def close(self) -> None:
        """End the process and delete the artifact."""
        self._stack.close()
        shutil.rmtree(self.path.parent, ignore_errors=True)


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
