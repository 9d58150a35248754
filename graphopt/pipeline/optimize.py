"""`graphopt.optimize`: run passes over a model, and keep what is right, in budget, not slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir

from graphopt.backend import find_target
from graphopt.budget import Budget
from graphopt.context import Progress
from graphopt.errors import UsageError
from graphopt.pipeline.all_targets import run_everywhere
from graphopt.pipeline.prepare import prepare
from graphopt.pipeline.recipe import Recipe
from graphopt.pipeline.result import Result
from graphopt.pipeline.run import run
from graphopt.pipeline.stage import Watch
from graphopt.reporting.tracking import tracked
from graphopt.samples import SampleSource
from graphopt.spec import passes_of
from graphopt.target import Target

__all__ = ["optimize"]


def optimize(
    model: ir.Model | onnx.ModelProto | str | Path,
    passes: str | Sequence[Any],
    *,
    target: str | Target = "cpu",
    samples: SampleSource | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    verify: Literal["outputs", "graph"] = "outputs",
    measure: bool = True,
    measure_seconds: float = 5.0,
    replay: Recipe | None = None,
    cache: str | Path | None = None,
    debug: bool = False,
    progress: Progress | None = None,
    source_path: str | Path | None = None,
    max_opset: int | None = None,
    trust: Literal["checked", "assumed"] = "checked",
    watch: Watch | None = None,
    track: str | None = None,
) -> Result:
    """Run `passes` over `model` and keep what is right, within budget and not slower.

    Args:
        model: an `onnx.ModelProto` or `onnx_ir.Model` (not changed), or what `graphopt.load` reads:
            the path of an .onnx or .pt2 file, or `FILE.py:FUNCTION`.
        passes: a spec such as `"prune(ratio=0.3), fuse"`, or a list of specs and pass objects, ours
            or `onnx_ir`'s: `["fuse", Int8()]`.
        target: where the result will run: a name, `FILE.py:NAME` for the first target of a backend
            in a file, or data; "auto" runs the pipeline for every target of this machine and keeps
            the fastest result within the budget.
        samples: input data for calibration and checking: a path, a dict of arrays by input name, a
            list of such dicts, one array if the model has one input, or a function that yields any
            of these; a leading axis longer than the model's batch holds several samples. Synthetic
            inputs are drawn if None.
        budget: what may be lost and what must be gained.
        seed: seeds everything that is drawn at random.
        shapes: concrete shapes of inputs with dynamic axes, for measuring and probing.
        verify: "outputs" compares outputs after every pass and proves or checks each edit of the
            exact ones, "graph" only checks the graph.
        measure: time every step on the target, and undo those that are slower.
        measure_seconds: about how long to time each step.
        replay: take every decision from this recipe and measure nothing.
        cache: folder of what was measured before on this machine (`graphopt.cache`); None is the
            user's cache folder, "off" keeps nothing.
        debug: recompute every analysis that a pass claims to preserve, and compare.
        progress: called with (text, steps done, steps in all).
        source_path: where a `model` given as an object came from, for the report.
        max_opset: no pass raises the model's opset beyond this; as in the recipe with `replay`.
        trust: "checked" undoes edits of exact passes that are neither proved nor checked,
            "assumed" keeps them.
        watch: called with a `graphopt.pipeline.stage.Stage` for the source and after every step.
        track: where losses of a training go, step by step: `tensorboard:DIR` or `mlflow:URI`.

    Raises:
        UsageError: a spec, option or target that does not exist, samples that a pass needs.
        MissingExtra: a pass or target needs a package that is not installed.
        ModelError, SamplesError: input that cannot be used.
        PassError: a pass raised; `__cause__` is what it raised.
    """
    passes = passes_of(passes)
    everywhere = target == "auto" and replay is None
    if everywhere and not measure:
        raise UsageError("target auto chooses by measuring: leave --no-measure out, or name one")
    if target == "auto":
        target = find_target(replay.target) if replay is not None else "cpu"
    with tracked(track) as scalar:
        setting = prepare(
            model,
            target=target,
            samples=samples,
            budget=budget,
            seed=seed,
            shapes=shapes,
            verify=verify,
            trust=trust,
            measure=measure and replay is None,
            measure_seconds=measure_seconds,
            cache=cache,
            debug=debug,
            progress=progress,
            source_path=source_path,
            scalar=scalar,
            max_opset=replay.max_opset if replay is not None and max_opset is None else max_opset,
        )
        if everywhere:
            return run_everywhere(setting, passes, progress=progress, watch=watch)
        return run(setting, passes, replay=replay, progress=progress, watch=watch)
