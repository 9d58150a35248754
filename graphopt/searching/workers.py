"""Workers: processes that evaluate trials, each of which may raise, hang or be killed.

A worker prepares the source once and then answers one line, a spec, with one line, an outcome. One
that dies costs the trial it had; another takes its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, Protocol

from graphopt.children import child_command
from graphopt.errors import GraphOptError
from graphopt.searching.trial import Bench, Outcome, Task

__all__ = ["Here", "Processes", "Workers"]


class Workers(Protocol):
    """Whoever evaluates trials."""

    def outcomes(self, specs: Sequence[str]) -> Iterator[tuple[int, Outcome]]:
        """The outcome of each spec by its place, as they come."""
        ...

    def close(self) -> None:
        """End them."""
        ...


class Here:
    """Trials in this process, one after another: what functions and arrays in memory need."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def outcomes(self, specs: Sequence[str]) -> Iterator[tuple[int, Outcome]]:
        """See `Workers`."""
        for k, spec in enumerate(specs):
            yield k, self._bench.attempt(spec)

    def close(self) -> None:
        """See `Workers`."""


class Processes:
    """Worker processes on this machine.

    Args:
        task: what all trials share.
        count: how many.
        timeout: seconds a trial may take, or None.
    """

    def __init__(self, task: Task, count: int, timeout: float | None) -> None:
        self._task, self._timeout = task, timeout
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._all: set[_Process] = set()
        self._pool = ThreadPoolExecutor(count)
        for _ in range(count):
            self._idle.put(_Process())

    def outcomes(self, specs: Sequence[str]) -> Iterator[tuple[int, Outcome]]:
        """See `Workers`."""
        running: dict[Future[Outcome], int] = {
            self._pool.submit(self._one, spec): k for k, spec in enumerate(specs)
        }
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED, timeout=0.5)
            for future in done:
                yield running.pop(future), future.result()

    def _one(self, spec: str) -> Outcome:
        process = self._idle.get()
        self._all.add(process)
        try:
            return process.ask(self._task, spec, self._timeout)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """See `Workers`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._all):
            process.kill()
        self._pool.shutdown()


class _Process:
    """One worker, started when it is first asked and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def ask(self, task: Task, spec: str, timeout: float | None) -> Outcome:
        """The outcome of a spec, or why there is none."""
        if self._process is None or self._process.poll() is not None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            command = child_command("graphopt.searching.workers", "main")
            # its temporary files lie where this process can remove them: it may be killed
            self._folder = tempfile.TemporaryDirectory(prefix="graphopt-")
            where = {**os.environ, "TMPDIR": self._folder.name}
            self._process = subprocess.Popen(command, text=True, env=where, **pipes)
            self._send(json.dumps(dataclasses.asdict(task)))
        process = self._process
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(timeout, end) if timeout else None
        if clock is not None:
            clock.start()
        try:
            self._send(json.dumps(spec))
            assert process.stdout is not None
            said = process.stdout.readline()
        finally:
            if clock is not None:
                clock.cancel()
        if said:
            return Outcome(**json.loads(said))
        code = self._ended(process)
        self._process = None
        if late.is_set():
            return Outcome(reason=f"it took longer than --trial-timeout {timeout:g}")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Outcome(reason=f"its process ended ({how})")

    def _send(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone: then it says nothing either
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            self._ended(process)

    def _ended(self, process: subprocess.Popen[str]) -> int:
        """Wait for the end of a process, close its pipes, remove its files; its exit code."""
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
        return code


def main() -> None:
    """Answer specs on standard input with outcomes: JSON lines; the first line is the task."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what evaluations and runtimes print goes where errors go
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    lines = iter(sys.stdin)
    task = Task.from_json(json.loads(next(lines)))
    bench: Bench | None = None
    for line in lines:
        try:
            bench = bench or Bench(task)
            outcome = bench.attempt(json.loads(line))
        except (GraphOptError, MemoryError) as error:
            outcome = Outcome(reason=f"{type(error).__name__}: {error}")
        print(json.dumps(dataclasses.asdict(outcome)), file=said, flush=True)
