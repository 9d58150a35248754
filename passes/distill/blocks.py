"""Block-wise reconstruction: each part of a model learns what the original has at its end.

Along the values that both models still share (residual streams, as a rule) the model is cut into
parts. One after the other is trained to give the original's value, on what the parts before it now
give (as BRECQ rounds weights, Li et al., ICLR 2021): every sample says far more than at the
outputs, and few of them are enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.distill.features import Feature, shared_features
from graphopt.passes.distill.writing import write

from graphopt.calibration.padding import Padding
from graphopt.context import Context
from graphopt.errors import ModelError
from graphopt.execution.observe import observe
from graphopt.execution.staged import Staged
from graphopt.execution.trainable import trainable
from graphopt.samples import Samples
from graphopt.samples.rows import free_rows
from graphopt.training.batches import Batch
from graphopt.training.examples import Examples
from graphopt.training.loop import train
from graphopt.training.losses import Criterion, Output
from graphopt.training.processes import device_of
from graphopt.training.schedule import Plan
from graphopt.training.store import Store

__all__ = ["train_blocks"]

Array = np.ndarray[Any, Any]
#: Parts at most; steps of each at least, in whole epochs; highest learning rate.
PARTS, STEPS, RATE = 32, 240, 1e-3


def train_blocks(
    source: ir.Model,
    model: ir.Model,
    samples: Samples,
    padding: Padding | None,
    ctx: Context,
    *,
    batch: int,
) -> int:
    """Train part after part of `model`, in place; how many are nearer to the original's.

    Args:
        source: what is learned from.
        model: has the inputs of `source`, and some of its values.
        samples: iterated several times.
        padding: their tokens that do not count.
        ctx: its seed and its progress are used.
        batch: rows of a step.
    """
    first = next(iter(samples))
    features = shared_features(source, model, first, padding, PARTS)
    if not features:
        return 0
    ours, theirs = ({o.name: o for node in m.graph for o in node.outputs} for m in (model, source))
    known = [v for v in model.graph.inputs if not v.is_initializer()]
    by_row = _by_row(source, [f.theirs for f in features], first)
    done = 0
    with Staged(source, samples) as was, Staged(model, samples) as now:
        for k, feature in enumerate(features):
            end = ours[feature.ours]
            begins = _begins(end, known)
            part = _part(model, begins, end)
            if part is None:
                continue
            store, rows = Store(), by_row[feature.theirs]
            masks = padding.masks if padding and padding.by_token(feature.ours) else None
            wanted = was.values([theirs[feature.theirs]])
            runs: list[list[tuple[int, ...]]] = []
            for run, (x, (y,)) in enumerate(zip(now.values(begins), wanted, strict=True)):
                store.add([*x, _kept(y, feature), *([masks[run]] if masks else [])])
                runs.append([a.shape for a in x])
            _typed(part, next(iter(now.values(begins))), runs)
            batches = Examples(store.finish(), len(begins), rows=rows, size=batch, seed=ctx.seed)
            known.append(end)
            done += batches.steps > 0 and _train(part, model, batches, feature, ctx, k + 1)
    return done


def _train(
    part: ir.Model, model: ir.Model, batches: Examples, feature: Feature, ctx: Context, number: int
) -> bool:
    try:
        module = trainable(part).to(device_of())
    except ModelError:
        return False  # the whole model says why
    plan = Plan(
        epochs=math.ceil(STEPS / batches.steps), lr=RATE, text=f"distill part {number}", patience=3
    )
    masked, plain = (Criterion([Output("values", feature.variance, m)]) for m in (0, None))

    def loss(got: tuple[Any, ...], batch: Batch) -> Any:
        target, *mask = batch.targets
        one = dataclasses.replace(batch, inputs=tuple(mask), targets=(target,))
        return masked(got, one) if mask else plain(got, one)

    report = train(module, batches, loss, plan, ctx)
    if not report.improved:
        return False
    write(module.cpu(), model, ctx, part)
    return True


def _by_row(source: ir.Model, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, bool]:
    """Whether the first axis of values is that of the samples, whose rows can be told apart."""
    rows = free_rows(source, feeds)
    if rows < 2:
        return dict.fromkeys(names, False)
    (one,) = observe(source, names, [{n: a[:1] for n, a in feeds.items()}])
    (all_,) = observe(source, names, [feeds])
    return {n: len(one[n]) == 1 and len(all_[n]) == rows for n in names}


def _begins(end: ir.Value, known: Sequence[ir.Value]) -> list[ir.Value]:
    """The known values that `end` is computed from."""
    stack, seen, found = [end], set[ir.Value](), dict[ir.Value, None]()
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in known:
            found[value] = None
        elif (node := value.producer()) is not None:
            stack.extend(v for v in node.inputs if v is not None)
    return list(found)


def _part(model: ir.Model, begins: Sequence[ir.Value], end: ir.Value) -> ir.Model | None:
    """From `begins` to `end` as a model; None if weights of it are used elsewhere too."""
    if not begins:
        return None
    graph = ir.convenience.extract(model.graph, begins, [end])
    inside = {node.name for node in graph}
    for name in graph.initializers:
        held = model.graph.initializers.get(name)
        if held is None or any(use.node.name not in inside for use in held.uses()):
            return None
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def _typed(
    part: ir.Model, arrays: Sequence[Array], runs: Sequence[Sequence[tuple[int, ...]]]
) -> None:
    """Say what the inputs of a part are: of such a type, and as long as in all runs."""
    for value, array, seen in zip(part.graph.inputs, arrays, zip(*runs, strict=True), strict=True):
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        sizes = [set(axis) for axis in zip(*seen, strict=True)]
        value.shape = ir.Shape([None, *(min(s) if len(s) == 1 else None for s in sizes[1:])])


def _kept(array: Array, feature: Feature) -> Array:
    """What the pruned model still has of the original's value."""
    kept: Mapping[int, Array] = feature.kept
    for axis, index in kept.items():
        array = np.take(array, index, axis=axis)
    return array
