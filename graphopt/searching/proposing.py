"""Proposals: candidates near the limit, by losses that are fitted to what was evaluated so far."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.searching.choosing import cheapest
from graphopt.searching.loss import Losses
from graphopt.searching.ranking import Ranking
from graphopt.searching.space import Choice
from graphopt.searching.study import Trial
from graphopt.searching.trial import key_of

__all__ = ["Proposals"]

#: Attempts at a new candidate: the budget and the loss of single groups stray more and more.
ATTEMPTS, STRAY = 8, 0.15
#: Logs of the squared output error at which a search begins, before anything is known.
BEGIN = (-6.5, -5.0, -3.5, -2.0)


@dataclasses.dataclass(frozen=True)
class Proposals:
    """What to try next.

    Attributes:
        ranking: the cost model and the limits.
        losses: what every option loses, as measured alone.
        same_unit: whether the limit is in their unit.
        digest: of the study, for the keys of trials.
    """

    ranking: Ranking
    losses: Losses
    same_unit: bool
    digest: str

    def fitted(self, trials: Sequence[Trial]) -> tuple[Losses, float, list[float]]:
        """Losses in real units, the log of the budget to try, and offsets from it to begin with."""
        done = [t for t in trials if math.isfinite(t.loss) and self.plain(t)]
        if not done:
            if self.same_unit and self.ranking.limit > 0:  # the very same unit
                return self.losses, 2 * math.log(self.ranking.limit), [0.0, 0.7, -0.7, 1.4]
            middle = sum(BEGIN) / len(BEGIN)
            return self.losses, middle, [b - middle for b in BEGIN]
        losses = self.losses.fitted(
            [(t.choice, t.loss) for t in done], max(self.ranking.limit, 1e-6)
        )
        kept = [losses.of(t.choice) for t in done if t.loss <= self.ranking.limit]
        over = [losses.of(t.choice) for t in done if t.loss > self.ranking.limit]
        low = max((k for k in kept if k > 0), default=None)
        high = min((o for o in over if low is None or o > low), default=None)
        if low is None and high is None:
            return losses, math.log(max(self.ranking.limit, 1e-9)), [0.0, 0.7]
        if low is None:
            assert high is not None
            return losses, math.log(high) - 1.2, [0.0, -1.2]
        if high is None:
            return losses, math.log(low) + 0.6, [0.0, 0.6]
        middle = (math.log(low) + math.log(high)) / 2
        return losses, middle, [0.0, (math.log(high) - math.log(low)) / 4]

    def plain(self, trial: Trial) -> bool:
        """Whether a trial is its choice alone, without training behind it."""
        return trial.spec == self.ranking.cost.space.spec(trial.choice)

    def fresh(
        self,
        losses: Losses,
        factors: Mapping[str, float],
        budget: float,
        known: set[str],
        rng: np.random.Generator,
        behind: str = "",
    ) -> tuple[Choice, str, str] | None:
        """A candidate that was not evaluated yet, near what was proposed; None if there is none.

        `behind` is what its pipeline ends with.
        """
        strayed = dataclasses.replace(
            losses,
            coefficients={
                k: losses.coefficients.get(k, 1.0) * math.exp(f) for k, f in factors.items()
            },
        )
        r = self.ranking
        for k in range(ATTEMPTS):
            near = budget * math.exp(STRAY * k * rng.standard_normal())
            about = strayed.shaken(STRAY * k, rng) if k else strayed
            choice = cheapest(r.cost, about, near, r.minimize, r.limits)
            spec = r.cost.space.spec(choice) + behind
            key = key_of(self.digest, spec)
            if key not in known:
                return choice, spec, key
        return None

    def more(self, best: Trial, trials: Sequence[Trial]) -> str:
        """What a little more loss would buy, by the cost model."""
        r = self.ranking
        losses, _, _ = self.fitted(trials)
        now = getattr(r.cost.predict(best.choice), r.minimize)
        spent = losses.of(best.choice)
        more = cheapest(r.cost, losses, 1.25 * spent, r.minimize, r.limits)
        gain = 1 - getattr(r.cost.predict(more), r.minimize) / max(now, 1e-12)
        return f"a quarter more loss would buy {max(gain, 0.0):.1%} less {r.minimize}"
