"""Fused operators beside the operators they stand for, on ONNX Runtime's CPU provider, one thread.

    python bench/fused_operators.py [--models DIR]

What the cpu target lists under `operators`, `lacks` and `slow` is what this table says. Runtime
optimizations are off, so that every graph runs as it is written; each pair is interleaved and the
median of the paired ratios of processor time is given (above 1: the fused operator is faster).
`--models` is accepted as by every bench script and not read: the graphs are written here.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
SIZES = {"16 x 48": (2, 16, 48), "128 x 768": (1, 128, 768), "512 x 768": (1, 512, 768)}


def session(text, feeds, constants):
    """A session for node text: inputs are `feeds`, what is left over is an output `y`."""
    graph = onnx.parser.parse_graph(f"g () => () {{ {text} }}")
    for name, array in constants.items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    for name, array in feeds.items():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    graph.output.append(onnx.ValueInfoProto(name="y"))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def f(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def cases(b, s, d):
    x = {"x": f(b, s, d)}
    two = {**x, "z": f(b, s, d)}
    vector = {"g": f(d), "h": f(d)}
    heads = 4 if d < 100 else 12
    shape = {"into": np.array([b, s, heads, d // heads]), "back": np.array([b, s, d])}
    three = {n: f(b, s, d) for n in "qkv"}
    scale = (d // heads) ** -0.5
    parts = "".join(
        f"{n}1 = Reshape({n}, into) {n}2 = Transpose <perm=[0, 2, {p}]> ({n}1) "
        for n, p in (("q", "1, 3"), ("k", "3, 1"), ("v", "1, 3"))
    )
    yield (
        "Attention (opset 23)",
        parts + "a = MatMul(q2, k2) c = Mul(a, scale) p = Softmax <axis=-1> (c) o = MatMul(p, v2)"
        " t = Transpose <perm=[0, 2, 1, 3]> (o) y = Reshape(t, back)",
        f"y = Attention <q_num_heads={heads}, kv_num_heads={heads}> (q, k, v)",
        three,
        {**shape, "scale": np.float32(scale).reshape(())},
    )
    yield (
        "MultiHeadAttention",
        parts + "a = MatMul(q2, k2) c = Mul(a, scale) p = Softmax <axis=-1> (c) o = MatMul(p, v2)"
        " t = Transpose <perm=[0, 2, 1, 3]> (o) y = Reshape(t, back)",
        f"y = com.microsoft.MultiHeadAttention <num_heads={heads}> (q, k, v)",
        three,
        {**shape, "scale": np.float32(scale).reshape(())},
    )
    yield (
        "SkipLayerNormalization",
        "a = Add(x, z) y = LayerNormalization(a, g, h)",
        "y = com.microsoft.SkipLayerNormalization(x, z, g, h)",
        two,
        vector,
    )
    yield (
        "SkipSimplifiedLayerNormalization",
        "a = Add(x, z) y = RMSNormalization(a, g)",
        "y = com.microsoft.SkipSimplifiedLayerNormalization(x, z, g)",
        two,
        {"g": vector["g"]},
    )
    yield (
        "BiasGelu",
        "a = Add(x, g) y = Gelu(a)",
        "y = com.microsoft.BiasGelu(x, g)",
        x,
        {"g": vector["g"]},
    )
    yield (
        "QuickGelu, alpha 1",
        "a = Sigmoid(x) y = Mul(x, a)",
        "y = com.microsoft.QuickGelu <alpha=1.0> (x)",
        x,
        {},
    )
    yield (
        "RMSNormalization (opset 23)",
        "a = Mul(x, x) m = ReduceMean(a, axis) e = Add(m, eps) r = Sqrt(e) n = Div(x, r)"
        " y = Mul(n, g)",
        "y = RMSNormalization(x, g)",
        x,
        {"g": vector["g"], "axis": np.array([-1]), "eps": np.float32(1e-5).reshape(())},
    )
    yield (
        "FusedMatMul, transposed",
        "t = Transpose <perm=[0, 2, 1]> (z) y = MatMul(x, t)",
        "y = com.microsoft.FusedMatMul <transB=1> (x, z)",
        two,
        {},
    )
    weights = {n: f(d, d) / np.float32(d**0.5) for n in ("wq", "wk", "wv")}
    attention = f"y = Attention <q_num_heads={heads}, kv_num_heads={heads}> (q, k, v)"
    yield (
        "one product and Split for Q, K, V",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) " + attention,
        "a = MatMul(x, w) q, k, v = Split <axis=-1, num_outputs=3> (a) " + attention,
        x,
        {**weights, "w": np.concatenate(list(weights.values()), 1)},
    )


def ratio(one, other, feeds):
    sessions = [session(t, feeds, {}) if isinstance(t, str) else t for t in (one, other)]
    for s in sessions:
        for _ in range(3):
            s.run(None, feeds)
    start = time.thread_time()
    sessions[0].run(None, feeds)
    inner = max(1, int(0.003 / max(time.thread_time() - start, 1e-5)))
    logs = []
    for _ in range(25):
        taken = []
        for s in sessions:
            start = time.thread_time()
            for _ in range(inner):
                s.run(None, feeds)
            taken.append(time.thread_time() - start)
        logs.append(np.log(taken[0] / taken[1]))
    return float(np.exp(np.median(logs)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench/results/fused_operators.md"))
    args = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for size in SIZES.values():
        for name, apart, fused, feeds, constants in cases(*size):
            used = [
                {
                    k: v
                    for k, v in constants.items()
                    if k in set(t.replace("(", " ").replace(")", " ").replace(",", " ").split())
                }
                for t in (apart, fused)
            ]
            pair = [session(t, feeds, u) for t, u in zip((apart, fused), used, strict=True)]
            rows.setdefault(name, []).append(ratio(*pair, feeds))
    lines = [
        f"ONNX Runtime {ort.__version__}, CPU, one thread, processor time: written out / fused",
        "(above 1: fused is faster).",
        "",
        "| operator | " + " | ".join(SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
        *(f"| {n} | " + " | ".join(f"{v:.2f}" for v in r) + " |" for n, r in rows.items()),
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
