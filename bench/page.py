"""The page of a pair of 5,000-node graphs: bytes, first paint, when the graph is usable.

    python bench/page.py [--layers 152]

An encoder of so many layers, and what `clean,fold,fuse` makes of it. Needs Playwright and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import helper, numpy_helper
from playwright.sync_api import sync_playwright

from graphopt import optimize
from graphopt.differing.difference import difference
from graphopt.page.pair import diff_page
from graphopt.pipeline.prepare import named
from graphopt.pipeline.state import State

WIDE, RUNS = 16, 5
SIZES = {"heads": [1, 8, 2, 8], "flat": [1, 8, WIDE]}


def encoder(layers):
    """33 nodes a layer: attention with two heads, a feed-forward net with an exact Gelu."""
    nodes, tensors = [], [numpy_helper.from_array(np.array(v), n) for n, v in SIZES.items()]
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        array = rng.normal(size=shape).astype(np.float32) / 4
        tensors.append(numpy_helper.from_array(array, name))
        return name

    def add(op, name, *inputs, **attributes):
        nodes.append(helper.make_node(op, inputs, [name], f"node_{name}", **attributes))
        return name

    def linear(x, name, a, b):
        return add("Add", f"{name}_b", add("MatMul", f"{name}_m", x, weight(f"{name}.w", a, b)),
                   weight(f"{name}.b", b))  # fmt: skip

    def norm(x, name):
        scales = weight(f"{name}.g", WIDE), weight(f"{name}.c", WIDE)
        return add("LayerNormalization", name, x, *scales)

    x = "x"
    for k in range(layers):
        heads = []
        for part in "qkv":
            split = add("Reshape", f"l{k}_{part}_r", linear(x, f"l{k}_{part}", WIDE, WIDE), "heads")
            order = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
            heads.append(add("Transpose", f"l{k}_{part}_t", split, perm=order))
        scores = add("Mul", f"l{k}_s", add("MatMul", f"l{k}_qk", *heads[:2]), weight(f"l{k}.s", 1))
        mixed = add("MatMul", f"l{k}_c", add("Softmax", f"l{k}_p", scores, axis=-1), heads[2])
        joined = add(
            "Reshape", f"l{k}_j", add("Transpose", f"l{k}_ct", mixed, perm=[0, 2, 1, 3]), "flat"
        )
        x = norm(add("Add", f"l{k}_r1", linear(joined, f"l{k}_o", WIDE, WIDE), x), f"l{k}_n1")
        h = linear(x, f"l{k}_u", WIDE, 2 * WIDE)
        e = add("Erf", f"l{k}_e", add("Div", f"l{k}_d", h, weight(f"l{k}.d", 1)))
        g = add("Mul", f"l{k}_g", h, add("Add", f"l{k}_e1", e, weight(f"l{k}.one", 1)))
        g = add("Mul", f"l{k}_gh", g, weight(f"l{k}.half", 1))
        x = norm(add("Add", f"l{k}_r2", linear(g, f"l{k}_w", 2 * WIDE, WIDE), x), f"l{k}_n2")
    values = [helper.make_tensor_value_info(n, 1, SIZES["flat"]) for n in ("x", x)]
    graph = helper.make_graph(nodes, "encoder", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def measured(path):
    """Requests, first paint and usable, in milliseconds: medians of `RUNS` fresh pages."""
    rows = []
    with sync_playwright() as play:
        found = next(p for n in ("chromium", "google-chrome") if (p := shutil.which(n)))
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=found, args=options)
        for _ in range(RUNS):
            page = browser.new_page()
            asked = []
            page.on("request", lambda r, asked=asked: asked.append(r.url))
            page.goto(path.as_uri())
            page.wait_for_function("document.documentElement.dataset.ready")
            paint = page.evaluate("performance.getEntriesByName('first-paint')[0].startTime")
            rows.append(
                (
                    len(asked) - 1,
                    paint,
                    int(page.evaluate("document.documentElement.dataset.ready")),
                )
            )
            page.close()
        browser.close()
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=152)
    parser.add_argument("--out", type=Path, default=Path("bench/results/page.md"))
    options = parser.parse_args()
    a = named(ir.from_proto(encoder(options.layers)))
    b = optimize(a, "clean,fold,fuse", measure=False, verify="graph").model
    shapes = {"x": (1, 8, WIDE)}
    began = time.perf_counter()
    found = difference(a, b)
    compared = time.perf_counter() - began
    figures = State(a, shapes).figures(), State(b, shapes).figures()
    page = diff_page(("encoder", "fused"), (a, b), shapes, figures, found)
    made = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        path.write_bytes(page)
        requests, paint, usable = measured(path)
    text = "\n".join(
        [
            "# The page",
            "",
            f"`python bench/page.py --layers {options.layers}`: graphs of {figures[0].nodes:,} and "
            f"{figures[1].nodes:,} nodes side by side, headless Chromium, median of {RUNS}.",
            "",
            "| what | measured | at most |",
            "|---|---|---|",
            f"| bytes of the page | {len(page):,} | 500,000 |",
            f"| requests | {requests:.0f} | 0 |",
            f"| first paint | {paint:.0f} ms | 1,000 ms |",
            f"| graph usable | {usable:.0f} ms | 2,000 ms |",
            f"| comparing the graphs | {compared:.1f} s | |",
            f"| comparing and drawing | {made:.1f} s | |",
            "",
        ]
    )
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
