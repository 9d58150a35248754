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
from collections.abc import Iterator, Sequence

import numpy as np

from graphopt.cache import versions_of
from graphopt.context import Progress
from graphopt.errors import GraphOptError
from graphopt.measuring.gauge import Gauge
from graphopt.pipeline.prepare import Setting
from graphopt.pipeline.run import run
from graphopt.pipeline.state import State
from graphopt.samples import Samples, stand_ins
from graphopt.searching.cost import CostModel
from graphopt.searching.space import Choice, Space
from graphopt.target import Target

__all__ = ["built", "correct", "hasty", "settled", "spread_out"]

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
    about = versions_of(target, "correction in turns")
    text = f"{setting.digest} {about} {sorted(map(str, cost.space.groups))}"
    name = f"correction-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    path = setting.cache.folder / "costs" / name if setting.cache is not None else None
    if path is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            cost.weights = np.array(json.loads(path.read_text())["weights"], float)
            return []
    quick = hasty(setting)
    choices: list[Choice] = []
    times: list[tuple[float, float]] = []
    every = list(dict.fromkeys(spread_out(cost.space)))
    with Gauge(target, seconds) as gauge:
        source = built(quick, cost.space, cost.space.nothing)
        for k, choice in enumerate(every):
            told("timing whole models", k, len(every))
            with contextlib.suppress(GraphOptError):
                made = built(quick, cost.space, choice)
                times.append(gauge.quicker(source, made, setting.feeds))
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


def built(quick: Setting, space: Space, choice: Choice) -> State:
    """What a choice makes of a `hasty` setting's model."""
    return State(run(quick, space.passes(choice)).model, quick.shapes)


def settled(times: Sequence[tuple[float, float]]) -> list[float]:
    """Milliseconds of models as if the machine's clock had stood still.

    Processors change their speed by a tenth within minutes: what was timed with a source that took
    longer than usual took longer itself.

    Args:
        times: milliseconds of the source and of a model beside it, as `Gauge.quicker` tells them.
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
