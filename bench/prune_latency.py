"""What pruning half of the MACs does to latency: graphs fused, widths at the channel multiple.

    python bench/prune_latency.py --models DIR [--target cpu] [--seconds 60] [--out bench/results]

DIR holds `NAME.onnx` with inputs `NAME.npz` (arrays `in:NAME`). Weights may be random: units are
chosen by their L2 norm. Both models are timed in interleaved pairs; *share* is the latency that
went over the MACs that went.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from graphopt.passes.fuse import Fuse
from graphopt.passes.prune import Prune

from graphopt import Context, load
from graphopt.analyses.cost import cost
from graphopt.analyses.dims import dimensions
from graphopt.backend import backend_of, find_target

HEAD = """# Latency after half of the MACs are pruned

`python bench/prune_latency.py --models DIR`, target {target}, batch 1, random weights. Timed in
interleaved pairs on a machine shared with other work: read the ratios. *spread* is the model
against itself; *share* the latency that went over the MACs that went; *grouping* finds the
dimensions, *pruning* chooses and cuts.

| model | MACs left | latency left (95 %) | share | spread | grouping s | pruning s |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--names", nargs="*", default=["resnet50", "vgg16", "bert_base"])
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    target = find_target(args.target)
    backend = backend_of(target)
    assert backend is not None
    lines = [HEAD.format(target=args.target)]
    for name in args.names:
        model = load(args.models / f"{name}.onnx")
        with np.load(args.models / f"{name}.npz") as held:
            feeds = {k[3:]: held[k] for k in held if k.startswith("in:")}
        shapes = {k: v.shape for k, v in feeds.items()}
        Fuse().run(model, Context(model, target=target))
        pruned = model.clone()
        ctx = Context(pruned, target=target, shapes=shapes)
        start = time.perf_counter()
        ctx.get(dimensions)
        grouped = time.perf_counter()
        Prune(ratio=0.5).run(pruned, ctx)
        done = time.perf_counter()
        left = cost(Context(pruned, shapes=shapes)).macs / cost(Context(model, shapes=shapes)).macs
        with tempfile.TemporaryDirectory() as folder:
            a = backend.lower(model, target, Path(folder, "a.onnx"))
            b = backend.lower(pruned, target, Path(folder, "b.onnx"))
            t = backend.measure(a, b, feeds, target, args.seconds)
        share = (1 - t.ratio) / (1 - left)
        lines.append(
            f"| {name} | {left:.3f} | {t.ratio:.3f} ({t.ci[0]:.3f} to {t.ci[1]:.3f}) | {share:.2f} "
            f"| {t.spread:.2f} | {grouped - start:.2f} | {done - grouped:.1f} |\n"
        )
        print(lines[-1], end="", flush=True)
    (args.out / "prune_latency.md").write_text("".join(lines))


if __name__ == "__main__":
    main()
