"""Backend: the interface of a lowerer, found by entry point in the group `graphopt.backends`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from graphopt import plugins
from graphopt.errors import MissingExtra, UsageError
from graphopt.target import Target

__all__ = ["Arrays", "Backend", "Session", "Timing", "backend_of", "every_target", "find_target"]

#: Named arrays: inputs or outputs of one run.
Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Two models timed in interleaved pairs.

    Attributes:
        a_ms, b_ms: median milliseconds of one run.
        ratio: exp of the trimmed mean of the paired log-ratios b / a.
        ci: its 95 % interval.
        spread: bound of the 95 % interval of `a` against itself that is farther from 1, less 1.
        pairs: number of pairs timed.
    """

    a_ms: float
    b_ms: float
    ratio: float
    ci: tuple[float, float]
    spread: float
    pairs: int


class Session(Protocol):
    """A model ready to run."""

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        ...


@runtime_checkable
class Backend(Protocol):
    """What a backend offers: one object per backend, usually its module's `BACKEND`."""

    name: str

    def targets(self) -> Sequence[str]:
        """Names of the targets it knows, this machine's own first (e.g. "cpu", "cpu-avx2")."""
        ...

    def target(self, name: str) -> Target:
        """The data of one of its targets. Raises MissingExtra if its package is not installed."""
        ...

    def lower(self, model: ir.Model, target: Target, path: Path) -> Path:
        """Write the artifact for `target` at `path` (a file or a folder); returns what to open."""
        ...

    def session(self, path: Path, target: Target, *, beside: bool = False) -> Session:
        """Open a lowered artifact on this machine.

        `beside` says that other sessions run in this process in turn with it: it must leave the
        processor to them between its runs (no spinning threads).
        """
        ...

    def measure(self, a: Path, b: Path, feeds: Arrays, target: Target, seconds: float) -> Timing:
        """Time two artifacts on the same feeds in interleaved pairs, for about `seconds`."""
        ...

    def profile(self, path: Path, feeds: Arrays, target: Target) -> dict[str, float]:
        """Milliseconds per node name, one run (median over a few)."""
        ...


def find_target(name: str) -> Target:
    """The target called `name`, of whichever backend knows it. Raises UsageError if none does."""
    known = plugins.find(plugins.BACKENDS)
    for key in sorted(known, key=lambda k: not name.startswith(k)):
        backend = known[key].load()
        if name in backend.targets():
            found: Target = backend.target(name)
            return found
    from graphopt.errors import nearest

    names = [t for e in known.values() for t in e.load().targets()]
    raise UsageError(
        f"no target is called '{name}'{nearest(name, names)}. Known: {', '.join(names)}"
    )


def every_target() -> Iterator[tuple[Backend, str, Target | MissingExtra]]:
    """Each backend's targets by name, or what is missing to have one; plain CPU first."""
    entries = plugins.find(plugins.BACKENDS)
    for key in sorted(entries, key=lambda k: (k != "cpu", k)):
        backend: Backend = entries[key].load()
        for name in backend.targets():
            try:
                yield backend, name, backend.target(name)
            except MissingExtra as error:
                yield backend, name, error


def backend_of(target: Target) -> Backend | None:
    """The backend that runs `target`, or None for targets that nothing here runs."""
    entry = plugins.find(plugins.BACKENDS).get(target.backend)
    if entry is None:
        return None
    found: Backend = entry.load()
    return found
