"""Preparing runs: the source is checked, run on probe inputs and counted once for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.demand import too_much
from graphopt.analyses.held_batch import held_batch
from graphopt.backend import named_target
from graphopt.budget import Budget
from graphopt.cache import Cache, open_cache
from graphopt.context import Progress
from graphopt.errors import ModelError, UsageError
from graphopt.formats import load
from graphopt.graph.blocked import blocked
from graphopt.graph.collector import resting_collector
from graphopt.graph.defaults import without_habit
from graphopt.graph.traverse import all_nodes
from graphopt.io.digest import digest
from graphopt.io.reading import from_proto
from graphopt.io.weights import warnings_of
from graphopt.pipeline.probing import beyond, probe_of
from graphopt.pipeline.state import State
from graphopt.reporting.tracking import Scalar
from graphopt.rewriting.opset import limit_opset
from graphopt.samples import Feeds, Samples, SampleSource, open_samples, stand_ins
from graphopt.samples.rows import HELD, row_by_row
from graphopt.samples.stand_ins import humbler, in_the_way
from graphopt.target import Target
from graphopt.verification.graph import check_graph
from graphopt.verification.guard import Guard
from graphopt.verification.outputs import Judge
from graphopt.verification.perplexity import bound

__all__ = ["Setting", "prepare"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A source model and everything a pipeline over it is given and judged by.

    Attributes:
        source: the model as it came, every node with a name; it is not changed.
        target: where the result will run; `measured` is False if nothing is to be timed.
        samples: the user's, or those that were drawn; `given` says which.
        feeds: one run's inputs, for timing.
        budget, seed, shapes, measure_seconds, debug: as in `graphopt.optimize`.
        judge: the source's outputs on the probe inputs; None if outputs are not compared.
        unable: why no runtime here runs the source; "" if one does.
        misfits: inputs that stand in the way of a run, since nothing invented for them fits.
        guard: judges lossy steps on real samples where no budget does; None without them.
        full_check: the source's declared types and shapes hold, so those of a result must.
        digest: SHA-256 of the source.
        cache: what was timed before on this machine, or None.
        max_opset: no pass raises the model's opset beyond this; None: as far as it likes.
        scalar: where figures of a training go, or None.
        verify: what is compared after every pass: outputs and edits, or the graph alone.
        trust: the weakest evidence that an exact edit may stand on.
        notes: plain sentences for the report.
    """

    source: State
    target: Target
    samples: Samples
    given: bool
    feeds: Feeds
    budget: Budget
    seed: int
    shapes: Mapping[str, tuple[int, ...]]
    measure_seconds: float
    judge: Judge | None
    unable: str
    guard: Guard | None
    full_check: bool
    debug: bool
    digest: str
    cache: Cache | None
    max_opset: int | None = None
    scalar: Scalar | None = None
    trust: Literal["checked", "assumed"] = "checked"
    verify: Literal["outputs", "graph"] = "outputs"
    notes: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()

    def for_target(self, target: Target) -> Setting:
        """The same for another target; nothing of the source is computed again."""
        return dataclasses.replace(self, target=target)


@resting_collector()
def prepare(
    model: ir.Model | onnx.ModelProto | str | Path,
    *,
    target: str | Target = "cpu",
    samples: SampleSource | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    verify: Literal["outputs", "graph"] = "outputs",
    measure: bool = True,
    measure_seconds: float = 5.0,
    cache: str | Path | None = None,
    debug: bool = False,
    progress: Progress | None = None,
    source_path: str | Path | None = None,
    max_opset: int | None = None,
    trust: Literal["checked", "assumed"] = "checked",
    scalar: Scalar | None = None,
) -> Setting:
    """Check, run and count `model` once; `run` then takes passes over it as often as asked.

    Arguments and errors are those of `graphopt.optimize`; `target` is one target, not "auto", and
    `scalar` takes what `track` names.
    """
    path = Path(source_path) if source_path else None
    if isinstance(model, (str, Path)):
        path, model = Path(model), load(model)
    elif isinstance(model, onnx.ModelProto):
        model = from_proto(model)
    if not model.graph.outputs:
        raise ModelError(f"{path or 'the model'} has no outputs: there is nothing to optimize")
    warnings = warnings_of(model)
    model, listed = without_habit(model)
    target = named_target(target) if isinstance(target, str) else target
    budget = budget or Budget()
    if budget.timed and not (measure and target.measured):
        raise UsageError(
            f"{budget.timed} is judged by timing: leave --no-measure and --replay out, and name a "
            "target of this machine"
        )
    batch = held_batch(model)
    given = open_samples(samples, model, batch=batch) if samples is not None else None
    first = next(iter(given), None) if given is not None else None
    fixed = {k: tuple(v) for k, v in (shapes or {}).items()}
    sizes, chosen = bind_shapes(model, fixed, first, batch)
    notes = [*warnings, *([listed] if listed else []), *blocked(model), *chosen]
    if measure and not target.measured:
        notes.append(
            f"not measured: '{target.name}' is not this machine, and what is fast there is "
            "taken from its data"
        )
    drawn = stand_ins(model, seed=seed, shapes=sizes)
    model = named(model)
    if batch is not None and batch > 1:
        model = model.clone()
        model.graph.meta[HELD] = batch
    budget = bound(budget, model, given)
    if max_opset is not None:
        model = model.clone()
        limit_opset(model, max_opset)
    source = State(model, sizes, path)
    judge: Judge | None = None
    unable = too_large = too_much(source.context)
    misfits: list[str] = []
    if too_large:
        notes.append(f"outputs were not compared: {too_large}")
    elif verify == "outputs":
        if progress is not None:
            progress("running the source model", 0, 0)
        probe = probe_of(source, given or drawn, notes)
        further, reached = beyond(source, probe, sizes, seed)
        judge = Judge(source.skeleton, probe, further)
        other = None
        if judge.unable:
            other = humbler(model, drawn) if given is None else row_by_row(model, given)
        if other is not None:
            probe = probe_of(source, other, notes)
            further, reached = beyond(source, probe, sizes, seed)
            judge = Judge(source.skeleton, probe, further)
            if given is None:
                drawn = other
            elif not judge.unable:
                given = other
                notes.append("It declares any batch and takes one row a run: so samples are run.")
        if judge.unable:
            misfits = in_the_way(model, judge.unable) if given is None else []
            if misfits:
                which = ", ".join(f"'{n}'" for n in misfits)
                notes.append(f"UNVERIFIED: nothing invented for {which} fits; give --samples")
            notes.append(f"outputs were not compared: {judge.unable}")
            unable, judge = judge.unable, None
        else:
            notes += reached
        if judge is not None and judge.silent:
            notes.append(
                f"{', '.join(judge.silent)}: empty or NaN on every run, so that agreeing about it "
                "means nothing; give --samples that the model answers"
            )
    return Setting(
        source=source,
        target=target if measure and not too_large else dataclasses.replace(target, measured=False),
        samples=_not_run(too_large) if too_large else given or drawn,
        given=given is not None and not too_large,
        feeds=next(iter(drawn)),
        budget=budget,
        seed=seed,
        shapes=sizes,
        measure_seconds=measure_seconds,
        judge=judge,
        unable=unable,
        guard=_guard(source, judge, budget) if given is not None else None,
        full_check=_holds(source, f"{path or 'the model'}"),
        debug=debug,
        digest=digest(source.model),
        cache=open_cache(cache),
        max_opset=max_opset,
        scalar=scalar,
        trust=trust,
        verify=verify,
        notes=tuple(notes),
        misfits=tuple(misfits),
    )


def _not_run(why: str) -> Samples:
    """Samples for a model that is not to be run: whoever asks for them is told why."""

    class Refused:
        def __iter__(self) -> Iterator[Feeds]:
            raise ModelError(f"the model is not run: {why}")

    return Samples(Refused())


def named(model: ir.Model) -> ir.Model:
    """A model every node of which has a name: reports and recipes need names.

    A node without one is called after its first output, in a copy.
    """
    if all(node.name for node in all_nodes(model.graph)):
        return model
    model = model.clone()
    taken = {n.name for n in all_nodes(model.graph)}
    for node in all_nodes(model.graph):
        if not node.name and node.outputs:
            name = node.outputs[0].name or node.op_type
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name
    return model


def _guard(source: State, judge: Judge | None, budget: Budget) -> Guard | None:
    if judge is None or budget.guard is None:
        return None
    return Guard(source.model, judge.source, judge.probe, budget.guard)


def _holds(source: State, name: str) -> bool:
    """Whether the types and shapes that a model declares are those that follow from its inputs.

    Raises:
        ModelError: not even names, order and operators are right.
    """
    try:
        check_graph(source.skeleton)
    except ModelError:
        try:
            check_graph(source.skeleton, full=False)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
        return False
    return True
