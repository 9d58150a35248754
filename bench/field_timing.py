"""CPU time of models over recorded runs: one thread, interleaved, each in a process of its own.

    python bench/field_timing.py MODEL SAMPLES

A worker reads a line, runs all samples once, and answers with its CPU seconds.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any


def ratios(python: Path, models: list[Path], samples: Path, seconds: float) -> list[dict[str, Any]]:
    """For every model after the first: how many times faster than the first it is.

    The rounds go on for `seconds`, at least five; in each, all take a turn in random order, and a
    round's ratio is of its own two times. Returns the median ratio as `speed` with the quartiles.
    """
    command = [str(python), __file__]
    workers = [
        subprocess.Popen(
            [*command, str(model), str(samples)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for model in models
    ]
    try:
        rounds: list[list[float]] = []
        end, order = time.monotonic() + seconds, random.Random(0)
        while len(rounds) < 6 or time.monotonic() < end:
            took = [0.0] * len(workers)
            for k in order.sample(range(len(workers)), len(workers)):
                took[k] = turn(workers[k])
            rounds.append(took)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    found = []
    for k in range(1, len(models)):
        speeds = sorted(r[0] / r[k] for r in rounds[1:])  # the first round warms up
        found.append(
            {
                "speed": median(speeds),
                "quartiles": [speeds[len(speeds) // 4], speeds[-1 - len(speeds) // 4]],
            }
        )
    return found


def turn(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    said = worker.stdout.readline()
    return float(said) if said else float("nan")


def serve(model: str, samples: str) -> None:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = []
    for path in sorted(Path(samples).glob("*.npz")):
        with np.load(path) as data:
            feeds.append({k: data[k] for k in data.files})
    for _ in sys.stdin:
        began, passes = time.process_time(), 0
        while not passes or time.process_time() - began < 0.05:
            for feed in feeds:
                session.run(None, feed)
            passes += 1
        print((time.process_time() - began) / passes, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
