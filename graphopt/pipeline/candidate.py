"""A candidate: a model and how to optimize it, as strings, for other processes and machines.

    with ProcessPoolExecutor() as pool:
        reports = pool.map(Candidate.report, candidates)

It pickles, and whatever it names (models, samples, `FILE.py:FUNCTION`) is opened where it runs.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from graphopt.budget import Budget
from graphopt.pipeline.optimize import optimize
from graphopt.pipeline.result import Result

__all__ = ["Candidate"]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What `graphopt optimize` takes, as it takes it.

    Attributes:
        model: path of the model.
        spec: the pipeline, such as `"prune(ratio=0.3), fuse"`.
        samples: path of the samples, or `FILE.py:FUNCTION`; None draws inputs.
        evaluate: `FILE.py:FUNCTION`, higher is better; None evaluates nothing.
        target, seed: as in `graphopt.optimize`.
        shapes: concrete shapes of inputs with dynamic axes, `(("x", "1x3x224x224"), ...)`.
        measure: time every step on the target.
    """

    model: str
    spec: str
    samples: str | None = None
    evaluate: str | None = None
    target: str = "cpu"
    seed: int = 0
    shapes: tuple[tuple[str, str], ...] = ()
    measure: bool = False

    def run(self) -> Result:
        """Optimize it here. Raises what `graphopt.optimize` raises."""
        return optimize(
            self.model,
            self.spec,
            target=self.target,
            samples=self.samples,
            budget=Budget(evaluate=self.evaluate),
            seed=self.seed,
            shapes={name: tuple(map(int, dims.split("x"))) for name, dims in self.shapes},
            measure=self.measure,
        )

    def report(self) -> dict[str, Any]:
        """Optimize it here; the report as plain data, with the recipe under "recipe"."""
        result = self.run()
        return {**result.report.to_json(), "recipe": json.loads(result.recipe.to_text())}
