"""Memory footprint and load time of one lowered model."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from graphopt.backend import Arrays, Session, backend_of
from graphopt.target import Target

__all__ = ["Weight", "weigh"]


STATUS = Path("/proc/self/status")


@dataclasses.dataclass(frozen=True)
class Weight:
    """Milliseconds to open a model, and bytes by which opening and one run raised peak memory.

    `memory_bytes` is None where the system does not tell.
    """

    load_ms: float
    memory_bytes: int | None


def weigh(
    path: Path,
    target: Target,
    feeds: Arrays,
    opener: Callable[[], Session] | None = None,
) -> tuple[Weight, Session]:
    """Open (by `opener`, or as the target's backend does) and run once, in this process.

    Another model is opened before: runtimes load slowly. Call it in a process that has done nothing
    else (`graphopt.measuring.worker`): memory is that of the whole process.
    """
    backend = backend_of(target)
    assert backend is not None
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        nothing = ir.from_onnx_text(
            '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) {y = Relu(x)}'
        )
        backend.session(backend.lower(nothing, target, Path(folder, "model.onnx")), target)
    before = resident(reset=True)
    began = time.perf_counter()
    session = opener() if opener is not None else backend.session(path, target)
    took = time.perf_counter() - began
    session(feeds)
    after = resident()
    memory = after - before if before is not None and after is not None else None
    return Weight(took * 1e3, memory), session


def resident(*, reset: bool = False) -> int | None:
    """Most bytes this process has had resident; None where there is no /proc to tell.

    `reset` makes the peak start again from what is resident now.
    """
    if not STATUS.is_file():
        return None
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(t for t in STATUS.read_text().splitlines() if t.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
