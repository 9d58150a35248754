"""Weighing: load time and memory of one lowered model, in a process that does nothing else."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.backend import Arrays, backend_of, find_target
from graphopt.errors import ModelError
from graphopt.target import Target

__all__ = ["Weight", "in_fresh_process"]


STATUS = Path("/proc/self/status")


@dataclasses.dataclass(frozen=True)
class Weight:
    """Milliseconds to open a model, and bytes by which opening and one run raised peak memory.

    `memory_bytes` is None where the system does not tell.
    """

    load_ms: float
    memory_bytes: int | None


def in_fresh_process(path: Path, target: Target, feeds: Arrays, folder: Path) -> Weight:
    """Weigh the artifact at `path`; `folder` takes the inputs. Raises ModelError if that fails."""
    np.savez(folder / "feeds.npz", **dict(feeds))  # type: ignore[arg-type]
    asked = [str(path), target.name, str(target.threads), str(folder / "feeds.npz")]
    done = subprocess.run(
        [sys.executable, "-m", "graphopt.weighing", *asked],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ModelError(f"opening it in a fresh process failed: {said[0]}")
    return Weight(**json.loads(done.stdout.splitlines()[-1]))


def weigh(path: Path, target: Target, feeds: Arrays) -> Weight:
    """Open and run once, in this process. Another model is opened before: runtimes load slowly."""
    backend = backend_of(target)
    assert backend is not None
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        nothing = ir.from_onnx_text(
            '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) {y = Relu(x)}'
        )
        backend.session(backend.lower(nothing, target, Path(folder, "model.onnx")), target)
    before = resident(reset=True)
    began = time.perf_counter()
    session = backend.session(path, target)
    took = time.perf_counter() - began
    session(feeds)
    after = resident()
    return Weight(took * 1e3, after - before if before is not None and after is not None else None)


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


def main(arguments: list[str]) -> None:
    """`python -m graphopt.weighing ARTIFACT TARGET THREADS FEEDS`: print the weight as JSON."""
    path, name, threads, file = arguments
    target = dataclasses.replace(find_target(name), threads=int(threads))
    with np.load(file) as given:
        feeds = {name: given[name] for name in given.files}
    sys.stdout.write(json.dumps(dataclasses.asdict(weigh(Path(path), target, feeds))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
