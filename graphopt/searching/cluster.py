"""Cluster: trials as stateless tasks of Ray, on as many machines as there are.

    ray start --head                       # on one machine
    ray start --address HEAD:6379          # on each of the others
    graphopt search ... --ray HEAD:6379

What the task names (model, samples, evaluation) is opened where a trial runs, so every machine has
it at the same path. A trial whose machine is lost is evaluated on another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from graphopt.errors import GraphOptError, InputError, MissingExtra
from graphopt.searching.trial import Bench, Outcome, Task

__all__ = ["Cluster"]

#: How often a trial is begun again after the machine it ran on was lost.
RETRIES = 3


class Cluster:
    """Trials on a Ray cluster.

    Args:
        address: of its head, or "local" for one on this machine.
        task: what all trials share.
        timeout: seconds a trial may take, or None.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: there is no cluster at the address.
    """

    def __init__(self, address: str, task: Task, timeout: float | None) -> None:
        if find_spec("ray") is None:
            raise MissingExtra("ray", "--ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers
        import ray

        self._ray, self._task, self._timeout = ray, task, timeout
        self._started = not ray.is_initialized()
        if self._started:
            try:
                ray.init(
                    address=None if address == "local" else address,
                    log_to_driver=False,
                    logging_level="error",
                )
            except ConnectionError as error:
                raise InputError(f"--ray {address}: there is no cluster ({error})") from error
        self._remote = ray.remote(num_cpus=1, max_retries=RETRIES)(attempt)

    def outcomes(self, specs: Sequence[str]) -> Iterator[tuple[int, Outcome]]:
        """The outcome of each spec by its place, as they come."""
        ray = self._ray
        task = dataclasses.asdict(self._task)
        running = {self._remote.remote(task, spec): k for k, spec in enumerate(specs)}
        while running:
            done, _ = ray.wait(list(running), timeout=self._timeout)
            if not done:  # nothing came for as long as one may take
                for ref, k in running.items():
                    with contextlib.suppress(Exception):
                        ray.cancel(ref, force=True)
                    yield k, Outcome(reason=f"it took longer than {self._timeout:g} s")
                return
            for ref in done:
                yield running.pop(ref), self._outcome(ref)

    def _outcome(self, ref: Any) -> Outcome:
        try:
            return Outcome(**self._ray.get(ref))
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            return Outcome(reason=f"its machine or process was lost: {first[0]}")

    def close(self) -> None:
        """Let go of the cluster; it goes on."""
        if self._started:
            self._ray.shutdown()


def attempt(task: dict[str, Any], spec: str) -> dict[str, Any]:
    """One trial, wherever it runs: the task as plain data in, the outcome as plain data out."""
    try:
        outcome = _bench(Task.from_json(task)).attempt(spec)
    except GraphOptError as error:
        outcome = Outcome(reason=f"{type(error).__name__}: {error}")
    return dataclasses.asdict(outcome)


@cache
def _bench(task: Task) -> Bench:
    """The source prepared, once in each of Ray's processes."""
    return Bench(task)
