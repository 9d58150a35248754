"""What the built-in backends share: the opset ONNX Runtime accepts, timing and node times."""

from __future__ import annotations

import abc
import dataclasses
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.backend import Arrays, Timing
from graphopt.deploy.manifest import Manifest
from graphopt.deploy.opened import OpenVinoSession, OrtSession
from graphopt.deploy.runtime import BESIDE, open_cpu, session_options
from graphopt.deploy.sessions import open_manifest
from graphopt.measuring.statistics import time_pair
from graphopt.target import Target

__all__ = ["OrtBackend", "accepted_opset"]

#: Seconds that a profile takes at most beyond its first runs; the fewest and the most runs.
PROFILE_SECONDS, PROFILE_RUNS = 0.2, (6, 200)
#: Nodes of the chain that what recording takes is measured on.
CHAIN = 64


@cache
def accepted_opset() -> int:
    """The newest default-domain opset that the installed ONNX Runtime opens (and `onnx` knows)."""
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    for opset in range(int(onnx.defs.onnx_opset_version()), 17, -1):
        text = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[1] x) => (float[1] y) '
        model = onnx.parser.parse_model(text + "{ y = Relu(x) }").SerializeToString()
        try:
            open_cpu(model)
        except Fail:
            continue
        return opset
    return 17


class OrtBackend(abc.ABC):
    """A backend whose artifacts ONNX Runtime, or OpenVINO itself, opens as a manifest says."""

    @abc.abstractmethod
    def how(self, path: Path, target: Target) -> Manifest:
        """How the artifact at `path` is opened."""

    def session(
        self, path: Path, target: Target, *, beside: bool = False
    ) -> OrtSession | OpenVinoSession:
        """Open a model alone, or beside others that run in turn with it."""
        manifest = self.how(path, target)
        return open_manifest(path, _beside(manifest) if beside else manifest)

    def measure(self, a: Path, b: Path, feeds: Arrays, target: Target, seconds: float) -> Timing:
        """Time two models on the same feeds in interleaved pairs, both opened as `a` is.

        Where the model is small enough `a` is opened twice, so that the spread of the model against
        itself includes what a session's place in memory does.
        """
        manifest = _beside(self.how(a, target))
        first, second = open_manifest(a, manifest), open_manifest(b, manifest)
        small = sum(f.stat().st_size for f in (a, b)) < 2**28
        third = open_manifest(a, manifest) if small else first
        return time_pair(
            lambda: first(feeds), lambda: second(feeds), seconds, again=lambda: third(feeds)
        )

    def profile(self, path: Path, feeds: Arrays, target: Target) -> dict[str, float]:
        """Milliseconds per node of the graph that the runtime ran, in one run."""
        return _node_times(path, self.how(path, target), feeds)


def _beside(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, config={**manifest.config, **BESIDE})


def _node_times(path: Path, manifest: Manifest, feeds: Arrays) -> dict[str, float]:
    """Milliseconds by node in the quicker half of its runs, in the order of execution.

    To write down what a node took takes microseconds itself, which are taken off again.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        opened = open_manifest(path, manifest, profile=Path(folder, "profile"))
        if isinstance(opened, OpenVinoSession):
            return _openvino_times(opened, feeds)
        opened(feeds)
        runs = len(_timed(opened, feeds))
        found = _node_events(Path(opened.raw.end_profiling()))
    recording = _recording()
    times = {}
    for name, spent in found.items():
        often = len(spent) // (runs + 1)  # a loop's body runs many times in one run
        if len(spent) != often * (runs + 1):  # and a branch in some runs alone
            times[name] = sum(spent) / (runs + 1)
            continue
        ms = _quicker(np.reshape(spent, (runs + 1, often))[1:].sum(axis=1).tolist())
        times[name] = max(ms - often * recording, 0.1 * ms)
    return times


@cache
def _recording() -> float:
    """Milliseconds that a node seems to take longer where it is recorded.

    What a chain of tiny nodes takes for each of them by its profile, less what it takes if nobody
    watches.
    """
    feeds = {"v0": np.zeros(1, np.float32)}
    one, many = (_chain(n) for n in (1, CHAIN))
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        options = session_options(optimize=False, threads=1)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        watched = open_cpu(many, options)
        for _ in range(PROFILE_RUNS[1]):
            watched.run(None, feeds)
        seen = _node_events(Path(watched.end_profiling()))
    whole = []
    for model in (one, many):
        session = open_cpu(model, session_options(optimize=False, threads=1))
        whole.append(_quicker(_timed(partial(session.run, None), feeds)))
    node = statistics.mean(_quicker(t) for t in seen.values())
    return max(0.0, node - (whole[1] - whole[0]) / (CHAIN - 1))


def _chain(nodes: int) -> bytes:
    """A model of `nodes` operators that do next to nothing, one after the other."""
    body = "".join(f"v{k + 1} = Neg(v{k}) " for k in range(nodes))
    text = f'<ir_version: 8, opset_import: ["": 13]> g (float[1] v0) => (float[1] v{nodes}) '
    return bytes(onnx.parser.parse_model(text + "{" + body + "}").SerializeToString())


def _node_events(path: Path) -> dict[str, list[float]]:
    """Milliseconds of each execution of each node in a profile, in the order of execution."""
    found: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(path.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e3)
    return found


def _quicker(times: Sequence[float]) -> float:
    """The mean of the quicker half."""
    return statistics.mean(sorted(times)[: (len(times) + 1) // 2])


def _timed(call: Callable[[Arrays], Any], feeds: Arrays) -> list[float]:
    """Milliseconds of each of some runs."""
    times: list[float] = []
    fewest, most = PROFILE_RUNS
    while len(times) < fewest or (len(times) < most and sum(times) < 1e3 * PROFILE_SECONDS):
        began = time.perf_counter()
        call(feeds)
        times.append(1e3 * (time.perf_counter() - began))
    return times


def _openvino_times(opened: OpenVinoSession, feeds: Arrays) -> dict[str, float]:
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(PROFILE_RUNS[0]):
        opened(feeds)
        for event in opened.request.profiling_info:
            if event.status.name == "EXECUTED":
                times[event.node_name].append(event.real_time.total_seconds() * 1e3)
    return {n: statistics.median(t[1:] or t) for n, t in times.items()}
