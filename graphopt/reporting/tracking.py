"""Experiment tracking: scalars by step, as TensorBoard event files or to MLflow.

tensorboard:DIR   event files in DIR                                  (extra `tensorboard`)
mlflow:URI        a run of the experiment "graphopt", on a server or  (extra `mlflow`)
                  in a folder; nothing is sent anywhere else
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from graphopt.errors import InputError, MissingExtra, UsageError

__all__ = ["Scalar", "tracked"]

logger = logging.getLogger("graphopt")

#: Called with (name, value, step).
Scalar = Callable[[str, float, int], None]
EXPERIMENT = "graphopt"
#: What MLflow is told at once: a request a step would take longer than the step.
SECONDS, MOST = 2.0, 500


class _Writer(Protocol):
    def scalar(self, name: str, value: float, step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


def untracked(name: str, value: float, step: int) -> None:
    """A scalar that nobody keeps."""


@contextmanager
def tracked(where: str | None) -> Iterator[Scalar]:
    """Where scalars go while this lasts.

    Args:
        where: `tensorboard:DIR` or `mlflow:URI`; None keeps nothing.

    Raises:
        UsageError: another kind of place.
        MissingExtra: its package is not installed.
        InputError: it cannot be opened.
    """
    if where is None:
        yield untracked
        return
    kind, _, place = where.partition(":")
    if kind not in _KINDS or not place:
        raise UsageError(f"--track {where!r}: write tensorboard:DIR or mlflow:URI")
    if find_spec(kind) is None:
        raise MissingExtra(kind, f"--track {where}")
    try:
        writer = _KINDS[kind](place)
    except Exception as error:  # of their own, of many kinds
        raise InputError(f"--track {where} cannot be opened: {_line(error)}") from error
    failed = True
    try:
        yield _careful(writer, where)
        failed = False
    finally:
        try:
            writer.close(failed)
        except Exception as error:
            logger.warning("--track %s was not written to its end: %s", where, _line(error))


def _careful(writer: _Writer, where: str) -> Scalar:
    """Hours of work do not end because a server does: its first failure is told, and ends this."""
    broken = False

    def scalar(name: str, value: float, step: int) -> None:
        nonlocal broken
        if broken or not math.isfinite(value):
            return
        try:
            writer.scalar(name, value, step)
        except Exception as error:
            broken = True
            logger.warning("--track %s ends here: %s", where, _line(error))

    return scalar


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


class _TensorBoard:
    def __init__(self, place: str) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(Path(place)))

    def scalar(self, name: str, value: float, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self, failed: bool) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, place: str) -> None:
        # MLflow reports its use to its makers, and keeps folders only if asked, unless these say
        # otherwise; who sets them is heard
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=place)
        known = self._client.get_experiment_by_name(EXPERIMENT)
        where = known.experiment_id if known else self._client.create_experiment(EXPERIMENT)
        self._run = self._client.create_run(where).info.run_id
        self._waiting: list[Any] = []
        self._told = time.monotonic()

    def scalar(self, name: str, value: float, step: int) -> None:
        from mlflow.entities import Metric

        self._waiting.append(Metric(name, value, int(time.time() * 1000), step))
        if len(self._waiting) >= MOST or time.monotonic() > self._told + SECONDS:
            self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._client.log_batch(self._run, metrics=waiting)
        self._told = time.monotonic()

    def close(self, failed: bool) -> None:
        self._tell()
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


_KINDS: dict[str, Callable[[str], _Writer]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}
