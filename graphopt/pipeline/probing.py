"""Probe inputs: samples, other values and sizes, and inputs sought for branches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from graphopt.analyses.demand import allowed_bytes
from graphopt.errors import SamplesError
from graphopt.execution.runtime import in_parts
from graphopt.pipeline.state import State
from graphopt.samples import Feeds, Samples, synthetic
from graphopt.samples.inputs import inputs_of
from graphopt.samples.rows import first_rows
from graphopt.verification.branches import Sought, seek

__all__ = ["beyond", "probe_of"]

#: Outputs are compared on all samples, up to this many runs and about this many MACs in all.
PROBE_RUNS, PROBE_MACS = 128, 100e9
#: Other batch sizes that exact passes are compared at, for runs of at most so many MACs.
BATCHES, BEYOND_MACS = (2, 3, 5), 5e9


def probe_of(source: State, samples: Samples, notes: list[str]) -> list[Feeds]:
    """The runs that outputs are compared on."""
    runs: list[Feeds] = []
    spent = 0.0
    shapes = source.context.shapes.values()
    counted = max((s[0] for s in shapes if s), default=1)  # in the cost already
    row = source.cost.macs / max(counted, 1)
    large = in_parts(source.skeleton)
    cut = False
    for feeds in samples:
        if large and row * _batch(feeds) > PROBE_MACS:
            whole, feeds = feeds, first_rows(source.model, feeds, max(1, int(PROBE_MACS / row)))
            cut = cut or _batch(feeds) < _batch(whole)
        spent += row * _batch(feeds)
        if len(runs) >= PROBE_RUNS or (len(runs) >= 2 and spent > PROBE_MACS):
            notes.append(f"outputs were compared on the first {len(runs)} runs of samples")
            break
        runs.append(feeds)
    if cut:
        notes.append(f"outputs were compared on the first rows of each run ({_batch(runs[0])})")
    return runs


def beyond(
    source: State, probe: Sequence[Feeds], shapes: Mapping[str, tuple[int, ...]], seed: int
) -> tuple[list[Feeds], list[str]]:
    """Further runs that exact passes are compared on, and sentences on what they do not reach."""
    fits = _affordable(source)
    runs = _varied(source, probe, shapes, seed, fits)
    sought = seek(source.model, [*probe, *runs], shapes, fits, seed)
    return [*runs, *sought.found], _coverage(sought)


def _varied(
    source: State,
    probe: Sequence[Feeds],
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    fits: Callable[[Feeds], bool],
) -> list[Feeds]:
    """Runs at other values and sizes than the probe's, as long as they cost little.

    Zeros, ten times the usual size and the least and greatest of all samples show what a damped
    value hides; other sizes show one that was taken for a constant.
    """
    runs: list[Feeds] = []
    if probe:
        with np.errstate(over="ignore"):
            runs += [
                {n: a * a.dtype.type(k) if a.dtype.kind == "f" else a for n, a in probe[0].items()}
                for k in (0, 10)
            ]
        runs.append(_extremes(probe, seed))
    for k, sized in enumerate(_sizes(source, shapes)):
        with contextlib.suppress(SamplesError):  # too large to draw
            runs += synthetic(source.model, seed=seed + k + 2, shapes=sized, runs=1)
    return [r for r in runs if fits(r)]


def _extremes(probe: Sequence[Feeds], seed: int) -> Feeds:
    """Each number is the least or the greatest that its input takes in all runs."""
    rng = np.random.default_rng(seed)
    made = dict(probe[0])
    for name, first in probe[0].items():
        if first.dtype.kind == "f" and first.size:
            ends = [f(run[name]) for run in probe if run[name].size for f in (np.min, np.max)]
            low, high = min(ends), max(ends)
            made[name] = np.where(rng.random(first.shape) < 0.5, low, high).astype(first.dtype)
    return made


def _sizes(
    source: State, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Other batches, then other sizes of every other axis that is open."""
    inputs = [i for i in inputs_of(source.model) if i.dims]
    free = {i.name for i in inputs if i.batch is None}
    for batch in BATCHES if free else ():
        yield {n: (batch, *s[1:]) if n in free else s for n, s in shapes.items()}
    opened = {
        (i.name, k)
        for i in inputs
        for k, d in enumerate(i.dims or ())
        if not isinstance(d, int) and (k or i.name not in free)
    }
    for more in (True, False) if opened else ():
        yield {
            n: tuple(
                (d + 1 if more else max(1, d // 2)) if (n, k) in opened else d
                for k, d in enumerate(s)
            )
            for n, s in shapes.items()
        }


def _affordable(source: State) -> Callable[[Feeds], bool]:
    """Whether a further run costs little, and fits into memory."""
    cost, memory = source.cost, allowed_bytes(source.context)

    def fits(feeds: Feeds) -> bool:
        batch = _batch(feeds)
        return cost.macs * batch <= BEYOND_MACS and cost.peak_activation_bytes * batch <= memory

    return fits


def _coverage(sought: Sought) -> list[str]:
    """What was made up for the sake of a branch, and branches that no run takes."""
    notes = []
    if sought.found:
        notes.append(f"{len(sought.found)} inputs were made up to take branches that no other does")
    if sought.untaken:
        notes.append(
            f"taken by no run: {', '.join(sought.untaken[:8])}; edits there stand on the evidence "
            "of their own regions"
        )
    return notes


def _batch(feeds: Feeds) -> int:
    return max((len(a) for a in feeds.values() if a.ndim), default=1)
