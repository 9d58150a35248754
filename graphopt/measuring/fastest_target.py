"""`--target auto`: a model lowered for every backend this machine can run, the fastest chosen.

Each gets the number of threads that suits it, then all take turns, each in a process of its own, as
it would be deployed. One that is refused (it does not open, or its outputs are outside the budget)
is listed with the reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from graphopt.backend import Arrays, Session, Timing, backend_of, every_target
from graphopt.deploy.manifest import read_manifest
from graphopt.errors import MissingExtra, ModelError, UsageError
from graphopt.measuring.session_options import tune
from graphopt.measuring.statistics import Array, compare_times
from graphopt.measuring.worker import all_served, alternate, keep_feeds, served
from graphopt.target import Target

__all__ = ["Candidate", "Choice", "fastest", "runnable"]

#: A later candidate displaces an earlier one if it is faster by more than this, beyond noise.
MARGIN = 1.02


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One target for one model, and what was measured.

    Attributes:
        target: the target.
        path: its lowered artifact, or None if it was refused before it was lowered.
        latency_ms: median milliseconds of one run.
        ratio, ci: latency over that of the first candidate that runs, and its 95 % interval.
        tuned: session options that made it faster here, e.g. "threads=1".
        refused: why it cannot be chosen; "" if it can.
    """

    target: Target
    path: Path | None = None
    latency_ms: float | None = None
    ratio: float | None = None
    ci: tuple[float, float] | None = None
    tuned: tuple[str, ...] = ()
    refused: str = ""

    def __str__(self) -> str:
        options = f" ({', '.join(self.tuned)})" if self.tuned else ""
        return f"{self.target.name}{options}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The outcome; `index` is the chosen candidate's place in the order they were given.

    Attributes:
        index: position of the chosen candidate.
        candidates: all of them, in the order given.
        spread: noise of the first candidate against itself, as in `Timing`.
        rounds: rounds timed.
        source: what was timed beside them and cannot be chosen, or None.
    """

    index: int
    candidates: tuple[Candidate, ...]
    spread: float
    rounds: int
    source: Candidate | None = None

    @property
    def best(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.index]

    def __str__(self) -> str:
        """One sentence: what was chosen, by how much, and why the others were not."""
        others = [c for k, c in enumerate(self.candidates) if k != self.index]
        parts = [f"target {self.best} was chosen{self._gain()}"]
        parts += [_beside(self.best, c) for c in others if c.latency_ms is not None]
        parts += [f"{c.target.name} is out: {c.refused}" for c in others if c.refused]
        noise = f" ({self.rounds} interleaved rounds, noise {self.spread:.1%})"
        return "; ".join(parts) + (noise if self.rounds else "") + "."

    def _gain(self) -> str:
        """By how much the chosen one beats the source, or ""."""
        if self.source is None or self.source.latency_ms is None or self.best.latency_ms is None:
            return ""
        ratio = self.source.latency_ms / self.best.latency_ms
        return (
            f", {ratio:.2f} times as fast as the source on {self.source.target.name} "
            f"({self.best.latency_ms:.3g} against {self.source.latency_ms:.3g} ms)"
        )


def runnable() -> tuple[list[Target], dict[str, str]]:
    """The targets this machine can measure, plain CPU first, and why the others are not here."""
    found: list[Target] = []
    absent: dict[str, str] = {}
    for _, name, target in every_target():
        if isinstance(target, MissingExtra):
            absent[name] = str(target)
        elif target.measured and target.deploys:
            found.append(target)
    return found, absent


def fastest(
    models: Sequence[tuple[Target, ir.Model]],
    feeds: Arrays,
    folder: Path,
    *,
    seconds: float = 5.0,
    accept: Callable[[Target, Session], str] | None = None,
    source: tuple[Target, ir.Model] | None = None,
    seed: int = 0,
) -> Choice:
    """Lower each model for its target, time all in interleaved rounds, and choose.

    A candidate displaces one before it only if it is faster beyond noise, so plainer and more
    exact targets belong first.

    Args:
        models: a target and the model made for it, each; the model may be the same.
        feeds: inputs by name; every model takes them.
        folder: artifacts are written here, one folder each.
        seconds: bound on the timed part.
        accept: says why a session's outputs are not acceptable, or "".
        source: a target and model timed beside them, which cannot be chosen.
        seed: seeds the order inside rounds.

    Raises:
        UsageError: none of them can run here within the budget.
    """
    candidates = [
        _prepare(target, model, folder / f"{k}-{target.name}", feeds, accept)
        for k, (target, model) in enumerate(models)
    ]
    for k, candidate in enumerate(candidates):
        if not candidate.refused:
            candidates[k] = _tuned(candidate, feeds, folder, seconds)
    order = [k for k, c in enumerate(candidates) if not c.refused]
    if not order:
        reasons = "; ".join(f"{c.target.name}: {c.refused}" for c in candidates)
        raise UsageError(f"no target here can run this model within the budget ({reasons})")
    timed = [candidates[k] for k in order]
    beside = _prepare(*source, folder / "source", feeds, None) if source is not None else None
    timed += [beside] if beside is not None and not beside.refused else []
    if len(timed) == 1:
        return Choice(order[0], tuple(candidates), 0.0, 0, beside)
    times = clock(timed, feeds, folder, seconds, seed)
    timings = [compare_times(times[:, 0], t, times[:, -1]) for t in times.T[:-1]]
    for k, timing in zip(order, timings, strict=False):
        candidates[k] = _timed(candidates[k], timing)
    if beside is not None and len(timed) > len(order):
        beside = _timed(beside, timings[-1])
    best = order[_pick(times[:, : len(order)])]
    return Choice(best, tuple(candidates), timings[0].spread, len(times), beside)


def clock(
    candidates: Sequence[Candidate], feeds: Arrays, folder: Path, seconds: float, seed: int
) -> Array:
    """Milliseconds, one row a round and one column per candidate, the first again at the end."""
    opened = [(c.path, c.target, read_manifest(c.path)) for c in candidates if c.path is not None]
    with all_served(opened, feeds, folder) as models:
        return alternate(models, seconds, seed=seed)[0]


def _tuned(candidate: Candidate, feeds: Arrays, folder: Path, seconds: float) -> Candidate:
    """The candidate as it will be deployed, with the number of threads that suits it.

    It is refused if it does not run in a process of its own.
    """
    assert candidate.path is not None
    manifest = read_manifest(candidate.path)
    try:
        if manifest is not None:
            tried = tune(
                candidate.path, target=candidate.target, feeds=feeds, every=False, seconds=seconds
            )
            kept = tuple(t.option for t in tried if t.kept)
            return dataclasses.replace(candidate, tuned=kept)
        with served(candidate.path, candidate.target, keep_feeds(feeds, folder)):
            return candidate
    except ModelError as error:
        return dataclasses.replace(candidate, refused=str(error))


def _timed(candidate: Candidate, timing: Timing) -> Candidate:
    return dataclasses.replace(candidate, latency_ms=timing.b_ms, ratio=timing.ratio, ci=timing.ci)


def _prepare(
    target: Target,
    model: ir.Model,
    folder: Path,
    feeds: Arrays,
    accept: Callable[[Target, Session], str] | None,
) -> Candidate:
    backend = backend_of(target)
    if backend is None or not target.measured:
        return Candidate(target, refused="it cannot be measured on this machine")
    folder.mkdir(parents=True)
    try:
        path = backend.lower(model, target, folder / "model.onnx")
        session = backend.session(path, target, beside=True)
        session(feeds)
        reason = accept(target, session) if accept else ""
    except (MissingExtra, ModelError) as error:
        return Candidate(target, refused=str(error))
    return Candidate(target, path, refused=reason)


def _pick(times: Array) -> int:
    """The column that no later one beats beyond noise."""
    best = 0
    for k in range(1, times.shape[1]):
        timing = compare_times(times[:, best], times[:, k], times[:, best])
        if timing.ratio < 1 / MARGIN and timing.ci[1] < 1:
            best = k
    return best


def _beside(best: Candidate, other: Candidate) -> str:
    assert best.latency_ms is not None
    assert other.latency_ms is not None
    ratio = other.latency_ms / best.latency_ms
    if math.isclose(ratio, 1, abs_tol=MARGIN - 1):
        return f"{other} is as fast ({other.latency_ms:.3g} ms)"
    word = "slower" if ratio > 1 else "faster, within noise"
    factor = ratio if ratio > 1 else 1 / ratio
    return (
        f"{other} is {factor:.2f} times {word} "
        f"({other.latency_ms:.3g} against {best.latency_ms:.3g} ms)"
    )
