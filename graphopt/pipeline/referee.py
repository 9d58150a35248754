"""The guard as a pass asks it, of models that it tries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack

import onnx_ir as ir

from graphopt.verification.flips import flips
from graphopt.verification.guard import Guard
from graphopt.verification.outputs import Outputs
from graphopt.verification.strain import strain

__all__ = ["Judging"]

#: Share of the guard's limits that a pass should use up where nothing is decided: other inputs are
#: not the samples. One decision that differs is excused at the end alone.
SAFE = 0.7
#: What is likely to change this many times what it may on the first runs is not looked at further.
HOPELESS, GLANCE = 20.0, 4


@dataclasses.dataclass(frozen=True)
class Judging:
    """The guard, where a step may use up `share` of its limits."""

    guard: Guard
    share: float

    @property
    def runs(self) -> int:
        """How many runs are judged."""
        return len(self.guard.probe)

    def over(self, models: Sequence[ir.Model]) -> float:
        """What `models`, each in turn for a run, use of the limits; more than 1 is too much."""
        made: list[Outputs] = []
        with ExitStack() as stack:  # optimized: as users run it, and sooner
            predict = [stack.enter_context(self.guard.opened(m)) for m in models]
            for k, feeds in enumerate(self.guard.probe):
                made.append(predict[k % len(predict)](feeds))
                if len(made) == GLANCE and (glance := flips(self.guard, made)) > HOPELESS:
                    return glance / self.share
        return self.used(made)

    def used(self, made: Sequence[Outputs]) -> float:
        """What outputs of the guard's model use of the limits; more than 1 is too much."""
        found = self.guard.judge(made, self.share)
        worst = [
            one.over / SAFE if one.disagreements is None else one.figure / max(one.limit, 1e-9)
            for one in found.values()
        ]
        return max([*worst, flips(self.guard, made) / self.share / SAFE])

    def strain(self, models: Sequence[ir.Model], runs: int) -> float:
        """How much of the limits the first runs use before any decision flips (`strain`)."""
        made: dict[int, Outputs] = {}
        for first, model in enumerate(models):
            feeds = self.guard.probe[first : runs : len(models)]
            with self.guard.opened(model) as predict:
                made.update(zip(range(first, runs, len(models)), map(predict, feeds), strict=False))
        return strain(self.guard, [made[k] for k in sorted(made)])
