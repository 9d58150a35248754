"""`graphopt diff` between models and what simplifiers, and graphopt, made of them.

    python bench/diff.py FOLDER... --peers PYTHON --work DIR [--optimized DIR]

PYTHON has onnxsim, onnxslim and onnxruntime. A node is unchanged if the result has one of the same
first output, operator and attributes: simplifiers leave names as they are. Found is how many of
those are matched with each other, with the names as they are, and with every inner name replaced.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.differing.difference import difference
from graphopt.differing.flow import Digests, attributes_of
from graphopt.differing.matching import match
from graphopt.formats import load

TOOLS = ("onnxsim", "onnxslim", "ort")
SIMPLIFY = """
import sys, onnx
tool, source, out = sys.argv[1:]
if tool == "onnxsim":
    import onnxsim; onnx.save(onnxsim.simplify(source)[0], out)
elif tool == "onnxslim":
    import onnxslim; onnx.save(onnxslim.slim(onnx.load(source)), out)
else:
    import onnxruntime as rt
    options = rt.SessionOptions()
    options.optimized_model_filepath = out
    options.graph_optimization_level = rt.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    rt.InferenceSession(source, options, providers=["CPUExecutionProvider"])
"""


def unchanged(a, b):
    """Numbers of the nodes that are the same in both, by first output."""
    digests = Digests()
    there = {n.outputs[0].name: k for k, n in enumerate(b.nodes)}
    found = {}
    for k, node in enumerate(a.nodes):
        other = there.get(node.outputs[0].name)
        if other is not None:
            twin = b.nodes[other]
            same = (node.op_type, node.domain) == (twin.op_type, twin.domain)
            if same and attributes_of(node, digests) == attributes_of(twin, digests):
                found[k] = other
    return found


def nameless(model):
    """The model with every inner name replaced."""
    model = model.clone()
    kept = {*model.graph.inputs, *model.graph.outputs}
    for graph in [model.graph]:
        for k, node in enumerate(graph.all_nodes()):
            node.name = f"n{k}"
            for j, value in enumerate(node.outputs):
                if value not in kept:
                    value.name = f"v{k}_{j}"
        for k, value in enumerate(list(graph.initializers.values())):
            if value not in kept:
                value.name = f"w{k}"
    return model


def measured(a, b):
    """Unchanged nodes, those found with names, those found without."""
    found = match(a, b)
    truth = unchanged(found.a, found.b)
    bare = match(a, nameless(b))
    right = [sum(m.to[k] == t for k, t in truth.items()) for m in (found, bare)]
    return len(truth), *right


def chain(n):
    """A model of n MatMul and n Relu nodes, in a chain."""
    lines = [f"h{k} = MatMul({f'r{k - 1}' if k else 'x'}, w) r{k} = Relu(h{k})" for k in range(n)]
    return ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20]>\n'
            f"net (float[8, 8] x, float[8, 8] w) => (float[8, 8] r{n - 1}) {{ {' '.join(lines)} }}"
        )
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--optimized", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench/results/diff.md"))
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True, parents=True)
    sums = {tool: Counter() for tool in TOOLS}
    worst = dict.fromkeys(TOOLS, (1.0, ""))
    for folder in options.folders:
        for path in sorted(folder.glob("*.onnx")):
            a = load(path)
            for tool in TOOLS:
                made = options.work / f"{folder.name}-{path.stem}-{tool}.onnx"
                if not made.exists():
                    command = [options.peers, "-c", SIMPLIFY, tool, str(path), str(made)]
                    if subprocess.run(command, capture_output=True).returncode:
                        print(f"{tool} fails on {path}")
                        continue
                n, named, bare = measured(a, load(made))
                sums[tool].update(files=1, unchanged=n, named=named, bare=bare)
                worst[tool] = min(worst[tool], (bare / max(n, 1), f"{folder.name}/{path.stem}"))
    lines = [
        "# Diff", "", "`" + __doc__.split("\n\n")[1].strip() + "`, see bench/diff.py", "",
        "| made by | files | unchanged nodes | matched | matched without names | worst file |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for tool, c in sums.items():
        n = max(c["unchanged"], 1)
        lines.append(
            f"| {tool} | {c['files']} | {c['unchanged']} | {c['named'] / n:.2%} | "
            f"{c['bare'] / n:.2%} | {worst[tool][1]} ({worst[tool][0]:.1%}) |"
        )
    if options.optimized:
        counts = Counter()
        for made in sorted(options.optimized.glob("*.onnx")):
            found = difference(load(options.folders[0] / made.name), load(made))
            both = [*found.before, *found.after]
            counts.update(files=1, nodes=len(both))
            counts["explained"] += sum(e.fate == "same" or bool(e.reason) for e in both)
        lines += [
            "",
            f"After `prune,svd,fuse,int8`: of {counts['nodes']} nodes of {counts['files']} models "
            f"and their results {counts['explained']} are explained.",
        ]
    lines += ["", "| nodes of a chain | seconds |", "|---|---|"]
    for n in (2_500, 5_000, 10_000, 20_000):
        a, b = chain(n), chain(n)
        began = time.perf_counter()
        difference(a, b)
        lines.append(f"| {2 * n} | {time.perf_counter() - began:.2f} |")
    options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
