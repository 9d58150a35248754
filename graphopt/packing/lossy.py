"""Lossy packing: weights rounded for as few bits as the budget allows, found by trying.

One number, the step that all layers' errors are measured by (and with it lambda, what a bit is
worth), is raised while the budget holds. Each trial rounds every layer, codes it and runs the model
as it would be decoded.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.blame import described
from graphopt.budget import Budget
from graphopt.context import Progress, silent
from graphopt.entropy.container import CHUNK, write_pack
from graphopt.entropy.integers import Rounded, counts_of, pack_integers, tables_of
from graphopt.errors import BudgetMissed, ModelError, PassError, UsageError
from graphopt.execution.runtime import opened, run_each
from graphopt.graph.provenance import strip
from graphopt.graph.traverse import all_graphs
from graphopt.io.writing import write_model
from graphopt.packing.files import files_of
from graphopt.packing.layers import first, layers_of
from graphopt.packing.lossless import check
from graphopt.packing.rounding import Costs, Layer, as_rounded, rounded_for
from graphopt.pipeline.optimize import optimize
from graphopt.pipeline.prepare import Setting, prepare
from graphopt.replacing import replace_files
from graphopt.samples import SampleSource
from graphopt.verification.outputs import compare_outputs

__all__ = ["RoundedPack", "Tensor", "coded_at", "pack_rounded", "write"]

Array = np.ndarray[Any, Any]

#: Steps tried are these fractions of an octave apart, from 2^-7 to 2^4 of all weights' size.
FINE, LOWEST, HIGHEST = 8, -7, 4
#: Rows of samples that layers are looked at on; rounds that costs are learned in.
ROWS, ROUNDS = 1024, 2


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
        step: of all layers, relative to the size of their weights.
        metric: of the source and of what is in the pack; None without `evaluate`.
        error: worst output's relative L2 against the source; None if outputs were not compared.
        disagreement: figure of the worst output by the guard, over its limit; None without.
        tensors: the largest first.
        trials: (step, bytes, why it is over the budget or "").
    """

    before: int
    after: int
    graph: int
    step: float
    metric: tuple[float, float] | None
    error: float | None
    disagreement: float | None
    tensors: tuple[Tensor, ...]
    trials: tuple[tuple[float, int, str], ...]

    @property
    def ratio(self) -> float:
        """How many times smaller the pack is than the files."""
        return self.before / self.after


@dataclasses.dataclass(frozen=True)
class _Coded:
    """A model with rounded weights, and these as they are coded."""

    model: ir.Model
    parts: dict[str, list[tuple[int, bytes]]]
    tables: bytes
    rounded: list[Rounded]

    @property
    def bytes(self) -> int:
        return sum(len(c) for parts in self.parts.values() for _, c in parts)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """What a coded model misses of the budget ("" if nothing), and its figures."""

    coded: _Coded
    reason: str
    metric: float | None
    error: float | None
    disagreement: float | None


def pack_rounded(
    model: ir.Model,
    target: Path,
    *,
    samples: SampleSource,
    budget: Budget,
    before: int,
    seed: int = 0,
    progress: Progress = silent,
) -> RoundedPack:
    """Write the smallest pack within the budget.

    Args:
        model: the source; it is cleaned first, exactly.
        target: the .gopt file.
        samples: what rounding is judged on, and what errors do is learned from.
        budget: `max_drop` with `evaluate`, `max_disagreement` or `max_error`; the default allows
            1 % of the decisions on the samples to change.
        before: bytes of the source's files.
        seed: of what is drawn.
        progress: called with (text, done, total).

    Raises:
        BudgetMissed: even small steps lose too much.
        UsageError, ModelError, SamplesError, MissingExtra: as `graphopt.optimize`.
    """
    progress("cleaning the graph", 0, 0)
    clean = optimize(model, "clean, fold", measure=False, seed=seed, verify="graph").model.clone()
    _strip(clean)
    setting = prepare(
        clean, samples=samples, budget=budget, measure=False, seed=seed, progress=progress
    )
    if setting.judge is None and budget.evaluate is None:
        raise UsageError(setting.unable or "the model cannot be run: nothing judges what is lost")
    layers = layers_of(clean, first(setting.samples, ROWS), seed, progress)
    if not layers:
        raise ModelError("no float32 weight has an influence on the outputs: use --lossless")
    source = _metric(setting, clean)
    size = _size(layers)
    tried: dict[int, tuple[int, str]] = {}
    within: dict[int, _Trial] = {}
    strict = budget.max_error is not None or setting.guard is not None

    def fits(k: int) -> bool:
        progress("rounding and judging", len(tried), 0)
        coded = coded_at(clean, layers, size * 2.0 ** (k / FINE))
        made = _judged(setting, coded, source, look=strict)
        tried[k] = coded.bytes, made.reason
        if not made.reason and k >= max(within, default=k):
            within.clear()  # one model is kept, not one a trial
            within[k] = made
        return not made.reason

    best = _largest(fits)
    if best is None:
        raise BudgetMissed(f"no rounding is within the budget ({tried[min(tried)][1]})")
    chosen = within[best]
    if not strict and setting.judge is not None:
        outputs = run_each(chosen.coded.model, setting.judge.probe, optimize=True)
        worst = compare_outputs(setting.judge.source, outputs).worst
        chosen = dataclasses.replace(chosen, error=worst)
    write(chosen.coded, target, progress)
    return RoundedPack(
        before=before,
        after=target.stat().st_size,
        graph=target.stat().st_size - chosen.coded.bytes,
        step=2.0 ** (best / FINE),
        metric=None if source is None or chosen.metric is None else (source, chosen.metric),
        error=chosen.error,
        disagreement=chosen.disagreement,
        tensors=_told(layers, chosen.coded),
        trials=tuple((2.0 ** (k / FINE), *told) for k, told in sorted(tried.items())),
    )


def _largest(fits: Callable[[int], bool]) -> int | None:
    """The largest step within the budget: by octaves from 0, then halving what is between."""
    low, high = LOWEST * FINE, HIGHEST * FINE
    at, known = 0, {}
    known[at] = fits(at)
    while low <= (further := at + (FINE if known[at] else -FINE)) <= high:
        known[further] = fits(further)
        if known[further] != known[at]:
            break
        at = further
    good = [k for k, ok in known.items() if ok]
    if not good:
        return None
    best, bad = max(good), min((k for k, ok in known.items() if not ok), default=max(good) + 1)
    while bad - best > 1:
        middle = (best + bad) // 2
        if fits(middle):
            best = middle
        else:
            bad = middle
    return best


def _size(layers: Sequence[Layer]) -> float:
    """The root mean square of weights in units of their layers' steps."""
    wide = [one.scaled for one in layers if one.scaled.shape[1] > 1] or [
        one.scaled for one in layers
    ]
    squares = sum(float(np.square(w, dtype=np.float64).sum()) for w in wide)
    return float(np.sqrt(squares / sum(w.size for w in wide))) or 1.0


def coded_at(model: ir.Model, layers: Sequence[Layer], step: float) -> _Coded:
    """The model with its layers rounded at one step, and coded."""
    found = [np.rint(one.scaled / np.float32(step)).astype(np.int32) for one in layers]
    for _ in range(ROUNDS):
        costs = Costs()
        for one, q in zip(layers, found, strict=True):
            costs.add(q, one.taps)
        table = costs.table()
        found = [rounded_for(one, step, q, table) for one, q in zip(layers, found, strict=True)]
    rounded = [as_rounded(one, q, step) for one, q in zip(layers, found, strict=True)]
    parts = [_parts(one) for one in rounded]
    counts = [counts_of(p) for ps in parts for p in ps]
    flags, values = (sum(c[k] for c in counts[1:]) + counts[0][k] for k in (0, 1))
    tables = tables_of((flags, values))
    coded = {
        one.name: [(4 * p.q.size, pack_integers(p, tables)) for p in ps]
        for one, ps in zip(layers, parts, strict=True)
    }
    model = model.clone()
    for one, tensor in zip(layers, rounded, strict=True):
        values = tensor.values().reshape(one.shape)
        model.graph.initializers[one.name].const_value = ir.Tensor(values, name=one.name)
    return _Coded(model, coded, tables, rounded)


def _judged(setting: Setting, coded: _Coded, source: float | None, *, look: bool) -> _Trial:
    """What of the budget a model misses, if anything; outputs are looked at only if asked for."""
    budget, judge = setting.budget, setting.judge
    reason, error, over, metric = "", None, None, None
    if judge is not None and look:
        outputs = list(run_each(coded.model, judge.probe, optimize=True))
        compared = compare_outputs(judge.source, outputs)
        error = compared.worst
        reason = compared.broken or budget.over_error(error)
        if setting.guard is not None and not reason:
            name, worst = max(setting.guard.judge(outputs).items(), key=lambda item: item[1].over)
            over = worst.over
            reason = f"{name} says something else: {worst}" if over > 1 else ""
    if not reason:
        metric = _metric(setting, coded.model)
        reason = budget.over_drop(source, metric)
    return _Trial(coded, reason, metric, error, over)


def _metric(setting: Setting, model: ir.Model) -> float | None:
    evaluate = setting.budget.evaluation
    if evaluate is None:
        return None
    with opened(model) as predict:
        try:
            return float(evaluate(predict))
        except Exception as error:
            raise PassError(f"the evaluation function raised {described(error)}") from error


def _parts(tensor: Rounded) -> list[Rounded]:
    """A tensor in pieces of at most a chunk, along the axis that is stored first."""
    q, (rows, columns) = tensor.q, tensor.q.shape
    most = max(1, CHUNK // 4 // (rows if tensor.turned else columns))
    if tensor.turned:
        most = max(tensor.taps, most // tensor.taps * tensor.taps)
        return [
            dataclasses.replace(
                tensor, q=tensor.q[:, k : k + most], column=tensor.column[k : k + most]
            )
            for k in range(0, columns, most)
        ]
    return [
        dataclasses.replace(tensor, q=q[k : k + most], row=tensor.row[k : k + most])
        for k in range(0, rows, most)
    ]


def write(coded: _Coded, target: Path, progress: Progress = silent) -> None:
    """Write the pack once it was decoded: every byte of the model must come out."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        whole = Path(folder, "model.onnx")
        write_model(coded.model, whole)
        files = files_of(whole, coded.parts)
        content = write_pack(files, coded.tables, progress)
        replace_files([(target, content)], check)


def _strip(model: ir.Model) -> None:
    """Leave out what no runtime reads: provenance, comments, types that follow from the inputs."""
    strip(model)
    model.doc_string = None
    for graph in all_graphs(model.graph):
        kept = {*graph.inputs, *graph.outputs}
        graph.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                if value not in kept:
                    value.type = value.shape = None


def _told(layers: Sequence[Layer], coded: _Coded) -> tuple[Tensor, ...]:
    found = []
    for one, rounded in zip(layers, coded.rounded, strict=True):
        n = rounded.q.size
        shares = np.unique(rounded.q, return_counts=True)[1] / n
        after = sum(len(c) for _, c in coded.parts[one.name])
        found.append(
            Tensor(
                one.name,
                one.shape,
                4 * n,
                after,
                8 * after / n,
                float(-(shares * np.log2(shares)).sum()),
                float((rounded.q == 0).mean()),
            )
        )
    return tuple(sorted(found, key=lambda t: -t.after))
