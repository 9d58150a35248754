"""The guard's operating characteristic: how often it lets a rounding pass, by what it changes.

    python bench/guard.py --glyphs DIR [--models resnet20,transformer] [--draws 40] [--out OUT]

DIR holds glyphs.npz and the trained models. All large weights are rounded to 4 to 9 bits in steps
of a half, one scale a tensor; the share of the 4,000 validation glyphs whose class that changes is
counted. Then the guard sees as many glyphs as users have, drawn anew each time, and judges as it
judges what a pass tries (`Judging.used` at most 1). Beside it: of two roundings half a bit apart,
how often the strain on these glyphs tells which one is finer.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import load
from graphopt.execution.runtime import opened
from graphopt.pipeline.referee import Judging
from graphopt.verification.guard import Guard
from graphopt.verification.strain import strain

Array = np.ndarray[Any, Any]
BITS = np.arange(4.0, 9.1, 0.5)
#: Weights of fewer elements stay as they are.
SMALL = 2000
#: Shares of decisions changed, by which roundings are grouped.
BANDS = (0.0, 0.002, 0.004, 0.007, 0.010, 0.015, 0.030, 0.100)
#: How many glyphs the guard sees.
SEEN = (64, 150, 512)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    options.add_argument("--glyphs", type=Path, required=True)
    options.add_argument("--models", default="resnet20,transformer,lstm,mobilenetv2")
    options.add_argument("--draws", type=int, default=40)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    passed: dict[tuple[int, int], list[bool]] = defaultdict(list)
    right: dict[int, list[bool]] = defaultdict(list)
    for name in given.models.split(","):
        path = given.glyphs / f"{name}.onnx"
        model, wanted, roundings = logits_of(path, np.load(given.glyphs / "glyphs.npz")["x_val"])
        rng = np.random.default_rng(0)
        for seen in SEEN:
            for _ in range(given.draws):
                drawn = rng.choice(len(wanted), seen, replace=False)
                judge(model, wanted, roundings, drawn, passed, right)
    text = page(passed, right, given.draws)
    print(text)
    if given.out:
        given.out.write_text(text)


def logits_of(path: Path, glyphs: Array) -> tuple[ir.Model, Array, list[Array]]:
    """The model, its logits [glyphs, classes], and those of each rounding, the finest last."""
    model = load(path)
    name, shape = model.graph.inputs[0].name, list(model.graph.inputs[0].shape)[1:]
    x = ((glyphs.astype(np.float32) / 255 - 0.5) / 0.25).reshape(len(glyphs), *map(int, shape))

    def run() -> Array:
        with opened(model) as predict:
            parts = [predict({name: x[k : k + 250]}) for k in range(0, len(x), 250)]
        return np.concatenate([next(iter(part.values())) for part in parts])

    wanted = run()
    large = [v for v in model.graph.initializers.values() if is_large(v.const_value)]
    trained = [v.const_value.numpy() for v in large]
    roundings = []
    for bits in BITS:
        for value, weight in zip(large, trained, strict=True):
            scale = np.abs(weight).max() / 2 ** (bits - 1)
            rounded = np.round(weight / scale) * scale
            value.const_value = ir.tensor(rounded.astype(np.float32), name=value.name)
        roundings.append(run())
    return load(path), wanted, roundings


def is_large(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size > SMALL


def judge(
    model: ir.Model,
    wanted: Array,
    roundings: list[Array],
    drawn: Array,
    passed: dict[tuple[int, int], list[bool]],
    right: dict[int, list[bool]],
) -> None:
    """Adds what the guard says of all roundings on these glyphs."""
    output = model.graph.outputs[0].name
    guard = Guard(model, [{output: wanted[drawn]}], [{}])
    for made in roundings:
        changed = float((made.argmax(-1) != wanted.argmax(-1)).mean())
        band = int(np.searchsorted(BANDS, changed, side="right")) - 1
        if band < len(BANDS) - 1:
            used = Judging(guard, 1.0).used([{output: made[drawn]}])
            passed[len(drawn), band].append(used <= 1)
    strains = [strain(guard, [{output: made[drawn]}]) for made in roundings]
    right[len(drawn)] += [coarser > finer for coarser, finer in pairwise(strains)]


def page(
    passed: dict[tuple[int, int], list[bool]], right: dict[int, list[bool]], draws: int
) -> str:
    bands = [f"{100 * low:.1f} to {100 * high:.1f} %" for low, high in pairwise(BANDS)]
    rows = [["glyphs seen", *bands, "order of neighbours"], ["---"] * (len(bands) + 2)]
    for seen in SEEN:
        found = [passed[seen, k] for k in range(len(bands))]
        shares = [f"{np.mean(f):.2f}" if f else "-" for f in found]
        rows.append([str(seen), *shares, f"{np.mean(right[seen]):.2f}"])
    counts = [str(len(passed[SEEN[0], k]) // draws) for k in range(len(bands))]
    rows.append(["roundings", *counts, ""])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"Share let pass, by the share of decisions that a rounding changes.\n\n{table}\n"


if __name__ == "__main__":
    main()
