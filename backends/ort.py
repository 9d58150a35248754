"""What the built-in backends share: the opset ONNX Runtime accepts, timing and node times."""

from __future__ import annotations

import abc
import dataclasses
import json
import statistics
import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path

import onnx

from graphopt.backend import Arrays, Timing
from graphopt.deploy.manifest import Manifest
from graphopt.deploy.runtime import BESIDE, open_cpu
from graphopt.deploy.sessions import OpenVinoSession, OrtSession, open_manifest
from graphopt.measuring.statistics import time_pair
from graphopt.target import Target

__all__ = ["OrtBackend", "accepted_opset"]

PROFILE_RUNS = 5


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
        """Milliseconds per node of the graph that the runtime ran, median over five runs."""
        return _node_times(path, self.how(path, target), feeds)


def _beside(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, config={**manifest.config, **BESIDE})


def _node_times(path: Path, manifest: Manifest, feeds: Arrays) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        opened = open_manifest(path, manifest, profile=Path(folder, "profile"))
        if isinstance(opened, OpenVinoSession):
            return _openvino_times(opened, feeds)
        for _ in range(PROFILE_RUNS + 1):
            opened(feeds)
        events = json.loads(Path(opened.raw.end_profiling()).read_text())
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e3)
    return {n: statistics.median(t[1:] or t) for n, t in times.items()}


def _openvino_times(opened: OpenVinoSession, feeds: Arrays) -> dict[str, float]:
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(PROFILE_RUNS + 1):
        opened(feeds)
        for event in opened.request.profiling_info:
            if event.status.name == "EXECUTED":
                times[event.node_name].append(event.real_time.total_seconds() * 1e3)
    return {n: statistics.median(t[1:] or t) for n, t in times.items()}
