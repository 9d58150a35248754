"""What a model is run on where the user gave no samples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.execution.runtime import run
from graphopt.graph.traverse import all_nodes
from graphopt.io.reading import examples_of
from graphopt.samples.inputs import inputs_of
from graphopt.samples.meaning import meaning_of
from graphopt.samples.states import states_of
from graphopt.samples.stream import Samples
from graphopt.samples.synthetic import synthetic

__all__ = ["humbler", "in_the_way", "many", "of_unknown_scale", "stand_ins"]

#: Images that are enough to learn weights from, and how many of them go through a model at once.
IMAGES, BATCH = 256, 32
#: Bytes of an input that goes through at once: large images go through few by few.
ROOM = 1 << 25


def stand_ins(model: ir.Model, *, seed: int = 0, shapes: Mapping[str, Sequence[int]]) -> Samples:
    """Synthetic inputs, then the example inputs that a traced model brings.

    The first has the given shapes. Recurrent states are zero in it, and then what the model made of
    them, as in use: random ones may be nothing that it ever meets. Where a model with examples does
    not run on synthetic inputs (indices that must fit each other, say), there are the examples
    alone.
    """
    drawn = _carried(model, synthetic(model, seed=seed, shapes=shapes))
    examples = examples_of(model)
    if not examples:
        return drawn
    try:
        run(model, next(iter(drawn)))
    except ModelError:
        return Samples(examples, "the example inputs", synthetic=True)
    return Samples([*drawn, *examples], "synthetic and example inputs", synthetic=True)


def many(model: ir.Model, drawn: Samples, *, seed: int = 0, images: int = IMAGES) -> Samples | None:
    """Invented images, by themselves enough to learn weights from, or None.

    None where the model takes anything else, and instead of placeholders: what an image shows
    matters little to the sums that layers compute, what a text or a signal holds matters much.

    Args:
        model: whose inputs to draw.
        drawn: `stand_ins` of it, whose sizes the images have.
        seed: of the draws.
        images: how many.
    """
    inputs = inputs_of(model)
    values = {v.name: v for v in model.graph.inputs}
    if (
        drawn.placeholders
        or not inputs
        or any(meaning_of(values[i.name], model).kind != "image" for i in inputs)
    ):
        return None
    first, shapes = next(iter(drawn)), {}
    largest = max(first[i.name][:1].nbytes for i in inputs)
    batch = min(BATCH, max(ROOM // max(largest, 1), 1))
    for one in inputs:
        rows = batch if one.batch is None else first[one.name].shape[0]
        shapes[one.name] = (rows, *first[one.name].shape[1:])
    if not _runs(model, shapes, seed):  # as an exporter left it, for a batch of its own
        shapes = {i.name: first[i.name].shape for i in inputs}
    rows = shapes[inputs[0].name][0]
    runs = synthetic(model, seed=seed, shapes=shapes, runs=-(-images // rows))
    return Samples(runs, f"{images} invented images", synthetic=True)


def _runs(model: ir.Model, shapes: Mapping[str, Sequence[int]], seed: int) -> bool:
    """Whether the model takes inputs of these shapes."""
    try:
        run(model, next(iter(synthetic(model, seed=seed, shapes=shapes))))
    except ModelError:
        return False
    return True


def of_unknown_scale(model: ir.Model) -> list[str]:
    """Inputs that were drawn as N(0, 1) for want of a meaning: signals, measurements, features.

    What the model itself makes of its states is no such thing.
    """
    values, states = {v.name: v for v in model.graph.inputs}, states_of(model)
    kinds = {i.name: meaning_of(values[i.name], model).kind for i in inputs_of(model)}
    return [n for n, kind in kinds.items() if kind in ("normal", "positive") and n not in states]


def _carried(model: ir.Model, drawn: Samples) -> Samples:
    """`drawn` with states carried from run to run; those that grow (caches) are drawn anew."""
    states = states_of(model)
    if not states:
        return drawn
    first, *others = drawn
    runs = [{n: np.zeros_like(a) if n in states else a for n, a in first.items()}]
    for feeds in others:
        try:
            made = run(model, runs[-1])
        except ModelError:
            return drawn
        same = {n: made[s] for n, s in states.items() if made[s].shape == feeds[n].shape}
        if not same and all(one[n].shape == first[n].shape for one in others for n in states):
            return Samples([*runs, *others], drawn.source, synthetic=True)  # all of them grow
        runs.append({**feeds, **{n: a for n, a in same.items() if np.isfinite(a).all()}})
    return Samples(runs, drawn.source, synthetic=True)


def humbler(model: ir.Model, drawn: Samples) -> Samples | None:
    """`drawn` with whole numbers that nearly always fit (indices, counts): 1, else 0; or None."""
    for value in (1, 0):
        runs = [
            {n: np.full_like(a, value) if a.dtype.kind in "iu" else a for n, a in feeds.items()}
            for feeds in drawn
        ]
        try:
            for feeds in runs:
                run(model, feeds)
        except ModelError:
            continue
        return Samples(runs, f"{drawn.source}, all whole numbers {value}", synthetic=True)
    return None


def in_the_way(model: ir.Model, error: str) -> list[str]:
    """The inputs that the node reads which stopped, as the runtime's message names it.

    None where it was not on the way: the model itself cannot be opened.
    """
    if "while running" not in error:
        return []
    named = re.search(r"Name:'([^']+)'", error)
    nodes = {n.name: n for n in all_nodes(model.graph)}
    stack = list(nodes[named[1]].inputs) if named and named[1] in nodes else []
    seen = set(stack)
    while stack:
        value = stack.pop()
        node = value.producer() if value is not None else None
        new = [v for v in node.inputs if v not in seen] if node is not None else []
        seen.update(new)
        stack.extend(new)
    every = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    return [v.name or "" for v in every if v in seen or not seen]
