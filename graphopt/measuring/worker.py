"""Worker process: a lowered model opened as it is deployed, alone, timed when asked.

Two models in one process share its threads and caches, and a pool that spins for one of them slows
the other: on small models that is worth a factor of two. Where a time is told to a user, or decides
what is deployed, each model has a process of its own, and they take turns in bursts of runs.
Between its turns a process is stopped: ONNX Runtime's threads spin for 50 ms after a run, on a
processor that another model needs. It dies with its parent, also while it is stopped and whatever
kills the parent, and imports nothing from the working folder.
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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.backend import Arrays, Session, named_backend
from graphopt.blame import described
from graphopt.children import child_command
from graphopt.deploy.manifest import Manifest, manifest_from
from graphopt.deploy.sessions import open_manifest
from graphopt.errors import GraphOptError, ModelError
from graphopt.measuring.footprint import Weight, weigh
from graphopt.measuring.statistics import Array
from graphopt.samples.rows import cut
from graphopt.target import Target

__all__ = ["Served", "all_served", "alternate", "keep_feeds", "serve", "served"]

BURST = 0.02  # seconds of one turn: long enough for caches and clocks to settle
LONG = 0.1  # seconds of runs that tell as much as several short ones, warm or timed
MIN_ROUNDS, MIN_RUNS, WARM_RUNS = 5, 3, 2


@dataclasses.dataclass
class Served:
    """A model being served; `weight` is what opening it and one run cost."""

    process: subprocess.Popen[str]
    weight: Weight

    def burst(self) -> list[float]:
        """Milliseconds of the runs of one turn; one or two before it are not told."""
        self.resume()
        try:
            return [float(t) for t in self._ask(repr(BURST))]
        finally:
            self.stop()

    def stop(self) -> None:
        """Let no thread of the process run until `resume` (where there is no SIGSTOP they spin)."""
        self._signal("SIGSTOP")
        if hasattr(os, "waitid"):  # it takes a moment
            with contextlib.suppress(ChildProcessError):
                how = os.WSTOPPED | os.WEXITED | os.WNOWAIT
                os.waitid(os.P_PID, self.process.pid, how)

    def resume(self) -> None:
        """Let its threads run on."""
        self._signal("SIGCONT")

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):
            self.process.send_signal(getattr(signal, name))

    def _ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone: then it says nothing either
            if line:
                self.process.stdin.write(f"{line}\n")
                self.process.stdin.flush()
        said = self.process.stdout.readline()
        if said:
            return json.loads(said)
        self.process.wait()
        raise ModelError(f"its process ended with exit code {self.process.returncode}")


@contextmanager
def served(
    path: Path,
    target: Target,
    feeds_file: Path,
    manifest: Manifest | None = None,
    *,
    rows: int = 0,
) -> Iterator[Served]:
    """The artifact at `path`, open in a process of its own until the block ends.

    Args:
        path: what a backend lowered.
        target: where it runs, with how many threads.
        feeds_file: an .npz file with its inputs.
        manifest: opens it so; None leaves that to the target's backend.
        rows: every run takes the next so many rows of the inputs; 0: all.

    Raises:
        ModelError: it does not open or run there.
    """
    how = json.dumps(dataclasses.asdict(manifest)) if manifest is not None else ""
    where = (target.backend, target.name, str(target.threads))
    arguments = [str(path), *where, str(feeds_file), str(rows), how]
    command = [*child_command("graphopt.measuring.worker", "main"), *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, **pipes) as process:
        try:
            made = Served(process, Weight(0.0, None))
            first = made._ask("")
            if "error" in first:
                raise ModelError(first["error"])
            made.weight = Weight(**first)
            made.stop()
            yield made
        finally:
            process.kill()  # it has nothing to finish, and may be stopped


def alternate(
    models: Sequence[Served],
    seconds: float,
    *,
    seed: int = 0,
    enough: Callable[[Array], bool] | None = None,
) -> tuple[Array, list[list[float]]]:
    """Let models take turns in random order; median milliseconds per round, and all single runs.

    Rounds end after `seconds`, or when `enough` says so of the rounds so far.

    The first column comes again at the end, from the first model's second turn in each round, as
    `graphopt.measuring.statistics.compare_times` wants it.
    """
    rng = np.random.default_rng(seed)
    turns = [*range(len(models)), 0]
    singles: list[list[float]] = [[] for _ in models]
    rows: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rows) < MIN_ROUNDS or time.perf_counter() < end:
        row = [0.0] * len(turns)
        for k in rng.permutation(len(turns)):
            times = models[turns[k]].burst()
            singles[turns[k]] += times
            row[k] = float(np.median(times))
        rows.append(row)
        if enough is not None and enough(np.array(rows)):
            break
    return np.array(rows), singles


def keep_feeds(feeds: Arrays, folder: Path) -> Path:
    """The inputs in a file in `folder`, where a process that serves a model finds them."""
    file = folder / "feeds.npz"
    np.savez(file, **dict(feeds))  # type: ignore[arg-type]
    return file


@contextmanager
def all_served(
    models: Sequence[tuple[Path, Target, Manifest | None]], feeds: Arrays, folder: Path
) -> Iterator[list[Served]]:
    """Several models, each in its own process, on the same inputs (kept in `folder`)."""
    file = keep_feeds(feeds, folder)
    with ExitStack() as stack:
        yield [
            stack.enter_context(served(path, target, file, manifest))
            for path, target, manifest in models
        ]


def serve(session: Session, runs: Sequence[Arrays], lines: Iterator[str]) -> Iterator[list[float]]:
    """Answer every line, a number of seconds, with the milliseconds of the runs it took in turn."""
    following = cycle(runs)
    for line in lines:
        warm = time.perf_counter() + LONG
        for _ in range(WARM_RUNS):
            session(next(following))
            if time.perf_counter() > warm:
                break
        times: list[float] = []
        start = time.perf_counter()
        while time.perf_counter() - start < (LONG if len(times) < MIN_RUNS else float(line)):
            feeds = next(following)
            began = time.perf_counter()
            session(feeds)
            times.append((time.perf_counter() - began) * 1e3)
        yield times


def main() -> None:
    """Serve ARTIFACT on BACKEND's TARGET with THREADS, on ROWS of FEEDS, as MANIFEST says."""
    # what runtimes print goes where errors go; the lines of this protocol have the pipe alone
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    path, code, name, threads, file, rows, how = sys.argv[1:]
    tempfile.tempdir = str(Path(file).parent)  # the parent removes it, however this process ends
    with np.load(file) as given:
        runs = list(cut([{name: given[name] for name in given.files}], int(rows)))
    try:
        backend = named_backend(code)
        assert backend is not None
        found = backend.target(name)
        target = dataclasses.replace(found, backend=code, threads=int(threads))
        manifest = manifest_from(json.loads(how)) if how else None
        opener = partial(open_manifest, Path(path), manifest) if manifest else None
        weight, session = weigh(Path(path), target, runs[0], opener)
    except Exception as error:  # runtimes raise of every kind; the parent makes a ModelError of it
        text = str(error) if isinstance(error, GraphOptError) else described(error)
        print(json.dumps({"error": text}), file=said, flush=True)
        return
    print(json.dumps(dataclasses.asdict(weight)), file=said, flush=True)
    for times in serve(session, runs, iter(sys.stdin)):
        print(json.dumps(times), file=said, flush=True)
