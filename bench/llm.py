#!/usr/bin/env python3
"""A decoder of 7 billion parameters in half precision: time and memory of passes, tokens a second.

    python bench/llm.py --work DIR [--specs SPEC ...] [--rows 64] [--layers 32 --hidden 4096 ...]

Builds the model with random weights under DIR (13.5 GB, kept), runs every spec in a process of its
own, and decodes with its result. With `--rows` passes get so many rows of random tokens as samples
(`weight_only` rounds for them). *Held* is the most anonymous memory of the process: pages mapped
from files, which the system can drop, are not counted. The last result is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from llm_model import Shape, build

GRAPHOPT = [sys.executable, "-P", "-m", "graphopt"]
#: Tokens of a row of samples.
LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--specs", nargs="*", default=["clean,fold,fuse", "weight_only"])
    parser.add_argument("--rows", type=int, default=0, help="samples, of 256 tokens each")
    parser.add_argument("--tokens", type=int, default=24)
    for field in dataclasses.fields(Shape)[:-1]:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    args = vars(parser.parse_args())
    work, specs, rows, tokens = (args.pop(name) for name in ("work", "specs", "rows", "tokens"))
    shape = Shape(**args)
    source = work / "source" / "model.onnx"
    needed = 3 * 2 * shape.layers * shape.hidden * (4 * shape.hidden + 3 * shape.inner)
    work.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        if shutil.disk_usage(work).free < needed:
            raise SystemExit(f"{work} lacks {needed / 1e9:.0f} GB of free space")
        build(shape, source)
    given = []
    if rows:
        ids = np.random.default_rng(0).integers(0, shape.vocabulary, (rows, LENGTH))
        np.savez(work / "tokens.npz", input_ids=ids)
        # of random weights no token is sure: what the result says is not judged
        given = ["--samples", str(work / "tokens.npz"), "--max-disagreement", "none"]
    print(
        "| spec | wall s | CPU s | held GB | size GB | edits proved | new tokens/s | of roofline |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for spec in specs:
        print(
            "| " + " | ".join([spec, *row(spec, source, given, work / "result", tokens)]) + " |",
            flush=True,
        )


def row(spec: str, source: Path, given: list[str], folder: Path, tokens: int) -> list[str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    out, report = folder / "model.onnx", folder / "report.json"
    command = [*GRAPHOPT, "optimize", str(source), "-p", spec, *given, "--no-measure"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, held = time.perf_counter(), 0
    with subprocess.Popen(
        [*command, "-o", str(out), "--report", str(report)], stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            held = max(held, anonymous(process.pid))
            time.sleep(0.05)
    wall = time.perf_counter() - began
    if process.returncode:
        return [f"exit {process.returncode}"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = sum(f.stat().st_size for f in folder.iterdir() if f.name.startswith("model.onnx"))
    told = json.loads(report.read_text())
    proved = sum((step["evidence"] or {}).get("proved", 0) for step in told["steps"])
    edits = sum(sum((step["evidence"] or {}).values()) for step in told["steps"])
    figures = [f"{wall:.0f}", f"{cpu:.0f}", f"{held / 1e9:.2f}", f"{size / 1e9:.2f}"]
    figures.append(f"{proved} of {edits}" if edits else "-")
    if size > 8e9:  # float copies of half weights do not fit
        return [*figures, "-", "-"]
    command = [*GRAPHOPT, "bench", str(out), "--tokens", str(tokens), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (found,) = json.loads(said)["rows"]
    share = found["new_per_second"] / found["roofline"]
    return [*figures, f"{found['new_per_second']:.2f}", f"{share:.0%}"]


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory that a process holds."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(t.split()[1]) * 1024 for t in lines if t.startswith("RssAnon"))


if __name__ == "__main__":
    main()
