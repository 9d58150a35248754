"""Study: every trial of a search, in Optuna's storage, which is the only truth there is.

A trial is known by the hash of its spec and of what it is judged on, so that nothing is evaluated
twice, by this search or a later one with the same study. The storage is a file (Optuna's journal),
or a database by URL.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from graphopt.errors import InputError, MissingExtra, UsageError
from graphopt.searching.cost import Prediction
from graphopt.searching.space import Choice
from graphopt.searching.trial import Outcome

__all__ = ["Study", "Trial"]

NAME = "graphopt"
#: How far from the fitted coefficients, and from the fitted budget, proposals stray: the log of a
#: factor.
REACH, BUDGET_REACH = 1.0, 4.0


@dataclasses.dataclass(frozen=True)
class Trial:
    """One evaluated candidate.

    Attributes:
        number: its place in the study.
        spec: the pipeline that makes it.
        choice: the option of each group.
        outcome: what evaluating it found.
        predicted: what the cost model says of it.
    """

    number: int
    key: str
    spec: str
    choice: Choice
    outcome: Outcome
    predicted: Prediction

    @property
    def loss(self) -> float:
        """What it loses; inf if it failed."""
        return float("inf") if self.outcome.loss is None else self.outcome.loss


class Study:
    """The trials so far, and proposals for more.

    Args:
        where: a file, a URL of a database, or None for a study that is not kept.
        about: what is searched (digests, target, loss, space): another study's is refused.
        seed: seeds proposals, by round.

    Raises:
        UsageError: the study at `where` is of another model or another question.
    """

    def __init__(self, where: str | None, about: Mapping[str, Any], seed: int) -> None:
        if find_spec("optuna") is None:
            raise MissingExtra("search", "graphopt search")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._seed = optuna, seed
        self._folder = tempfile.TemporaryDirectory(prefix="graphopt-") if where is None else None
        path = where or str(Path(self._folder.name, "study.journal"))  # type: ignore[union-attr]
        try:
            self._study = optuna.create_study(
                storage=_storage(path),
                study_name=NAME,
                load_if_exists=True,
                directions=["minimize", "minimize"],
            )
            known = self._study.user_attrs.get("about")
        except Exception as error:  # storages raise of every kind
            raise InputError(f"--study {path} cannot be opened: {error}") from error
        if known is not None and known != json.loads(json.dumps(about)):
            other = [k for k, v in json.loads(json.dumps(about)).items() if known.get(k) != v]
            raise UsageError(
                f"--study {path} is of another search (other {', '.join(other)}); name another file"
            )
        if known is None:
            self._study.set_user_attr("about", json.loads(json.dumps(about)))
        text = json.dumps(about, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    def trials(self) -> list[Trial]:
        """Every candidate that was evaluated or failed, each once, in order."""
        found: dict[str, Trial] = {}
        for one in self._study.get_trials(deepcopy=False):
            data = one.user_attrs
            if one.state.is_finished() and "outcome" in data and data["key"] not in found:
                found[data["key"]] = Trial(
                    one.number,
                    data["key"],
                    data["spec"],
                    tuple(data["choice"]),
                    Outcome(**data["outcome"]),
                    Prediction(*data["predicted"]),
                )
        return list(found.values())

    def propose(
        self, kinds: Sequence[str], firsts: Sequence[float], count: int, number: int
    ) -> list[tuple[Any, dict[str, float], float]]:
        """A round's proposals: Optuna's trial, log factors by kind, and log factor of the budget.

        Args:
            kinds: kinds of options.
            firsts: log factors of the budget to try with the coefficients as fitted.
            count: proposals in all; those beyond `firsts` are the sampler's.
            number: of the round: the same round of the same study proposes the same.
        """
        optuna = self._optuna
        text = f"{self.digest} {self._seed} {number}"
        seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=2 * count)
        space = {name: optuna.distributions.FloatDistribution(-REACH, REACH) for name in kinds}
        wide = {"budget": optuna.distributions.FloatDistribution(-BUDGET_REACH, BUDGET_REACH)}
        for first in firsts[:count]:
            self._study.enqueue_trial(
                {
                    **dict.fromkeys(kinds, 0.0),
                    "budget": min(max(first, -BUDGET_REACH), BUDGET_REACH),
                }
            )
        found = []
        for _ in range(count):
            one = self._study.ask({**space, **wide})
            factors = {name: float(one.params[name]) for name in kinds}
            found.append((one, factors, float(one.params["budget"])))
        return found

    def finished(self) -> int:
        """How many proposals came to an end: what the next round is seeded by."""
        return sum(t.state.is_finished() for t in self._study.get_trials(deepcopy=False))

    def keep(self, key: str, outcome: Outcome) -> None:
        """Keep what a trial found as soon as it is known, before its round is done."""
        self._study.set_user_attr(f"outcome {key}", dataclasses.asdict(outcome))

    def kept(self, key: str) -> Outcome | None:
        """What a trial found that was evaluated before, if it was."""
        found = self._study.user_attrs.get(f"outcome {key}")
        return None if found is None else Outcome(**found)

    def tell(self, one: Any, trial: Trial, cost: float) -> None:
        """Keep what a proposal came to."""
        one.set_user_attr("key", trial.key)
        one.set_user_attr("spec", trial.spec)
        one.set_user_attr("choice", list(trial.choice))
        one.set_user_attr("predicted", list(dataclasses.astuple(trial.predicted)))
        one.set_user_attr("outcome", dataclasses.asdict(trial.outcome))
        if trial.outcome.loss is None:
            self._study.tell(one, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(one, [trial.outcome.loss, cost])

    def add(self, trial: Trial, cost: float) -> None:
        """Keep a trial that no round proposed."""
        self.tell(self._study.ask(), trial, cost)

    def drop(self, one: Any) -> None:
        """A proposal that was not evaluated."""
        self._study.tell(one, state=self._optuna.trial.TrialState.FAIL)

    def close(self) -> None:
        """Remove a study that is not kept."""
        if self._folder is not None:
            self._folder.cleanup()


def _storage(path: str) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in path:
        return path
    return JournalStorage(JournalFileBackend(path))
