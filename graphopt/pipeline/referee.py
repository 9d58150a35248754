"""The guard as a pass asks it, of models that it tries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack

import onnx_ir as ir

from graphopt.samples.rows import free_rows
from graphopt.verification.comparison import Outputs
from graphopt.verification.flips import flips
from graphopt.verification.guard import Guard
from graphopt.verification.strain import strain

__all__ = ["Judging"]

#: Share of the guard's limits that a pass should use up where nothing is decided: other inputs are
#: not the samples.
SAFE = 0.7
#: Runs after which, and after twice as many again and again, a model is given up that is likely to
#: change this many times what it may; or so much that all runs will say so, were the rest perfect.
GLANCE, HOPELESS = 4, 20.0
#: Beside it, since shares of few cases are told with more to spare.
CERTAIN = 2.0


@dataclasses.dataclass(frozen=True)
class Judging:
    """The guard, where a step may use up `share` of its limits."""

    guard: Guard
    share: float
    _glimpses: dict[tuple[int, int], Guard] = dataclasses.field(default_factory=dict)

    @property
    def runs(self) -> int:
        """How many runs are judged."""
        return len(self.guard.probe)

    @property
    def rows(self) -> int:
        """How many rows of the first run may be run without the others; 0 if none."""
        return free_rows(self.guard.model, self.guard.probe[0]) if self.guard.probe else 0

    def over(self, models: Sequence[ir.Model]) -> float:
        """What `models`, each in turn for a run, use of the limits; more than 1 is too much."""
        made: list[Outputs] = []
        look = GLANCE
        with ExitStack() as stack:  # optimized: as users run it, and sooner
            predict = [stack.enter_context(self.guard.opened(m)) for m in models]
            for k, feeds in enumerate(self.guard.probe):
                made.append(predict[k % len(predict)](feeds))
                if len(made) == look < self.runs:
                    found, look = flips(self.guard, made) / self.share / SAFE, 2 * look
                    if found > min(HOPELESS, self.runs / len(made) * CERTAIN):
                        return found
        return self.used(made)

    def used(self, made: Sequence[Outputs]) -> float:
        """What outputs of the guard's model use of the limits; more than 1 is too much."""
        found = self.guard.judge(made, self.share)
        worst = [
            one.over / SAFE if one.disagreements is None else one.over for one in found.values()
        ]
        return max([*worst, flips(self.guard, made) / self.share / SAFE])

    def strain(self, models: Sequence[ir.Model], runs: int, rows: int = 0) -> float:
        """How much of the limits the first runs use before any decision flips (`strain`).

        `rows`: so many of each alone; 0: all of them.
        """
        guard = self.guard
        if rows:
            guard = self._glimpses.get((runs, rows)) or guard.glimpse(runs, rows)
            self._glimpses[runs, rows] = guard
        made: dict[int, Outputs] = {}
        for first, model in enumerate(models):
            feeds = guard.probe[first : runs : len(models)]
            with guard.opened(model) as predict:
                made.update(zip(range(first, runs, len(models)), map(predict, feeds), strict=False))
        return strain(guard, [made[k] for k in sorted(made)])
