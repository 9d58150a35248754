"""Ranking: what trials cost, how far over the limits they are, and which no other beats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from graphopt.budget import Budget, Limit
from graphopt.searching.cost import CostModel
from graphopt.searching.front import pareto
from graphopt.searching.study import Trial

__all__ = ["Ranking", "limits_of"]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """An order of trials.

    Attributes:
        cost: predicts latencies.
        minimize: what is made small, one of `OBJECTIVES`.
        limit: how much may be lost.
        limits: of other figures, as the cost model counts them.
    """

    cost: CostModel
    minimize: str
    limit: float
    limits: Mapping[str, float]

    def cost_of(self, trial: Trial) -> float:
        """What is minimized: milliseconds as predicted, other figures as they are."""
        if self.minimize == "latency":
            return self.cost.predict(trial.choice).latency
        return float(getattr(trial.outcome, self.minimize) or 0)

    def met(self, trial: Trial) -> bool:
        """Whether a trial keeps the limits, as far as that is known before it is timed."""
        return self.over(trial) <= 1

    def over(self, trial: Trial) -> float:
        """How far over its limits a trial is: at most 1 if it keeps them."""
        size = (trial.outcome.size or 0) / self.limits.get("size", math.inf)
        if trial.loss <= self.limit + 1e-12:
            return size if size > 1 else min(trial.loss / max(self.limit, 1e-12), 1.0)
        return max(size, trial.loss / max(self.limit, 1e-12))

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that came to something: those within the limits first, cheapest first."""
        done = [t for t in trials if t.outcome.loss is not None]
        return sorted(
            done,
            key=lambda t: (
                (0, self.cost_of(t), t.loss) if self.met(t) else (1, self.over(t), t.loss)
            ),
        )

    def front(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that no other beats."""
        done = [t for t in trials if t.outcome.loss is not None]
        return pareto(done, self.cost_of, lambda t: t.loss)


def limits_of(budget: Budget, cost: CostModel, source_bytes: int) -> dict[str, float]:
    """Limits on figures besides what is lost, as the cost model counts."""
    found = {}
    nothing = cost.predict(cost.space.nothing)
    if budget.max_size is not None:
        source = float(source_bytes)
        found["size"] = Limit.parse(budget.max_size, "size").resolve(source)
    if budget.max_latency is not None:
        limit = Limit.parse(budget.max_latency, "latency")
        found["latency"] = limit.resolve(nothing.latency)
    return found
