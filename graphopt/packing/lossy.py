"""Lossy packing: weights rounded for as few bits as the budget allows, found by trying.

One number, the step that all layers' errors are measured by (and with it lambda, what a bit is
worth), is raised while the budget holds. Each trial rounds every layer, codes it and runs the model
as it would be decoded. Passes may make the model smaller before, and training may win back in each
trial what rounding lost (`graphopt.packing.recovery`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.held_batch import held_batch
from graphopt.budget import Budget
from graphopt.context import Progress, silent
from graphopt.entropy.integers import MOST
from graphopt.errors import BudgetMissed, ModelError, UsageError
from graphopt.execution.runtime import run_each
from graphopt.packing.coding import Coded, coded, integers_at, size_of, write
from graphopt.packing.judging import Trial, judged, metric_of
from graphopt.packing.layers import first, layers_of
from graphopt.packing.recovery import Recovery
from graphopt.packing.rounding import Layer
from graphopt.packing.shrinking import bare, shrunk
from graphopt.packing.steps import FINE, LOWEST, largest, nearest
from graphopt.pipeline.optimize import optimize
from graphopt.pipeline.prepare import prepare
from graphopt.samples import SampleSource, open_samples
from graphopt.verification.comparison import compare_outputs

__all__ = ["RoundedPack", "Tensor", "pack_rounded"]

Array = np.ndarray[Any, Any]

#: Rows of samples that layers are looked at on.
ROWS = 1024
#: How much of the budget rounding may take before it is trained, where trials start.
BEFORE = 2.0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A rounded tensor: bytes as floats and in the pack, bits a weight, share of zeros.

    `entropy` is of its integers each by itself, in bits a weight: what a coder without contexts
    needs at least.
    """

    name: str
    shape: tuple[int, ...]
    before: int
    after: int
    bits: float
    entropy: float
    zeros: float


@dataclasses.dataclass(frozen=True)
class RoundedPack:
    """What a lossy pack holds and loses.

    Attributes:
        before, after: bytes of the source's files and of the pack.
        graph: bytes of the pack that are no rounded tensor.
        passes: what was run before rounding, "" for none.
        step: of all layers, relative to the size of their weights.
        metric: of the source and of what is in the pack; None without `evaluate`.
        error: worst output's relative L2 against the source; None if outputs were not compared.
        disagreement: what is used of the guard's limits (`Judging`), 1 at most; None without.
        tensors: the largest first.
        trials: (step, bytes of coded weights, metric, why it is over the budget or "").
    """

    before: int
    after: int
    graph: int
    passes: str
    step: float
    metric: tuple[float, float] | None
    error: float | None
    disagreement: float | None
    tensors: tuple[Tensor, ...]
    trials: tuple[tuple[float, int, float | None, str], ...]

    @property
    def ratio(self) -> float:
        """How many times smaller the pack is than the files."""
        return self.before / self.after


def pack_rounded(
    model: ir.Model,
    target: Path,
    *,
    samples: SampleSource,
    budget: Budget,
    before: int,
    passes: str = "",
    recover: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> RoundedPack:
    """Write the smallest pack within the budget.

    Args:
        model: the source; it is cleaned first, exactly.
        target: the .gopt file.
        samples: what errors do is learned from, and what rounding is judged on; without `evaluate`
            every other run is for the one, the rest for the other.
        budget: `max_drop` with `evaluate`, `max_disagreement` or `max_error`; the default allows
            1 % of the decisions on the samples to change.
        before: bytes of the source's files.
        passes: run before rounding; only the pack as a whole is judged.
        recover: train what the pack holds on the source's outputs, in every trial. Without `passes`
            as many channels are pruned first as the budget allows.
        seed: of what is drawn.
        progress: called with (text, done, total).

    Raises:
        BudgetMissed: even small steps lose too much.
        UsageError, ModelError, SamplesError, MissingExtra: as `graphopt.optimize`.
    """
    progress("cleaning the graph", 0, 0)
    clean = optimize(model, "clean, fold", measure=False, seed=seed, verify="graph").model.clone()
    bare(clean)
    given = open_samples(samples, clean, batch=held_batch(clean))
    learned = given
    if budget.evaluate is None and len(list(islice(given, 4))) == 4:
        # what weights were rounded for says little of how they are rounded
        learned, given = given.without(1, 2), given.without(0, 2)
    setting = prepare(
        clean, samples=given, budget=budget, measure=False, seed=seed, progress=progress
    )
    setting = dataclasses.replace(setting, samples=learned)
    if setting.judge is None and budget.evaluate is None:
        raise UsageError(setting.unable or "the model cannot be run: nothing judges what is lost")
    source = metric_of(setting, clean)
    strict = budget.max_error is not None or setting.guard is not None

    def trial(one: Coded, share: float = 1.0) -> Trial:
        return judged(setting, one, source, look=strict, share=share)

    clean, passes = shrunk(setting, clean, passes, trial if recover else None, progress)
    layers = layers_of(clean, first(setting.samples, ROWS), seed, progress)
    if not layers:
        raise ModelError("no float32 weight has an influence on the outputs: use --lossless")
    recovery = None
    if recover:
        original = setting.source.model
        recovery = Recovery(original, clean, layers, setting.samples, seed, progress)
        if recovery.unable:
            raise UsageError(f"--recover trains on samples: {recovery.unable}")
    size = size_of(layers)
    most = MOST * size * 2.0**LOWEST  # weights of which few decide all need their floats
    layers = [one for one in layers if np.abs(one.scaled).max() <= most]
    tried: dict[int, tuple[int, float | None, str]] = {}
    within: dict[int, Trial] = {}

    def fits_untrained(k: int) -> bool:
        progress("rounding, to be trained from there", 0, 0)
        step = size * 2.0 ** (k / FINE)
        return not trial(coded(clean, layers, integers_at(layers, step), step), BEFORE).reason

    def fits(k: int) -> bool:
        progress("rounding and judging", len(tried), 0)
        step = size * 2.0 ** (k / FINE)
        found = integers_at(layers, step)
        if recovery is not None:
            found = recovery.trained(found, step)
        made = trial(coded(clean, layers, found, step))
        tried[k] = made.coded.bytes, made.metric, made.reason
        if not made.reason and k >= max(within, default=k):
            within.clear()  # one model is kept, not one a trial
            within[k] = made
        return not made.reason

    best = largest(fits) if recovery is None else nearest(largest(fits_untrained), fits)
    if best is None:
        raise BudgetMissed(f"no rounding is within the budget ({tried[min(tried)][2]})")
    chosen = within[best]
    if not strict and setting.judge is not None:
        outputs = run_each(chosen.coded.model, setting.judge.probe, optimize=True)
        worst = compare_outputs(setting.judge.source, outputs).worst
        chosen = dataclasses.replace(chosen, error=worst)
    write(chosen.coded, target, progress)
    told = _told(layers, chosen.coded)
    return RoundedPack(
        before=before,
        after=target.stat().st_size,
        graph=target.stat().st_size - sum(one.after for one in told),
        passes=passes,
        step=2.0 ** (best / FINE),
        metric=None if source is None or chosen.metric is None else (source, chosen.metric),
        error=chosen.error,
        disagreement=chosen.disagreement,
        tensors=told,
        trials=tuple((2.0 ** (k / FINE), *told) for k, told in sorted(tried.items())),
    )


def _told(layers: Sequence[Layer], coded: Coded) -> tuple[Tensor, ...]:
    found = []
    for one, rounded in zip(layers, coded.rounded, strict=True):
        n = rounded.q.size
        shares = np.unique(rounded.q, return_counts=True)[1] / n
        after = coded.sizes[one.name]
        found.append(
            Tensor(
                one.name,
                one.shape,
                4 * n,
                round(after),
                8 * after / n,
                float(-(shares * np.log2(shares)).sum()),
                float((rounded.q == 0).mean()),
            )
        )
    return tuple(sorted(found, key=lambda t: -t.after))
