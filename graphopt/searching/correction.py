"""Correction of additive costs: whole models timed, and what lies between the parts fitted.

A few choices far from each other are built without samples or compensation (what a weight is
matters to no clock), timed beside the model itself, and the cost model's weights are fitted on
them. The weights are kept beside the cost table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.backend import Arrays, backend_of
from graphopt.cache import versions_of
from graphopt.context import Progress
from graphopt.deploy.manifest import read_manifest
from graphopt.errors import GraphOptError
from graphopt.execution.caches import as_held
from graphopt.measuring.worker import Served, alternate, keep_feeds, served
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.run import run
from graphopt.samples import Samples, stand_ins
from graphopt.searching.cost import CostModel
from graphopt.searching.space import Choice, Space
from graphopt.target import Target

__all__ = ["clock", "correct", "hasty", "settled", "spread_out"]

Clock = Callable[[ir.Model, float], tuple[float, float]]

#: How far the graded options of the models go.
DEPTHS = (0.0, 0.35, 0.7)
#: And choices of mixed forms at each depth.
MIXED = ("mixed", "mixed again")


def correct(
    cost: CostModel,
    setting: Setting,
    target: Target,
    told: Progress,
    seconds: float = 0.6,
) -> list[tuple[float, float]]:
    """Fit the weights of `cost`; predicted and measured milliseconds of each model timed."""
    if not target.measured:
        return []
    about = versions_of(target, "correction")
    text = f"{setting.digest} {about} {sorted(map(str, cost.space.groups))}"
    name = f"correction-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    path = setting.cache.folder / "costs" / name if setting.cache is not None else None
    if path is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            cost.weights = np.array(json.loads(path.read_text())["weights"], float)
            return []
    quick = hasty(setting)
    source = run(quick, cost.space.passes(cost.space.nothing)).model
    choices: list[Choice] = []
    times: list[tuple[float, float]] = []
    every = list(dict.fromkeys(spread_out(cost.space)))
    with clock(source, setting.feeds, target) as quickest:
        for k, choice in enumerate(every):
            told("timing whole models", k, len(every))
            with contextlib.suppress(GraphOptError):
                made = run(quick, cost.space.passes(choice)).model
                times.append(quickest(made, seconds))
                choices.append(choice)
    if len(choices) < 3:
        return []
    latencies = settled(times)
    cost.correct(choices, latencies)
    if path is not None and setting.cache is not None:
        content = json.dumps({"weights": cost.weights.tolist()}) + "\n"
        setting.cache.write(path, content.encode())
    return [(cost.predict(c).latency, ms) for c, ms in zip(choices, latencies, strict=True)]


def hasty(setting: Setting) -> Setting:
    """`setting` for models that are only timed: drawn inputs stand for samples, nothing judges."""
    drawn = stand_ins(setting.source.model, seed=setting.seed, shapes=setting.shapes)
    samples = Samples(drawn, drawn.source, synthetic=True, placeholders=True)
    return dataclasses.replace(setting, samples=samples, given=True, judge=None, guard=None)


@contextlib.contextmanager
def clock(source: ir.Model, feeds: Arrays, target: Target) -> Iterator[Clock]:
    """What times a model in turns with `source`, each in a process of its own, as in any report.

    Called with a model and about how many seconds it may take, it returns milliseconds of the
    source's quicker runs and of the model's. Sums of kernels know nothing of who else is on the
    machine, so neither may what corrects them: a tenth of the runs are quicker than what is told.
    """
    backend = backend_of(target)
    assert backend is not None
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-")))

        def opened(model: ir.Model, within: Path, until: contextlib.ExitStack) -> Served:
            path = backend.lower(model, target, within / "model.onnx")
            file = keep_feeds(as_held(model, feeds), within)
            return until.enter_context(served(path, target, file, read_manifest(path)))

        first = opened(source, folder, stack)

        def quickest(model: ir.Model, seconds: float) -> tuple[float, float]:
            with (
                tempfile.TemporaryDirectory(dir=folder) as within,
                contextlib.ExitStack() as until,
            ):
                _, runs = alternate([first, opened(model, Path(within), until)], seconds)
            beside, own = (float(np.quantile(times, 0.1)) for times in runs)
            return beside, own

        yield quickest


def settled(times: Sequence[tuple[float, float]]) -> list[float]:
    """Milliseconds of models as if the machine's clock had stood still.

    Processors change their speed by a tenth within minutes: what was timed with a source that took
    longer than usual took longer itself.

    Args:
        times: milliseconds of the source and of a model beside it, as `clock` tells them.
    """
    usual = float(np.median([beside for beside, _ in times]))
    return [own * usual / beside for beside, own in times]


def spread_out(space: Space) -> Iterator[Choice]:
    """Choices far from each other: each depth of what is graded with each form of the rest.

    Then with forms drawn layer by layer, for what lies between layers of different forms.
    """
    forms = {o.kind for g in space.groups for o in g.options if not isinstance(o.value, float)}
    rng = np.random.default_rng(0)
    for depth in DEPTHS:
        for form in ("", *sorted(forms - {""}), *MIXED):
            choice = []
            for group in space.groups:
                kinds = [o.kind for o in group.options]
                if form in kinds and form:
                    choice.append(kinds.index(form))
                elif depth and group.sized:
                    choice.append(1 + int(depth * (len(kinds) - 1)))
                elif form in MIXED and not group.graded and not any(o.gone for o in group.options):
                    choice.append(int(rng.integers(len(kinds))))
                else:
                    choice.append(0)
            yield tuple(choice)
