"""Peak memory and time of calibration by the number of samples, for every method.

    python bench/calibration.py --models DIR [--counts 100 1000 10000] --out OUT [--plot]

DIR holds NAME.onnx (one float input, images). Every row is a process of its own; memory is the
process's peak above what it held before calibrating. Samples are drawn on the fly, so that the
samples themselves take no memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np


class Images:
    """`count` random images in batches, drawn when they are read."""

    synthetic = False

    def __init__(self, name, shape, count, batch):
        self.name, self.shape, self.count, self.batch = name, shape, count, batch

    def __iter__(self):
        rng = np.random.default_rng(0)
        for start in range(0, self.count, self.batch):
            rows = min(self.batch, self.count - start)
            yield {self.name: rng.standard_normal((rows, *self.shape)).astype(np.float32)}


def resident(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def child(path, method, count, batch, pipe):
    from graphopt.passes.int8.plan import make_plan
    from graphopt.passes.int8.plan_grids import observed

    from graphopt.backend import find_target
    from graphopt.calibration.ranges import calibrate
    from graphopt.formats import load

    model = load(path)
    value = model.graph.inputs[0]
    free = not isinstance(value.shape[0], int)
    shape = [d if isinstance(d, int) else 32 for d in value.shape][1:]
    names = observed(make_plan(model.graph, find_target("cpu"), lambda node, mode: None))
    calibrate(model, names, Images(value.name, shape, 1, 1), method)  # the model's own need
    before = resident("VmHWM")
    began = time.perf_counter()
    calibrate(model, names, Images(value.name, shape, count, batch if free else 1), method)
    pipe.send(
        {
            "values": len(names),
            "seconds": time.perf_counter() - began,
            "own_mb": before,
            "above_mb": resident("VmHWM") - before,
        }
    )


def row(path, method, count, batch):
    context = multiprocessing.get_context("spawn")
    ends, begins = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(path, method, count, batch, begins))
    process.start()
    begins.close()
    result = ends.recv()
    process.join()
    return {"model": path.stem, "method": method, "samples": count, **result}


def plot(rows, path):
    """Peak memory above the model's own need over the number of samples."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6))
    lines = {}
    for r in rows:
        lines.setdefault((r["model"], r["method"]), []).append((r["samples"], r["above_mb"]))
    for (model, method), points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=f"{model}, {method}")
    axes.set(xscale="log", xlabel="samples", ylabel="MB above the model's own need")
    axes.set_ylim(0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--counts", nargs="*", type=int, default=[100, 1000, 10000])
    parser.add_argument("--methods", nargs="*", default=["minmax", "percentile", "entropy", "mse"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", help="add to OUT.json, write OUT.md")
    parser.add_argument("--plot", action="store_true", help="draw OUT.png (needs matplotlib)")
    args = parser.parse_args()
    stored = args.out and Path(args.out).with_suffix(".json")
    rows = json.loads(stored.read_text()) if stored and stored.exists() else []
    for path in sorted(Path(args.models).glob("*.onnx")):
        if args.only and path.stem not in args.only:
            continue
        for method in args.methods:
            for count in args.counts:
                made = row(path, method, count, args.batch)
                same = ("model", "method", "samples")
                rows = [r for r in rows if any(r[k] != made[k] for k in same)] + [made]
                print(made, flush=True)
    lines = [
        "Peak memory above what one sample needs, by the number of samples "
        "(`python bench/calibration.py`).",
        "",
        "| model | method | values | samples | seconds | own need MB | above it MB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['model']} | {r['method']} | {r['values']} | {r['samples']} | {r['seconds']:.1f} | "
        f"{r['own_mb']:.0f} | {r['above_mb']:.0f} |"
        for r in rows
    ]
    print("\n".join(lines))
    if args.out:
        Path(args.out).with_suffix(".md").write_text("\n".join(lines) + "\n")
        Path(args.out).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        if args.plot:
            plot(rows, Path(args.out).with_suffix(".png"))


if __name__ == "__main__":
    main()
