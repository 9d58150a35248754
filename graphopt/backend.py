"""Backend: the interface of a lowerer, found by entry point in the group `graphopt.backends`.

A user names one of their own as `FILE.py:NAME`: `named_target` runs that file. `find_target` takes
names alone, and is for what manifests and recipes say: files from anywhere name no code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import onnx_ir as ir

from graphopt import plugins
from graphopt.blame import described, shown
from graphopt.errors import GraphOptError, MissingExtra, UsageError, nearest
from graphopt.target import Target
from graphopt.user_code import load_attribute

__all__ = [
    "Arrays",
    "Backend",
    "Session",
    "Timing",
    "backend_of",
    "every_target",
    "find_target",
    "named_backend",
    "named_target",
]

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
        """Milliseconds per node name, of one run."""
        ...


def find_target(name: str) -> Target:
    """The target called `name`, of whichever backend knows it. Raises UsageError if none does."""
    known = plugins.find(plugins.BACKENDS)
    for key in sorted(known, key=lambda k: not name.startswith(k)):
        backend = known[key].load()
        if name in backend.targets():
            found: Target = backend.target(name)
            return found
    names = [t for e in known.values() for t in e.load().targets()]
    raise UsageError(
        f"no target is called '{name}'{nearest(name, names)}. Known: {', '.join(names)}; one of "
        "your own is ./file.py:BACKEND"
    )


def named_target(named: str) -> Target:
    """The target a user writes: a name, or `FILE.py:NAME` for the first of a backend in a file.

    Raises:
        UsageError: there is none, or the file has no such backend.
        GraphOptError: the backend in the file raised.
    """
    path, _, attribute = named.rpartition(":")
    if not path.endswith(".py"):
        return find_target(named)
    code = f"{Path(path).resolve()}:{attribute}"
    backend = _UserBackend(code)
    names = list(backend.targets())
    if not names:
        raise UsageError(f"{named}: its targets() names none")
    target: Target = backend.target(names[0])
    return dataclasses.replace(target, backend=code)


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
    return named_backend(target.backend)


def named_backend(named: str) -> Backend | None:
    """The backend of that name, or in that file: what `Target.backend` holds. None for others."""
    if ".py:" in named:
        return cast(Backend, _UserBackend(named))
    entry = plugins.find(plugins.BACKENDS).get(named)
    if entry is None:
        return None
    found: Backend = entry.load()
    return found


class _UserBackend:
    """The backend that a user's file calls so; what it raises is told with its line.

    Raises:
        UsageError: the file has no such name, or it lacks what a `Backend` has.
    """

    def __init__(self, code: str) -> None:
        path, _, attribute = code.rpartition(":")
        self._named = f"{shown(path)}:{attribute}"
        self._given = load_attribute(path, attribute, "backend")
        if isinstance(self._given, type):
            raise UsageError(f"{self._named} is a class: name an object, {attribute}()")
        needed = ("name", *(n for n in vars(Backend) if not n.startswith("_")))
        if lacks := [n for n in needed if not hasattr(self._given, n)]:
            raise UsageError(f"{self._named} is no backend: it has no {', '.join(lacks)}")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._given, name)
        return self._told(name, found) if callable(found) else found

    def _told(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            try:
                return method(*args, **options)
            except GraphOptError:
                raise
            except Exception as error:
                raise GraphOptError(f"{self._named}: {name}() raised {described(error)}") from error

        return call
