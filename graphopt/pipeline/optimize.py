"""`graphopt.optimize`: run passes over a model, and keep what is right, in budget, not slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from graphopt.backend import find_target
from graphopt.budget import Budget
from graphopt.cache import open_cache
from graphopt.context import Progress
from graphopt.formats import load
from graphopt.pass_ import check_needs
from graphopt.pipeline import recipe
from graphopt.pipeline.figures import Gauge
from graphopt.pipeline.result import Result
from graphopt.pipeline.run import Run
from graphopt.samples import Samples, open_samples
from graphopt.spec import parse
from graphopt.target import Target

__all__ = ["optimize"]


def optimize(
    model: ir.Model | str | Path,
    passes: str | Sequence[Any],
    *,
    target: str | Target = "cpu",
    samples: Samples | str | Path | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    verify: Literal["outputs", "graph"] = "outputs",
    measure: bool = True,
    measure_seconds: float = 5.0,
    replay: recipe.Recipe | None = None,
    cache: str | Path | None = None,
    debug: bool = False,
    progress: Progress | None = None,
    source_path: str | Path | None = None,
) -> Result:
    """Run `passes` over `model` and keep what is right, within budget and not slower.

    Args:
        model: an `onnx_ir.Model` (not changed) or the path of an ONNX file.
        passes: a spec such as `"prune(ratio=0.3), fuse"`, or pass objects, ours or `onnx_ir`'s.
        target: where the result will run, by name or as data; "auto" runs the pipeline for every
            target of this machine and keeps the fastest result within the budget.
        samples: input data for calibration and checking; synthetic inputs are drawn if None.
        budget: what may be lost and what must be gained.
        seed: seeds everything that is drawn at random.
        shapes: concrete shapes of inputs with dynamic axes, for measuring and probing.
        verify: "outputs" compares outputs after every pass, "graph" only checks the graph.
        measure: time every step on the target, and undo those that are slower.
        measure_seconds: about how long to time each step.
        replay: take every decision from this recipe and measure nothing.
        cache: folder of what was measured before on this machine (`graphopt.cache`); None is the
            user's cache folder, "off" keeps nothing.
        debug: recompute every analysis that a pass claims to preserve, and compare.
        progress: called with (text, steps done, steps in all).
        source_path: where a `model` given as an object came from, for the report.

    Raises:
        UsageError: a spec, option or target that does not exist, samples that a pass needs.
        MissingExtra: a pass or target needs a package that is not installed.
        ModelError, SamplesError: input that cannot be used.
        PassError: a pass raised; `__cause__` is what it raised.
    """
    if isinstance(model, (str, Path)):
        path: Path | None = Path(model)
        source = load(model)
    else:
        path, source = Path(source_path) if source_path else None, model
    passes = parse(passes) if isinstance(passes, str) else list(passes)
    for one in passes:
        check_needs(one, samples=samples is not None)
    if target == "auto" and replay is None:
        from graphopt.pipeline.all_targets import optimize_for_fastest

        return optimize_for_fastest(
            optimize,
            source,
            passes,
            samples=open_samples(samples, source) if samples is not None else None,
            budget=budget or Budget(),
            seed=seed,
            shapes=shapes or {},
            verify=verify,
            measure=measure,
            measure_seconds=measure_seconds,
            cache=cache,
            debug=debug,
            progress=progress or _silent,
            source_path=path,
        )
    if target == "auto" and replay is not None:
        target = replay.target
    run = Run(
        source,
        path,
        target=find_target(target) if isinstance(target, str) else target,
        samples=open_samples(samples, source) if samples is not None else None,
        budget=budget or Budget(),
        seed=seed,
        given_shapes={k: tuple(v) for k, v in (shapes or {}).items()},
        replay=replay,
        progress=progress or _silent,
        debug=debug,
        compare=verify == "outputs",
        timed=measure and replay is None,
        cache=open_cache(cache),
        gauge=lambda where: Gauge(where, measure and replay is None, measure_seconds),
    )
    return run(passes)


def _silent(text: str, done: int, total: int) -> None:
    """Tells nobody how far a run is."""
