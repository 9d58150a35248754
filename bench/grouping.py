"""Seconds and memory to find every prunable dimension of a model.

    python bench/grouping.py --models DIR [--out bench/results/grouping.md]

The models of DIR, and an encoder of 92 layers as older exporters wrote it (10,000 nodes, every size
computed; see encoder.py). Each in a process of its own, best of three: *shapes* are inferred first,
*dimensions* are the equations, their solution and the description of what is free. Memory is what
the process took beyond loading the model (mapped weights are not counted).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import onnx_ir as ir
from encoder import build

import graphopt
from graphopt import Context
from graphopt.analyses.dims import dimensions
from graphopt.analyses.shapes.analysis import shapes


def anonymous() -> int:
    """Bytes of memory of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def measure(path: str) -> dict[str, object]:
    model = build(92, 128) if path == "encoder92" else graphopt.load(path)
    before, best = anonymous(), (float("inf"), float("inf"))
    for _ in range(3):
        ctx = Context(model)
        began = time.perf_counter()
        ctx.get(shapes)
        middle = time.perf_counter()
        found = ctx.get(dimensions)
        best = min(best, (time.perf_counter() - middle, middle - began))
    taken = anonymous() - before
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    nodes = sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))
    return {
        "nodes": nodes, "dims": len(found.prunable), "shapes": best[1], "grouping": best[0],
        "memory": taken / 1e6, "size": size / 1e6,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help="measure this model alone, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return 0
    rows = [
        "| model | nodes | dimensions | shapes s | dimensions s | memory MB | model MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in (*map(str, sorted(args.models.glob("*.onnx"))), "encoder92"):
        command = [sys.executable, __file__, "--one", path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        r = json.loads(done.stdout)
        rows.append(
            f"| {Path(path).stem} | {r['nodes']} | {r['dims']} | {r['shapes']:.2f} "
            f"| {r['grouping']:.2f} | {r['memory']:.0f} | {r['size']:.0f} |"
        )
        print(rows[-1], flush=True)
    if args.out:
        head, *about = (p for p in __doc__.split("\n\n") if not p.startswith("    "))
        text = [head, *(" ".join(p.split()) for p in about), "\n".join(rows)]
        args.out.write_text("\n\n".join(text) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
