#!/usr/bin/env python3
"""Trained models in the integers of Qualcomm's NPUs, by data: executed here, and what falls off.

    python bench/qnn.py GLYPHS --out bench/results/qnn.md [--only resnet20,lstm]

GLYPHS holds NAME.onnx and glyphs.npz (x_train, x_val, y_val). Each model is quantized for target
`qnn` on 256 samples, judged by the guard, run by ONNX Runtime on the CPU on 1,000 validation
glyphs, and looked through node by node for what the NPU does not take.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from devices import images, integers
from graphopt.backends.devices.fixed import at_fixed_shapes
from graphopt.backends.qnn import BACKEND

from graphopt import load, optimize
from graphopt.execution.runtime import run

SPEC, TARGET = "clean, fold, fuse, int8", "qnn"
MODELS = ("resnet20", "mobilenetv2", "vgg16", "transformer", "lstm")
SAMPLES, ITEMS, BATCH = 256, 1000, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("glyphs", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(MODELS), help="names of models, with commas")
    args = parser.parse_args()
    with np.load(args.glyphs / "glyphs.npz") as data:
        train, x = images(data["x_train"][:SAMPLES]), images(data["x_val"][:ITEMS])
        labels = data["y_val"][:ITEMS]
    lines = [
        "# Trained models in the integers of QNN's NPU",
        "",
        f"`python bench/qnn.py GLYPHS`: `{SPEC}` for target `{TARGET}`, {SAMPLES} samples, run by "
        f"ONNX Runtime on the CPU on {ITEMS} validation glyphs. No NPU was there: what falls "
        "off is by data. Rounded: activations of 8 and of 16 bits.",
        "",
        "| model | float | integers | error | MACs in integers | rounded | nodes that fall off |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in args.only.split(","):
        lines.append(row(name, args.glyphs / f"{name}.onnx", train, x, labels))
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def row(name: str, path: Path, train: np.ndarray, x: np.ndarray, labels: np.ndarray) -> str:
    """One row of the table."""
    model = load(path)
    (given,) = (v.name or "" for v in model.graph.inputs)
    result = optimize(model, SPEC, target=TARGET, samples={given: train}, measure=False)
    scores = []
    for one in (model, result.model):
        runs = [run(one, {given: x[k : k + BATCH]}) for k in range(0, ITEMS, BATCH)]
        scores.append(np.concatenate([next(iter(made.values())) for made in runs]))
    right = [f"{np.mean(s.argmax(-1) == labels):.1%}" for s in scores]
    error = np.linalg.norm(scores[1] - scores[0]) / np.linalg.norm(scores[0])
    quantizers = [n for n in result.model.graph if n.op_type == "QuantizeLinear"]
    widths = Counter(n.outputs[0].dtype.name for n in quantizers if n.outputs[0].dtype)
    falls = BACKEND.falls_off(at_fixed_shapes(result.model, BACKEND.target(TARGET)))
    nodes = sum(n.op_type != "Constant" for n in result.model.graph)
    cells = (
        name,
        *right,
        f"{error:.3f}",
        f"{integers(result.model):.0%}",
        f"{widths['UINT8']}, {widths['UINT16']}",
        f"{len(falls)} of {nodes}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
