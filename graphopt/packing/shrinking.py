"""What is done to a model before its weights are rounded: passes, and leaving out what is not read.

Without passes, pruning as far as the budget allows, and training of what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from graphopt.budget import Budget
from graphopt.context import Context, Progress
from graphopt.graph.provenance import strip
from graphopt.graph.traverse import all_graphs
from graphopt.packing.coding import Coded
from graphopt.packing.judging import Trial
from graphopt.packing.layers import first
from graphopt.pipeline.optimize import optimize
from graphopt.pipeline.prepare import Setting
from graphopt.spec import parse

__all__ = ["bare", "shrunk"]

#: Shares of the MACs that are pruned before training: the first that takes no more than its part
#: of the budget, since rounding needs the rest.
SHARES, PART = (0.85, 0.75, 0.6, 0.5, 0.3), 0.5
#: What is run on the pruned model before anything is rounded.
TRAINING = "distill(batch=64)"
#: Rows of samples that pruning looks at.
FEW = 512


def shrunk(
    setting: Setting,
    model: ir.Model,
    passes: str,
    judged: Callable[[Coded, float], Trial] | None,
    progress: Progress,
) -> tuple[ir.Model, str]:
    """The model after `passes`; with `judged` after the strongest pruning in budget, trained."""
    if not passes and judged is None:
        return model, ""
    for one in (passes,) if passes else (f"prune(ratio={s})" for s in SHARES):
        progress(f"{one} before rounding", 0, 0)
        given = setting.samples if passes else list(first(setting.samples, FEW))
        free = Budget(max_disagreement=math.inf)
        result = optimize(
            model, one, samples=given, budget=free, measure=False, seed=setting.seed, cache="off"
        )
        made = result.model.clone()
        bare(made)
        if passes or judged is None:
            return made, one
        if not judged(Coded(made, {}, b"", {}, []), PART).reason:
            (train,) = parse(TRAINING)
            ctx = Context(
                made,
                samples=setting.samples,
                source=setting.source.model,
                seed=setting.seed,
                pass_name="distill",
                progress=progress,
            )
            train.run(made, ctx)
            bare(made)
            return made, f"{one}, {TRAINING}"
    return model, ""


def bare(model: ir.Model) -> None:
    """Leave out what no runtime reads: provenance, comments, types that follow from the inputs."""
    strip(model)
    model.doc_string = None
    for graph in all_graphs(model.graph):
        kept = {*graph.inputs, *graph.outputs}
        graph.doc_string = None
        graph.metadata_props.clear()
        for held in graph.initializers.values():
            held.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                if value not in kept:
                    value.type = value.shape = None
