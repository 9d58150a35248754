"""Round trips through PyTorch: model -> `.pt2` program -> model, outputs against ONNX Runtime.

    python bench/programs.py --models DIR [--passes fuse] > bench/results/programs.md

Each NAME.onnx with NAME.npz (arrays `in:INPUT`) beside it; without one, inputs are drawn.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import graphopt
from graphopt.analyses.binding import bind_shapes
from graphopt.execution.runtime import run
from graphopt.io.weights import warnings_of
from graphopt.samples import open_samples, synthetic
from graphopt.verification.comparison import compare_outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--passes", default="")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{options.models.name}, passes: {options.passes or 'none'}\n")
    print("| model | written s | read s | nodes | nodes read back | rel. L2 | remarks |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted(options.models.glob("*.onnx")):
        print(row(path, options.passes), flush=True)


def row(path, passes):
    model = graphopt.load(path)
    samples = path.with_suffix(".npz")
    shapes, _ = bind_shapes(model)
    feeds = next(
        iter(
            open_samples(samples, model)
            if samples.exists()
            else synthetic(model, seed=0, shapes=shapes)
        )
    )
    if passes:
        model = graphopt.optimize(model, passes, measure=False, samples=[feeds]).model
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "model.pt2")
        try:
            began = time.perf_counter()
            graphopt.save(model, program)
            written = time.perf_counter() - began
            began = time.perf_counter()
            again = graphopt.load(program)
            read = time.perf_counter() - began
        except graphopt.GraphOptError as error:
            return f"| {path.stem} | | | {len(model.graph)} | | | {str(error)[:300]} |"
        found = compare_outputs([run(model, feeds)], [run(again, feeds)])
        notes = "; ".join(warnings_of(again))[:200]
        return (
            f"| {path.stem} | {written:.1f} | {read:.1f} | {len(model.graph)} | {len(again.graph)} "
            f"| {found.worst:.1e} | {found.broken or notes} |"
        )


if __name__ == "__main__":
    main()
