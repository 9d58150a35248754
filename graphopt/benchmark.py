"""Benchmark: models on targets, threads and batch sizes, all of one batch size interleaved.

Latency is of single runs, so that percentiles are those a request would see. Load time and memory
come from a fresh process per row (`graphopt.weighing`).
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import weighing
from graphopt.backend import Arrays, Session, backend_of
from graphopt.errors import MissingExtra, ModelError
from graphopt.io import load
from graphopt.samples import bind_shapes, stand_ins
from graphopt.target import Target
from graphopt.timing import Array, compare_times, interleave

__all__ = ["Benchmark", "Row", "benchmark"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on one target. What could not be measured is None; `refused` says why.

    Attributes:
        model: path as given.
        target: target name.
        threads: threads of a run.
        batch: size of the batch axis; None if it is fixed in the model.
        median_ms, p90_ms, p99_ms: latency of single runs.
        per_second: batch / median.
        load_ms: opening the model in a fresh process, the runtime's import left out.
        memory_bytes: by how much loading and running it raised a fresh process's peak memory.
        ratio, ci: latency over that of the first row of the same batch, with 95 % interval.
        runs: single runs timed.
        refused: why there are no figures.
    """

    model: str
    target: str
    threads: int
    batch: int | None
    median_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    per_second: float | None = None
    load_ms: float | None = None
    memory_bytes: int | None = None
    ratio: float | None = None
    ci: tuple[float, float] | None = None
    runs: int = 0
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """All rows, and per batch size how far the first row strayed from itself in the same run."""

    rows: tuple[Row, ...]
    noise: Mapping[int | None, float]


@dataclasses.dataclass(frozen=True)
class _Entry:
    row: Row
    target: Target
    path: Path
    feeds: Arrays
    session: Session


def benchmark(
    models: Sequence[Path],
    targets: Sequence[Target],
    *,
    threads: Sequence[int] = (),
    batches: Sequence[int] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seconds: float = 10.0,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> Benchmark:
    """Time every model on every target, number of threads and batch size.

    Args:
        models: .onnx files.
        targets: where to run them.
        threads: numbers of threads; none means each target's own.
        batches: sizes of a free batch axis; none means 1 (or what `shapes` says).
        shapes: concrete shapes of inputs with dynamic axes.
        seconds: bound on the timed part of each batch size.
        progress: told what is being done.
    """
    rows: list[Row] = []
    noise: dict[int | None, float] = {}
    loaded = [(path, load(path)) for path in models]
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        for k, batch in enumerate(batches or [None]):
            entries: list[_Entry] = []
            refused: list[Row] = []
            combinations = itertools.product(loaded, targets, threads or [0])
            for j, ((path, model), target, count) in enumerate(combinations):
                progress(f"opening {path.name} on {target.name}", k, len(batches) or 1)
                made = _open(
                    path, model, target, count, batch, shapes or {}, Path(folder, f"{k}-{j}")
                )
                entries.append(made) if isinstance(made, _Entry) else refused.append(made)
            progress("timing in interleaved rounds", k, len(batches) or 1)
            timed, spread = _time(entries, seconds)
            rows += [*timed, *refused]
            noise[batch] = spread
    return Benchmark(tuple(rows), noise)


def _open(
    path: Path,
    model: ir.Model,
    target: Target,
    threads: int,
    batch: int | None,
    given: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> _Entry | Row:
    threads = threads or target.threads
    target = dataclasses.replace(target, threads=threads)
    shapes, _ = bind_shapes(model, given)
    row = Row(str(path), target.name, threads, batch)
    backend = backend_of(target)
    if backend is None or not target.measured:
        return dataclasses.replace(row, refused="it cannot be measured on this machine")
    if batch is not None and (reason := _set_batch(model, shapes, batch)):
        return dataclasses.replace(row, refused=reason)
    feeds = next(iter(stand_ins(model, seed=0, shapes=shapes)))
    folder.mkdir()
    try:
        lowered = backend.lower(model, target, folder / "model.onnx")
        weight = weighing.in_fresh_process(lowered, target, feeds, folder)
        session = backend.session(lowered, target, beside=True)
        session(feeds)
    except (MissingExtra, ModelError) as error:
        return dataclasses.replace(row, refused=str(error))
    row = dataclasses.replace(row, load_ms=weight.load_ms, memory_bytes=weight.memory_bytes)
    return _Entry(row, target, lowered, feeds, session)


def _set_batch(model: ir.Model, shapes: dict[str, tuple[int, ...]], batch: int) -> str:
    """Put `batch` wherever the first input's leading dimension occurs; why not, or ""."""
    inputs = [v for v in model.graph.inputs if v.name in shapes]
    leading = inputs[0].shape[0] if inputs and inputs[0].shape else None
    if isinstance(leading, int):
        return "" if leading == batch else f"its batch axis is fixed at {leading}"
    for value in inputs:
        assert value.name is not None
        dims = list(value.shape or ())
        free = [k == 0 if leading is None else d == leading for k, d in enumerate(dims)]
        sizes = zip(free, shapes[value.name], strict=True)
        shapes[value.name] = tuple(batch if f else s for f, s in sizes)
    return ""


def _time(entries: Sequence[_Entry], seconds: float) -> tuple[list[Row], float]:
    if not entries:
        return [], 0.0
    calls = [_call(e.session, e.feeds) for e in entries]
    times = interleave([*calls, calls[0]], seconds, sample=0.0)
    again = times[:, -1]
    spread = compare_times(times[:, 0], again, again).spread
    return [_figures(e.row, times, j) for j, e in enumerate(entries)], spread


def _figures(row: Row, times: Array, column: int) -> Row:
    own = times[:, column]
    timing = compare_times(times[:, 0], own, own)
    median, p90, p99 = (float(q) for q in np.quantile(own, (0.5, 0.9, 0.99)))
    return dataclasses.replace(
        row,
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        per_second=(row.batch or 1) * 1e3 / median,
        ratio=timing.ratio,
        ci=timing.ci,
        runs=len(own),
    )


def _call(session: Session, feeds: Arrays) -> Callable[[], object]:
    return lambda: session(feeds)
