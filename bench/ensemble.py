#!/usr/bin/env python3
"""An ensemble of trained models as the teacher of one ResNet-20 with half of its MACs.

    python bench/ensemble.py GLYPHS [--teachers transformer,lstm,mobilenetv2] [--starts random]

GLYPHS holds NAME.onnx and glyphs.npz (x_train, x_val, y_val). The student is `resnet20.onnx` pruned
to half of its multiply-accumulates. Its weights at the start are what pruning left of the trained
ones, or random numbers: then all that it knows comes from the teachers. It learns the mean of their
outputs on the training glyphs and on variations of them, without labels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from devices import images
from recover import SHAPES, Data, counted

from graphopt import Budget, load, optimize
from graphopt.rewriting.merging import merge

Array = np.ndarray[Any, Any]
#: Training glyphs.
ALL = 12000
#: Variations of every glyph besides itself; rows of a run of samples, and of those pruning sees.
VARIED, ROWS, FEW = 2, 100, 2048
#: Of a variation: radians, factors and shear of its turn, and pixels that it is shifted by at most.
TURN, SCALE, SHEAR, SHIFT = 0.2, 0.12, 0.15, 2.0
#: How the student is trained, by what it starts from.
TRAINING = {
    "trained": "distill(teacher='{}', epochs=2, lr=0.0005, batch=64)",
    "random": "distill(teacher='{}', epochs=3, lr=0.002, batch=64)",
}
#: No budget: outputs move away from the student's own on purpose.
FREE = Budget(max_disagreement=np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("glyphs", type=Path)
    parser.add_argument("--teachers", default="transformer,lstm,mobilenetv2")
    parser.add_argument("--starts", default="trained,random")
    args = parser.parse_args()
    data = Data(args.glyphs, ALL)
    with np.load(args.glyphs / "glyphs.npz") as held:
        train = held["x_train"]
    paths = [args.glyphs / f"{name}.onnx" for name in args.teachers.split(",")]
    teachers = [load(path) for path in paths]
    for path, model in zip(paths, teachers, strict=True):
        print(f"{path.stem}: {data.accuracy(model):.4f}")
    print(f"mean of their outputs: {data.accuracy(merge(teachers, 'mean')):.4f}", flush=True)
    source = load(args.glyphs / "resnet20.onnx")
    plain = [{"x": data.x[k : k + ROWS]} for k in range(0, len(data.x), ROWS)]
    half = optimize(
        source, "prune(ratio=0.5)", samples={"x": data.x[:FEW]}, shapes=SHAPES, budget=FREE,
        measure=False,
    ).model  # fmt: skip
    share = counted(half)[0] / counted(source)[0]
    samples = plain + [{"x": images(v)} for v in varied(train)]
    given = ",".join(map(str, paths))
    for start in args.starts.split(","):
        model = half if start == "trained" else at_random(half)
        before, began = data.accuracy(model), time.perf_counter()
        done = optimize(
            model, TRAINING[start].format(given), samples=samples, shapes=SHAPES, budget=FREE,
            measure=False, verify="graph",
        )  # fmt: skip
        spent = time.perf_counter() - began
        print(*done.report.notes, sep="\n")
        print(
            f"ResNet-20 at {share:.3f} of the MACs, {start} weights: {before:.4f} -> "
            f"{data.accuracy(done.model):.4f}, {spent:.0f} s",
            flush=True,
        )


def varied(pixels: Array) -> Iterator[Array]:
    """Glyphs turned, scaled, sheared, shifted, half of them blended and half inverted, in chunks.

    `pixels` is [n, 1, 32, 32] uint8; a chunk is [ROWS, 32, 32] float32 from 0 to 255.
    """
    rng = np.random.default_rng(0)
    whole = pixels.reshape(len(pixels), *pixels.shape[-2:]).astype(np.float32)
    for _ in range(VARIED):
        order = rng.permutation(len(whole))
        for k in range(0, len(order), ROWS):
            x = moved(whole[order[k : k + ROWS]], rng)
            share = rng.uniform(0, 0.5, (len(x), 1, 1)) * rng.integers(2, size=(len(x), 1, 1))
            x = (1 - share) * x + share * x[rng.permutation(len(x))]
            inverted = rng.integers(2, size=(len(x), 1, 1)) == 1
            yield np.where(inverted, 255 - x, x).astype(np.float32)


def moved(x: Array, rng: np.random.Generator) -> Array:
    """Each of [n, h, w] under an affine map of its own, bilinear, its edges repeated."""
    n, size = len(x), x.shape[-1]
    angle = rng.uniform(-TURN, TURN, n)
    scale = rng.uniform(1 - SCALE, 1 + SCALE, (2, n))
    shear = rng.uniform(-SHEAR, SHEAR, n)
    map_ = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    map_[:, 1] += shear * map_[:, 0]
    map_ *= scale
    centre = (size - 1) / 2
    grid = np.stack(np.meshgrid(*[np.arange(size) - centre] * 2, indexing="ij")).reshape(2, -1)
    at = np.einsum("abn,bp->anp", map_, grid) + centre
    at = np.clip(at + rng.uniform(-SHIFT, SHIFT, (2, n, 1)), 0, size - 1)
    low = np.minimum(at.astype(int), size - 2)
    part = at - low
    rows, made = np.arange(n)[:, None], 0.0
    for a in (0, 1):
        for b in (0, 1):
            weight = np.abs(1 - a - part[0]) * np.abs(1 - b - part[1])
            made = made + weight * x[rows, low[0] + a, low[1] + b]
    return np.asarray(made).reshape(x.shape)


def at_random(model: ir.Model) -> ir.Model:
    """The same architecture with random weights: He's, a tenth of them where a branch ends.

    Without normalization residual branches have to begin small (Zhang et al., ICLR 2019); not at 0,
    since zeros of sparse matrices stay.
    """
    made, rng = model.clone(), np.random.default_rng(0)
    for node in made.graph:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        for value in node.inputs[1:]:
            assert value is not None
            assert value.const_value is not None
            shape = tuple(value.const_value.shape)
            array = np.zeros(shape, np.float32)
            if len(shape) > 1:
                kernel = len(shape) > 2 and max(shape[2:]) > 1
                ends = kernel and any(u.op_type == "Add" for u, _ in node.outputs[0].uses())
                spread = (0.1 if ends else 1.0) * np.sqrt(2 / np.prod(shape[1:]))
                array = (spread * rng.standard_normal(shape)).astype(np.float32)
            value.const_value = ir.Tensor(array, name=value.name)
    return made


if __name__ == "__main__":
    main()
