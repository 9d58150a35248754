"""Weights of 4 bits in full-size BERT-base and GPT-2: bytes, memory, time to load, latency.

    python bench/storage_int4.py --model bert --folder DIR [--spec "weight_only(block=64)" ...]
    python bench/storage_int4.py --mix DIR     # where llm_characters.py keeps its trained model

The shapes are those of the published models (tables and a tied head included), the weights random
with a few large columns; errors are of the outputs against the float model on random tokens. --mix:
the error of mixed bits in a small trained decoder, and the time of one row through products of
Llama's shapes in the same forms.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from graphopt.passes.weight_only import allocation
from graphopt.passes.weight_only.allocation import REFERENCE
from onnx import TensorProto, helper, numpy_helper

from graphopt import optimize
from graphopt.budget import Budget
from graphopt.calibration.sensitivity import movement
from graphopt.execution.runtime import run_each
from graphopt.io.writing import write_model
from graphopt.samples import open_samples

SIZES = {"bert": (30522, 512, False), "gpt2": (50257, 1024, True)}
LAYERS, HIDDEN, HEADS, TOKENS = 12, 768, 12, 16
SPECS = ("weight_only(block=32)", "weight_only(block=64)", "weight_only")


class Writer:
    """Nodes and weights of one model."""

    def __init__(self):
        self.nodes, self.weights, self.rng = [], [], np.random.default_rng(0)

    def op(self, kind, *inputs, **attributes):
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def held(self, array):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape):
        w = self.rng.standard_normal(shape, np.float32) * np.float32(0.02)
        if len(shape) == 2:
            w *= np.exp(0.3 * self.rng.standard_normal(shape[1], np.float32))
        return self.held(w)

    def linear(self, x, n, m):
        return self.op("Add", self.op("MatMul", x, self.weight(n, m)), self.weight(m))

    def norm(self, x):
        one, zero = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)
        return self.op("LayerNormalization", x, self.held(one), self.held(zero), axis=-1)

    def heads(self, x, perm):
        shape = self.held(np.array([1, -1, HEADS, HIDDEN // HEADS]))
        return self.op("Transpose", self.op("Reshape", x, shape), perm=perm)

    def layer(self, x, causal):
        q, k, v = (self.linear(x, HIDDEN, HIDDEN) for _ in range(3))
        scores = self.op("MatMul", self.heads(q, (0, 2, 1, 3)), self.heads(k, (0, 2, 3, 1)))
        scores = self.op("Mul", scores, self.held(np.float32((HIDDEN // HEADS) ** -0.5)))
        if causal:
            scores = self.op("Add", scores, causal)
        mixed = self.op("MatMul", self.op("Softmax", scores), self.heads(v, (0, 2, 1, 3)))
        flat = self.held(np.array([1, -1, HIDDEN]))
        mixed = self.op("Reshape", self.op("Transpose", mixed, perm=(0, 2, 1, 3)), flat)
        x = self.norm(self.op("Add", x, self.linear(mixed, HIDDEN, HIDDEN)))
        inner = self.op("Gelu", self.linear(x, HIDDEN, 4 * HIDDEN))
        return self.norm(self.op("Add", x, self.linear(inner, 4 * HIDDEN, HIDDEN)))


def build(kind, path):
    vocabulary, longest, decoder = SIZES[kind]
    out, table = Writer(), None
    table = out.weight(vocabulary, HIDDEN)
    places = out.op("Gather", out.weight(longest, HIDDEN), out.held(np.arange(TOKENS)))
    x = out.norm(out.op("Add", out.op("Gather", table, "ids"), places))
    mask = np.triu(np.full((TOKENS, TOKENS), -1e4, np.float32), 1)
    causal = out.held(mask) if decoder else ""
    for _ in range(LAYERS):
        x = out.layer(x, causal)
    if decoder:
        x = out.op("MatMul", x, out.op("Transpose", table, perm=(1, 0)))
    wide = vocabulary if decoder else HIDDEN
    graph = helper.make_graph(
        [*out.nodes, helper.make_node("Identity", [x], ["y"], name="y")],
        kind,
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, TOKENS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, TOKENS, wide])],
        out.weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)


def child(paths, rounds):
    """Seconds to open, memory, and the median milliseconds of each of two models, interleaved."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    found, sessions = {}, []
    ids = {"ids": np.random.default_rng(1).integers(30000, size=(1, TOKENS))}
    for path in paths:
        before, began = memory(), time.perf_counter()
        sessions.append(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        found[path] = {"open_s": time.perf_counter() - began}
        y = sessions[-1].run(None, ids)[0]
        found[path]["memory"] = memory() - before
        np.save(f"{path}.npy", y)
    times = [[] for _ in paths]
    for _ in range(rounds):
        for one, session in zip(times, sessions, strict=True):
            began = time.perf_counter()
            session.run(None, ids)
            one.append(time.perf_counter() - began)
    for path, one in zip(paths, times, strict=True):
        found[path]["ms"] = 1e3 * float(np.median(one))
    print(json.dumps(found))


MIXES = (
    ("weight_only(block=32)", False),
    ("weight_only(block=32)", True),
    ("weight_only(block=128)", True),
    ("weight_only(bits='mixed')", True),
    ("weight_only(bits='mixed', block=128)", True),
)
#: Outputs and inputs of products by the ends of their names, with 7 billion weights.
LLAMA = {"gate": (11008, 4096), "up": (11008, 4096), "down": (4096, 11008)}


def mix(work, rounds):
    """Error of each spec in the trained decoder, and time beside 4 bits in blocks of 32.

    Bits are chosen for what products of Llama's shapes take, as the times told are theirs.
    """
    from llm_characters import STEPS, Judge, prepare

    known = {}

    def time_of(op, form, ctx):
        shape = llama_of(op.node.name)
        if (shape, form) not in known:
            made = [{op.node.name: (f.bits, f.size, 4 - f.symmetric)} for f in (REFERENCE, form)]
            reference, own = products(made, rounds)
            known[shape, form] = own / reference
        return known[shape, form]

    allocation._time = time_of
    work.mkdir(parents=True, exist_ok=True)
    judge = Judge(work, prepare(work, STEPS))
    held = list(islice(open_samples(work / "held.npz", judge.model), 8))
    expected = list(run_each(judge.model, held, optimize=True))
    rows, forms = [], []
    for spec, samples in MIXES:
        made = optimize(
            judge.model,
            spec,
            samples=judge.samples if samples else None,
            budget=Budget(max_disagreement=float("inf")),
            measure=False,
            verify="graph",
            cache="off",
        )
        error = movement(expected, run_each(made.model, held, optimize=True)) ** 0.5
        rise = judge.perplexity(made.model) / judge.source - 1
        forms.append(
            {
                n.name: (*(n.attributes[a].as_int() for a in ("bits", "block_size")), len(n.inputs))
                for n in made.model.graph
                if n.op_type == "MatMulNBits" and "logits" not in n.name
            }
        )
        counts = Counter(forms[-1].values())
        told = ", ".join(
            f"{c} of {b} bits by {s}{' symmetric' * (i == 3)}"
            for (b, s, i), c in sorted(counts.items())
        )
        rows.append((spec, samples, made.report.after.bytes, error, rise, told))
    times = products(forms, rounds)
    print("| weights | rounded | bytes | error | perplexity | products | times as fast |")
    print("|---|---|---|---|---|---|---|")
    for (spec, samples, size, error, rise, told), ms in zip(rows, times, strict=True):
        how = "for samples" if samples else "to the nearest"
        print(
            f"| `{spec}` | {how} | {size:,} | {error:.4f} | {rise:+.2%} | {told}"
            f" | {times[0] / ms:.2f} |"
        )


def llama_of(name):
    """Outputs and inputs of a node's counterpart."""
    return LLAMA.get(name.partition("/")[0].rpartition(".")[2], (4096, 4096))


def products(forms, rounds):
    """Median milliseconds of one row through all products of each, interleaved, one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    rng = np.random.default_rng(0)
    feeds = {f"x{k}": rng.standard_normal((1, k), np.float32) for k in (4096, 11008)}
    sessions = []
    for chosen in forms:
        nodes, held, outputs = [], [], []
        for name, (bits, block, count) in chosen.items():
            n, k = llama_of(name)
            blocks = k // block
            arrays = (
                rng.integers(256, size=(n, blocks, block * bits // 8), dtype=np.uint8),
                np.full((n, blocks), 1 / k, np.float32),
                rng.integers(256, size=(n, -(-blocks * bits // 8)), dtype=np.uint8),
            )[: count - 1]
            held += [numpy_helper.from_array(a, f"{name}{i}") for i, a in enumerate(arrays)]
            inputs = [f"x{k}", *(f"{name}{i}" for i in range(len(arrays)))]
            about = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 4}
            nodes.append(
                helper.make_node("MatMulNBits", inputs, [name], domain="com.microsoft", **about)
            )
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]))
        given = [
            helper.make_tensor_value_info(x, TensorProto.FLOAT, a.shape) for x, a in feeds.items()
        ]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(
            helper.make_graph(nodes, "products", given, outputs, held), opset_imports=opsets
        )
        del held
        sessions.append(ort.InferenceSession(model.SerializeToString(), options))
    times = [[] for _ in forms]
    for k in range(rounds):
        order = np.roll(np.arange(len(forms)), k)  # none is always first
        for i in order:
            began = time.perf_counter()
            sessions[i].run(None, feeds)
            times[i].append(time.perf_counter() - began)
    return [1e3 * float(np.median(one)) for one in times]


def memory():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=SIZES)
    parser.add_argument("--folder")
    parser.add_argument("--mix", type=Path, metavar="DIR")
    parser.add_argument("--spec", action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--child", nargs="*")
    given = parser.parse_args()
    if given.child:
        child(given.child, given.rounds)
        return
    if given.mix:
        mix(given.mix, given.rounds)
        return
    folder = Path(given.folder)
    source = folder / f"{given.model}.onnx"
    if not source.exists():
        build(given.model, source)
    print(
        "| spec | bytes | of float | open, s | memory, MB | ms | times as fast | error | argmax |"
    )
    for k, spec in enumerate(given.spec or SPECS):
        target = folder / f"{given.model}{k}.onnx"
        free = Budget(max_disagreement=float("inf"))
        made = optimize(source, spec, budget=free, measure=False, verify="graph", cache="off")
        write_model(made.model, target)
        command = [sys.executable, __file__, "--folder", ".", "--rounds", str(given.rounds)]
        said = subprocess.run(
            [*command, "--child", str(source), str(target)], check=True, capture_output=True
        ).stdout
        was, now = json.loads(said).values()
        a, b = (np.load(f"{p}.npy") for p in (source, target))
        size = target.stat().st_size
        print(
            f"| `{spec}` | {size:,} | {size / source.stat().st_size:.3f}"
            f" | {now['open_s']:.2f} ({was['open_s']:.2f})"
            f" | {now['memory'] / 1e6:.0f} ({was['memory'] / 1e6:.0f})"
            f" | {now['ms']:.1f} ({was['ms']:.1f}) | {was['ms'] / now['ms']:.2f}"
            f" | {np.linalg.norm(a - b) / np.linalg.norm(a):.4f}"
            f" | {(a.argmax(-1) == b.argmax(-1)).mean():.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
