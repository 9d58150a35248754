"""Benchmark: latency, throughput and memory of models by target, threads and batch, interleaved.

Each row is a process of its own (`graphopt.measuring.worker`), as deployed: load time and memory
are its, and the rows take turns. Latency is of single runs, so that percentiles are those a request
sees.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes
from graphopt.backend import backend_of
from graphopt.deploy.manifest import Manifest, read_manifest
from graphopt.errors import MissingExtra, ModelError
from graphopt.formats import load
from graphopt.measuring.statistics import Array, compare_times
from graphopt.measuring.worker import Served, alternate, keep_feeds, served
from graphopt.samples import stand_ins
from graphopt.target import Target

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
    served: Served


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
        threads: numbers of threads; none means what a model's manifest says for the target, or
            each target's own. A manifest's other options hold in any case.
        batches: sizes of a free batch axis; none means 1 (or what `shapes` says).
        shapes: concrete shapes of inputs with dynamic axes.
        seconds: bound on the timed part of each batch size.
        progress: told what is being done.
    """
    rows: list[Row] = []
    noise: dict[int | None, float] = {}
    loaded = [(path, load(path)) for path in models]
    for k, batch in enumerate(batches or [None]):
        combinations = itertools.product(loaded, targets, threads or [0])
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder, ExitStack() as stack:
            entries: list[_Entry] = []
            refused: list[Row] = []
            for j, ((path, model), target, count) in enumerate(combinations):
                progress(f"opening {path.name} on {target.name}", k, len(batches) or 1)
                target, manifest = _deployed(path, target, count)
                where = Path(folder, str(j))
                made = _open(path, model, target, manifest, batch, shapes or {}, where, stack)
                entries.append(made) if isinstance(made, _Entry) else refused.append(made)
            text = f"timing in interleaved rounds, about {seconds:.3g} s"
            progress(text, k, len(batches) or 1)
            timed, spread = _time(entries, seconds)
            rows += [*timed, *refused]
            noise[batch] = spread
    return Benchmark(tuple(rows), noise)


def _deployed(path: Path, target: Target, count: int) -> tuple[Target, Manifest | None]:
    """The target with `count` threads, and how the model was tuned for it, if it was.

    0 threads are those of the manifest, or the target's own.
    """
    tuned = read_manifest(path)
    if tuned is None or tuned.target != target.name:
        return dataclasses.replace(target, threads=count or target.threads), None
    count = count or tuned.threads
    manifest = dataclasses.replace(tuned, threads=count, prepared={})
    return dataclasses.replace(target, threads=count or target.threads), manifest


def _open(
    path: Path,
    model: ir.Model,
    target: Target,
    manifest: Manifest | None,
    batch: int | None,
    given: Mapping[str, tuple[int, ...]],
    folder: Path,
    stack: ExitStack,
) -> _Entry | Row:
    shapes, _ = bind_shapes(model, given)
    row = Row(str(path), target.name, target.threads, batch)
    backend = backend_of(target)
    if backend is None or not target.measured:
        return dataclasses.replace(row, refused="it cannot be measured on this machine")
    if batch is not None and (reason := _set_batch(model, shapes, batch)):
        return dataclasses.replace(row, refused=reason)
    feeds = next(iter(stand_ins(model, seed=0, shapes=shapes)))
    folder.mkdir()
    file = keep_feeds(feeds, folder)
    try:
        lowered = backend.lower(model, target, folder / "model.onnx")
        made = stack.enter_context(served(lowered, target, file, manifest))
    except (MissingExtra, ModelError) as error:
        return dataclasses.replace(row, refused=str(error))
    weight = made.weight
    row = dataclasses.replace(row, load_ms=weight.load_ms, memory_bytes=weight.memory_bytes)
    return _Entry(row, made)


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
    rounds, singles = alternate([e.served for e in entries], seconds)
    again = rounds[:, -1]
    spread = compare_times(rounds[:, 0], again, again).spread
    return [_figures(e.row, rounds, singles, j) for j, e in enumerate(entries)], spread


def _figures(row: Row, rounds: Array, singles: Sequence[Sequence[float]], column: int) -> Row:
    timing = compare_times(rounds[:, 0], rounds[:, column], rounds[:, column])
    median, p90, p99 = (float(q) for q in np.quantile(singles[column], (0.5, 0.9, 0.99)))
    return dataclasses.replace(
        row,
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        per_second=(row.batch or 1) * 1e3 / median,
        ratio=timing.ratio,
        ci=timing.ci,
        runs=len(singles[column]),
    )
