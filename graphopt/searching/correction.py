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
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.backend import Arrays, backend_of
from graphopt.cache import versions_of
from graphopt.context import Progress
from graphopt.errors import GraphOptError
from graphopt.measuring.statistics import interleave
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.run import run
from graphopt.samples import stand_ins
from graphopt.searching.cost import CostModel
from graphopt.searching.space import Choice, Space
from graphopt.target import Target

__all__ = ["correct", "quickest", "spread_out"]

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
    drawn = stand_ins(setting.source.model, seed=setting.seed, shapes=setting.shapes)
    # drawn ones stand for those that a pass needs
    quick = dataclasses.replace(setting, samples=drawn, given=True, judge=None, guard=None)
    source = run(quick, cost.space.passes(cost.space.nothing)).model
    choices: list[Choice] = []
    latencies: list[float] = []
    every = list(dict.fromkeys(spread_out(cost.space)))
    for k, choice in enumerate(every):
        told("timing whole models", k, len(every))
        with contextlib.suppress(GraphOptError):
            made = run(quick, cost.space.passes(choice)).model
            latencies.append(quickest([source, made], setting.feeds, target, seconds)[1])
            choices.append(choice)
    if len(choices) < 3:
        return []
    cost.correct(choices, latencies)
    if path is not None and setting.cache is not None:
        content = json.dumps({"weights": cost.weights.tolist()}) + "\n"
        setting.cache.write(path, content.encode())
    return [(cost.predict(c).latency, ms) for c, ms in zip(choices, latencies, strict=True)]


def quickest(
    models: Sequence[ir.Model], feeds: Arrays, target: Target, seconds: float
) -> list[float]:
    """Milliseconds of each model's quicker runs, all taking turns for about so many seconds.

    Sums of kernels know nothing of who else is on the machine, so neither may what corrects them:
    a tenth of the runs are quicker than what is returned.
    """
    backend = backend_of(target)
    assert backend is not None
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        calls = []
        for k, model in enumerate(models):
            Path(folder, str(k)).mkdir()
            path = backend.lower(model, target, Path(folder, str(k), "model.onnx"))
            session = backend.session(path, target, beside=True)
            calls.append(partial(session, feeds))
        times = interleave(calls, seconds, sample=0)
    quick: list[float] = np.quantile(times, 0.1, axis=0).tolist()
    return quick


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
