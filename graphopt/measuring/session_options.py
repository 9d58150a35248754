"""Session options of ONNX Runtime tuned for one model, kept where measurement shows they help.

    graphopt.tune("model.opt.onnx")

Each option is tried against the best so far, both in processes of their own, in alternating bursts.
It stays if the whole 95 % interval of the ratio lies beyond noise and 2 %, and goes into the
manifest that `graphopt.session` opens the model by. Where nothing helps, nothing is written.
Of trees the manifest then also says how many rows a run should take.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes
from graphopt.backend import Arrays, Timing, find_target
from graphopt.deploy.manifest import Manifest, read_manifest, write_manifest
from graphopt.deploy.processors import processors
from graphopt.deploy.runtime import CPU
from graphopt.errors import InputError, ModelError
from graphopt.formats import load
from graphopt.graph.ensembles import DOMAIN, ENSEMBLES
from graphopt.measuring.batch_size import MOST, best_batch, reads_rows
from graphopt.measuring.statistics import compare_times, verdict
from graphopt.measuring.worker import Served, alternate, keep_feeds, served
from graphopt.replacing import alone_in
from graphopt.samples import stand_ins
from graphopt.target import Target

__all__ = ["ROWS", "Tuned", "options", "tune"]

Change = Callable[[Manifest], Manifest]
Progress = Callable[[str, int, int], None]
Shapes = Mapping[str, tuple[int, ...]]
#: Rows that trees are tried on at least.
MANY = 256
#: What the option is called that says how many rows a run should take.
ROWS = "rows="


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One option that was tried: what it is, how it compared, and whether it stayed."""

    option: str
    timing: Timing
    kept: bool

    def __str__(self) -> str:
        low, high = self.timing.ci
        return f"{self.option}: {self.timing.ratio:.3f}x the latency (95 %: {low:.3f}-{high:.3f})"


def tune(
    path: str | Path,
    *,
    target: Target | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    feeds: Arrays | None = None,
    fixed: Mapping[str, int] | None = None,
    every: bool = True,
    seconds: float = 10.0,
    progress: Progress = lambda text, done, total: None,
) -> tuple[Tuned, ...]:
    """Try session options for the model at `path` here; those that help go into its manifest.

    Args:
        path: a model file, with or without a manifest beside it.
        target: what it was lowered for; None finds it by the name in the manifest.
        shapes: concrete shapes of inputs with dynamic axes.
        feeds: inputs to run on; drawn for the inputs' meaning if None, for trees at 256 rows at
            least, and then at others to find how many rows a run should take.
        fixed: sizes of named dynamic dimensions that never change in use; tried as an option.
        every: False tries numbers of threads alone, which matter most.
        seconds: bound on the timed part.
        progress: told what is being tried.

    Returns:
        Every option tried, in order. Of trees the last is the number of rows of a run that gives
        the most rows a second, if that is not one: its milliseconds are those of one row.

    Raises:
        InputError: no such file, or not a manifest; or the model was replaced meanwhile.
        ModelError: the model does not open or run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no model at {path}")
    best = read_manifest(path) or Manifest("cpu")
    target = target or find_target(best.target)
    many: Arrays | None = None
    if feeds is None:
        model = load(path)
        bound, _ = bind_shapes(model, {k: tuple(v) for k, v in (shapes or {}).items()})
        feeds = next(iter(stand_ins(model, seed=0, shapes=_of_many_rows(model, bound, MANY))))
        if every and best.provider == CPU and reads_rows(model):
            many = next(iter(stand_ins(model, seed=0, shapes=_of_many_rows(model, bound, MOST))))
    offered = list(options(best, fixed or {}, every))
    before = path.stat()
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        opened = partial(served, path, target, keep_feeds(feeds, Path(folder)))
        tried, best = _climb(opened, best, offered, seconds, progress)
        if many is not None:
            progress("trying rows of a run", len(offered), len(offered) + 1)
            file = keep_feeds(many, Path(folder))
            found = best_batch(lambda n: served(path, target, file, best, rows=n), seconds / 2)
            if found is not None:
                rows, timing = found
                tried.append(Tuned(f"{ROWS}{rows}", timing, kept=True))
                best = dataclasses.replace(best, rows=rows)
    if any(t.kept for t in tried):
        with alone_in(path.parent):
            if not os.path.samestat(before, path.stat()):
                raise InputError(f"{path} was replaced while it was tuned; tune it again")
            write_manifest(path, best)
    return tuple(tried)


def _of_many_rows(model: ir.Model, shapes: Shapes, rows: int) -> Shapes:
    """The shapes, at `rows` rows at least if trees read a free number of them.

    For few rows ONNX Runtime takes one thread through trees, whatever it has: a count chosen there
    would be chosen for nothing, and hold for many rows too.
    """
    if not any(n.domain == DOMAIN and n.op_type in ENSEMBLES for n in model.graph.all_nodes()):
        return shapes
    ranks = {v.name: v.shape for v in model.graph.inputs}
    return {
        name: (max(rows, shape[0]), *shape[1:])
        if shape and (known := ranks.get(name)) is not None and not isinstance(known[0], int)
        else shape
        for name, shape in shapes.items()
    }


def options(
    manifest: Manifest, fixed: Mapping[str, int], every: bool = True
) -> Iterator[tuple[str, Change]]:
    """What is worth a trial: a name, and how it changes a manifest; the largest effects first."""
    total = processors()
    for threads in _counts(total):
        yield f"threads={threads}", partial(dataclasses.replace, threads=threads)
    if fixed:
        yield (
            ", ".join(f"{k}={v}" for k, v in fixed.items()) + " fixed",
            lambda m: dataclasses.replace(m, free_dimensions={**m.free_dimensions, **fixed}),
        )
    if manifest.provider == CPU and every:
        # one thread has nobody to wait for
        spin = {"session.intra_op.allow_spinning": "0"}
        yield "no spinning", lambda m: m if (m.threads or total) == 1 else _config(m, spin)
        yield "denormals as zero", lambda m: _config(m, {"session.set_denormal_as_zero": "1"})
        yield "no memory pattern", lambda m: dataclasses.replace(m, pattern=False)
        yield "no memory arena", lambda m: dataclasses.replace(m, arena=False)


def _counts(total: int) -> list[int]:
    """Halves of the processors down to one, most first: 8 -> [4, 2, 1]."""
    counts = [total]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts[1:]


def _config(manifest: Manifest, entries: Mapping[str, str]) -> Manifest:
    return dataclasses.replace(manifest, config={**manifest.config, **entries})


def _climb(
    opened: Callable[[Manifest], AbstractContextManager[Served]],
    best: Manifest,
    offered: Sequence[tuple[str, Change]],
    seconds: float,
    progress: Progress,
) -> tuple[list[Tuned], Manifest]:
    """Try each change against the best so far, which stays open; what was tried, and the best."""
    tried: list[Tuned] = []
    with ExitStack() as stack:
        base = stack.enter_context(opened(best))
        for name, change in offered:
            candidate = change(best)
            if candidate == best:
                continue
            progress(f"trying {name}", len(tried), len(offered))
            with ExitStack() as trial:
                try:
                    other = trial.enter_context(opened(candidate))
                    times, _ = alternate([base, other], seconds / len(offered))
                except ModelError:
                    continue  # it does not open or run so
                timing = compare_times(times[:, 0], times[:, 1], times[:, 2])
                kept = verdict(timing) == "faster"
                tried.append(Tuned(name, timing, kept))
                if kept:
                    stack.close()
                    stack.push(trial.pop_all())
                    base, best = other, candidate
    return tried, best
