"""Accuracy of integer models with static ranges and after quantization-aware training.

    python bench/qat.py --glyphs DIR [--models resnet20,lstm] [--rows 2000] [--steps 300] \
        --out bench/results/qat.md

DIR holds glyphs.npz and the trained models. Samples are `rows` unlabelled training glyphs; accuracy
is that of the 4,000 validation glyphs, the error the relative L2 of their logits against the float
model's. Nothing is timed for choices, so that all that can be integer is. Schemes: the target's
own; 7 bits (processors without VNNI); one scale a tensor, which spoils layers whose channels
differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from graphopt.passes.int8 import qat

from graphopt import Context, Samples, load, parse
from graphopt.backend import find_target
from graphopt.execution.runtime import opened

SPECS = ("clean,fold,fuse,int8", "clean,fold,fuse,int8(qat=True)")


def scaled(x: np.ndarray[Any, Any], shape: list[int]) -> np.ndarray[Any, Any]:
    return ((x.astype(np.float32) / 255 - 0.5) / 0.25).reshape(len(x), *shape)


def targets() -> dict[str, Any]:
    cpu = dataclasses.replace(find_target("cpu"), measured=False)
    assert cpu.int8 is not None
    narrow = dataclasses.replace(cpu.int8, reduce_range=True)
    whole = dataclasses.replace(cpu.int8, per_channel=False, dynamic=frozenset())
    return {
        "as chosen": cpu,
        "7 bits": dataclasses.replace(cpu, int8=narrow),
        "one scale a tensor": dataclasses.replace(cpu, int8=whole),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--glyphs", type=Path, required=True)
    options.add_argument("--models", default="resnet20,transformer,lstm")
    options.add_argument("--schemes", default="as chosen,7 bits,one scale a tensor")
    options.add_argument("--rows", type=int, default=2000)
    options.add_argument("--steps", type=int, default=qat.STEPS)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    qat.STEPS = given.steps
    data = np.load(given.glyphs / "glyphs.npz")
    rows = ["| model | scheme | passes | accuracy | error | seconds |", "|---" * 6 + "|"]
    for name in given.models.split(","):
        source = load(given.glyphs / f"{name}.onnx")
        value = source.graph.inputs[0]
        shape = [int(d) for d in list(value.shape)[1:]]
        train = scaled(data["x_train"][: given.rows], shape)
        feeds = [{value.name: train[k : k + 64]} for k in range(0, len(train), 64)]
        expected = outputs(source, scaled(data["x_val"], shape))
        accuracy = float((expected.argmax(-1) == data["y_val"]).mean())
        rows.append(f"| {name} | | float | {accuracy:.4f} | | |")
        for scheme in given.schemes.split(","):
            for spec in SPECS:
                began = time.perf_counter()
                model = load(given.glyphs / f"{name}.onnx")
                for one in parse(spec):
                    target = targets()[scheme]
                    ctx = Context(model, target=target, samples=Samples(feeds), source=source)
                    one.run(model, ctx)
                spent = time.perf_counter() - began
                got = outputs(model, scaled(data["x_val"], shape))
                error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
                accuracy = float((got.argmax(-1) == data["y_val"]).mean())
                last = spec.rsplit(",", 1)[-1]
                rows.append(
                    f"| {name} | {scheme} | {last} | {accuracy:.4f} | {error:.4f} | {spent:.0f} |"
                )
                print(rows[-1], *ctx.notes, flush=True)
                text = ["# Quantization-aware training", "", "".join(__doc__.split("\n\n")[2]), ""]
                given.out.write_text("\n".join([*text, *rows]) + "\n")


def outputs(model: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    name = model.graph.inputs[0].name
    with opened(model) as predict:
        parts = [
            next(iter(predict({name: x[k : k + 250]}).values())) for k in range(0, len(x), 250)
        ]
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
