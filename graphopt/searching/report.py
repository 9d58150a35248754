"""Report of a search: the choice explained layer by layer, every trial, the front."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from graphopt.searching.cost import CostModel
from graphopt.searching.loss import Losses
from graphopt.searching.proposing import Proposals
from graphopt.searching.ranking import Ranking
from graphopt.searching.space import Choice
from graphopt.searching.study import Trial

__all__ = ["Bought", "SearchReport", "bought", "described"]

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Bought:
    """One layer's option: what it saves against leaving the layer, and its share of the loss.

    Attributes:
        layer: pattern of the node or dimension.
        option: what was done, such as "prune 50%" or "int8 static".
        saved: share of the whole model's cost that it saves, all other choices as they are.
        loss: predicted loss, in units of the limit.
    """

    layer: str
    option: str
    saved: float
    loss: float


@dataclasses.dataclass(frozen=True)
class SearchReport:
    """What a search did.

    Attributes:
        minimize: what was made small.
        loss: what counts as lost: "drop", "error" or "disagreement".
        limit: how much of it was allowed.
        met: whether the result keeps every limit.
        interrupted: whether it was ended early.
        spec: the pipeline that makes the result.
        best: the result's row: spec, loss, metric, latency_ms (predicted), size, macs, memory.
        trials, front: rows of all trials, and of those that no other beats.
        layers: the choice, what saves most first.
        next: what a little more loss would buy.
        measured, entries: entries of the cost table that were measured, and that there are.
        notes: plain sentences.
    """

    minimize: str
    loss: str
    limit: float
    met: bool
    interrupted: bool
    spec: str
    best: dict[str, Any]
    trials: tuple[dict[str, Any], ...]
    front: tuple[dict[str, Any], ...]
    layers: tuple[Bought, ...]
    next: str
    measured: int
    entries: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, with `schema`."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def described(
    proposals: Proposals,
    trials: Sequence[Trial],
    best: Trial,
    *,
    loss: str,
    met: bool,
    interrupted: bool,
    failures: Sequence[str],
) -> SearchReport:
    """The report of a search that ended with `best`."""
    ranking = proposals.ranking
    table = ranking.cost.table
    losses, _, _ = proposals.fitted(trials)
    timed = table.target.measured
    return SearchReport(
        minimize=ranking.minimize,
        loss=loss,
        limit=ranking.limit,
        met=met,
        interrupted=interrupted,
        spec=best.spec,
        best=_row(best, ranking, timed),
        trials=tuple(_row(t, ranking, timed) for t in trials),
        front=tuple(_row(t, ranking, timed) for t in ranking.front(trials)),
        layers=bought(ranking.cost, losses, best.choice, ranking.minimize),
        next=proposals.more(best, trials),
        measured=table.measured,
        entries=len(table.entries),
        notes=_notes(ranking, ranking.ranked(trials)[0], failures),
    )


def _row(trial: Trial, ranking: Ranking, timed: bool) -> dict[str, Any]:
    predicted = ranking.cost.predict(trial.choice)
    return {
        "spec": trial.spec,
        "loss": trial.outcome.loss,
        "metric": trial.outcome.metric,
        "latency_ms": predicted.latency if timed else None,
        "size": trial.outcome.size,
        "macs": trial.outcome.macs,
        "memory": trial.outcome.memory,
        "reason": trial.outcome.reason,
    }


def _notes(ranking: Ranking, first: Trial, failures: Sequence[str]) -> tuple[str, ...]:
    found = []
    if failures:
        found.append(f"{len(failures)} trials failed; the first: {failures[0]}")
    if not ranking.met(first):
        found.append(
            f"no candidate keeps the limits: the nearest loses {first.loss:.4g} "
            f"({ranking.limit:.4g} is allowed) at {first.outcome.size:,} bytes; allow that, "
            "give more samples, or more --trials"
        )
    return tuple(found)


def bought(cost: CostModel, losses: Losses, choice: Choice, objective: str) -> tuple[Bought, ...]:
    """Every layer that was changed, what saves most first."""
    around = cost.around(choice)
    weighted = losses.weighted()
    whole = getattr(cost.predict(cost.space.nothing), objective)
    found = []
    for g, k in enumerate(choice):
        if k:
            with_it, without = (getattr(around[g][o], objective) for o in (k, 0))
            group = cost.space.groups[g]
            found.append(
                Bought(
                    group.name,
                    str(group.options[k]),
                    (without - with_it) / max(whole, 1e-300),
                    float(weighted[g][k]),
                )
            )
    return tuple(sorted(found, key=lambda b: -b.saved))
