"""Recovery within a search: how far a model can be cut if label-free training follows.

    min C(choice)    such that    L(trained(choice)) <= limit

What a trained candidate loses is not predicted, but one that loses more untrained loses more
trained. So the most that training wins back is found by steps of `FARTHER` times the loss that is
predicted untrained, and by halving (of logarithms) once one step was too far.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from graphopt.searching.proposing import Proposals
from graphopt.searching.study import Study, Trial
from graphopt.searching.workers import Workers

__all__ = ["recover"]

#: Candidates that are trained, for each target.
RECOVERED = 4
#: How many times the loss that holds untrained is tried next.
FARTHER = 4.0
#: Bounds this close to each other have nothing between them.
CLOSE = 1.2


def recover(
    spec: str,
    study: Study,
    proposals: Proposals,
    staff: Workers,
    told: Callable[[str], None],
    late: Callable[[], bool],
) -> list[str]:
    """Add candidates to `study` that end in the passes of `spec`.

    Args:
        spec: what trains, such as "distill(epochs=10)".
        study: the trials so far, which goes on.
        proposals: of one target.
        staff: evaluates.
        told: hears what is done.
        late: whether no more may begin.

    Returns:
        Why candidates came to nothing, one line each.
    """
    failures: list[str] = []
    rng = np.random.default_rng(0)
    ranking = proposals.ranking
    losses, anchor, _ = proposals.fitted(study.trials())
    untrained = [t for t in study.trials() if ranking.met(t) and proposals.plain(t)]
    low = max((losses.of(t.choice) for t in untrained), default=0.0) or math.exp(anchor)
    high = math.inf
    for _ in range(RECOVERED):
        if late() or high < CLOSE * low:
            break
        budget = low * FARTHER if high == math.inf else math.sqrt(low * high)
        trials = study.trials()
        best = min((ranking.cost_of(t) for t in trials if ranking.met(t)), default=math.inf)
        made = proposals.fresh(losses, {}, budget, {t.key for t in trials}, rng, behind=f", {spec}")
        if made is None:
            break
        choice, longer, key = made
        predicted = ranking.cost.predict(choice)
        if getattr(predicted, ranking.minimize) >= best:
            break
        told(f"training a candidate of {1 - _share(proposals, choice):.0%} less {ranking.minimize}")
        (outcome,) = (o for _, o in staff.outcomes([longer]))
        trial = Trial(0, key, longer, choice, outcome, predicted)
        study.add(trial, ranking.cost_of(trial))
        if outcome.reason:
            failures.append(outcome.reason)
        if ranking.met(trial):
            low = max(low, losses.of(choice))
        else:
            high = min(high, losses.of(choice))
    return failures


def _share(proposals: Proposals, choice: tuple[int, ...]) -> float:
    """What is left of what is minimized, as predicted."""
    cost, name = proposals.ranking.cost, proposals.ranking.minimize
    whole = getattr(cost.predict(cost.space.nothing), name)
    return float(getattr(cost.predict(choice), name) / max(whole, 1e-12))
