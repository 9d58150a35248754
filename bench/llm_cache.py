#!/usr/bin/env python3
"""Key-value caches in integers on the shape of GPT-2: memory, and how near the logits stay.

    python bench/llm_cache.py --work DIR [--tokens 512]

Random weights; ranges from random tokens, judged on other ones read in chunks.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from llm_model import Shape, build

import graphopt
from graphopt.budget import Budget
from graphopt.execution.runtime import open_session
from graphopt.samples.tokens import token_model

GPT2 = Shape(12, 768, 3072, 12, 12, 50257, 1024, half=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    source, made = args.work / "gpt2.onnx", args.work / "gpt2.cache.onnx"
    if not source.exists():
        build(GPT2, source)
    rng = np.random.default_rng(0)
    samples = {"input_ids": rng.integers(0, GPT2.vocabulary, (4, 64))}
    graphopt.optimize(
        source, "kv_cache", samples=samples, measure=False, verify="graph", cache="off",
        budget=Budget(max_disagreement=math.inf),
    ).write(made)  # fmt: skip
    row = rng.integers(0, GPT2.vocabulary, (1, args.tokens))
    xy = xx = yy = 0.0
    held = [0, 0]
    for x, y in zip(read(source, row, held, 0), read(made, row, held, 1), strict=True):
        x, y = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
        xy, xx, yy = xy + x @ y, xx + x @ x, yy + y @ y
    scales = sum(4 * 2 * GPT2.kv_heads * GPT2.head for _ in range(GPT2.layers))
    print(f"cache of {args.tokens} tokens: {held[0]:,} bytes become {held[1] + scales:,}")
    print(f"{(held[1] + scales) / held[0]:.3f} of the memory, cosine {xy / math.sqrt(xx * yy):.6f}")


def read(path: Path, row: np.ndarray, held: list[int], place: int) -> Iterator[np.ndarray]:
    """Logits of a row, chunk by chunk; the bytes of the caches go to `held[place]`."""
    form = token_model(graphopt.load(path))
    assert form is not None
    session = open_session(path, optimize=True)
    names = [o.name for o in session.get_outputs()]

    def predict(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = dict(zip(names, session.run(names, feeds), strict=True))
        held[place] = sum(made[n].nbytes for n in form.caches.values())
        return made

    yield from form.stream(predict, row)


if __name__ == "__main__":
    main()
