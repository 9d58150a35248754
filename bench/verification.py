"""What verification costs: `clean,fold,fuse` of chains of nodes with small weights, beside peers.

    python bench/verification.py [--nodes 1000,5000,20000] [--repeats 3] [--out FILE]

Every tool runs in a process of its own, in turns; what is told is its median CPU time (user and
system, imports included) and its largest resident memory. graphopt runs twice: with outputs
compared after every pass, and with the graph alone checked; timing is off. onnxsim and onnxslim
are run as their documentation says, with their own check of the result on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

GRAPHOPT = "from graphopt.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
OPTIMIZE = ["optimize", "IN", "-p", "clean,fold,fuse", "--no-measure", "-o", "OUT"]
TOOLS: dict[str, list[str]] = {
    "graphopt": [GRAPHOPT, *OPTIMIZE],
    "graphopt (graph alone)": [GRAPHOPT, *OPTIMIZE, "--verify", "graph"],
    "onnxsim": [
        "import onnx, onnxsim, sys; m, ok = onnxsim.simplify(onnx.load(sys.argv[1])); assert ok; "
        "onnx.save(m, sys.argv[2])",
        "IN",
        "OUT",
    ],
    "onnxslim": [
        "import onnxslim, sys; onnxslim.slim(sys.argv[1], sys.argv[2], model_check=True)",
        "IN",
        "OUT",
    ],
}


def chain(nodes: int, path: Path, width: int = 16) -> int:
    """A chain of residual blocks as exporters write them; returns how many nodes it has.

    Of each eight nodes a simplifier can remove some: a Dropout, an Identity, a product with one,
    a bias that belongs to the product before it, and a shape computed from a constant.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    made, weights = [], []
    x = "x"

    def weight(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array, name))
        return name

    weight("one", np.ones((), np.float32))
    weight("shape", np.int64([-1, width]))
    k = 0
    while len(made) < nodes:
        w = weight(f"w{k}", rng.normal(0, width**-0.5, (width, width)).astype(np.float32))
        b = weight(f"b{k}", rng.normal(0, 0.1, width).astype(np.float32))
        made += [
            helper.make_node("MatMul", [x, w], [f"m{k}"], f"layer{k}/MatMul"),
            helper.make_node("Add", [f"m{k}", b], [f"a{k}"], f"layer{k}/Add"),
            helper.make_node("Relu", [f"a{k}"], [f"r{k}"], f"layer{k}/Relu"),
            helper.make_node("Identity", [f"r{k}"], [f"i{k}"], f"layer{k}/Identity"),
            helper.make_node("Mul", [f"i{k}", "one"], [f"p{k}"], f"layer{k}/Mul"),
            helper.make_node("Reshape", [f"p{k}", "shape"], [f"s{k}"], f"layer{k}/Reshape"),
            helper.make_node("Add", [f"s{k}", x], [f"t{k}"], f"layer{k}/Residual"),
            helper.make_node("Tanh", [f"t{k}"], [f"x{k}"], f"layer{k}/Tanh"),
        ]
        x = f"x{k}"
        k += 1
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", width])],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path
    )
    return len(made)


def cost(command: list[str], source: Path, out: Path) -> tuple[float, float]:
    """CPU seconds and MiB of one run in a process of its own; (nan, nan) if it fails."""
    code, *arguments = command
    words = [{"IN": str(source), "OUT": str(out)}.get(a, a) for a in arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return float("nan"), float("nan")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def nodes_of(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node) if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", default="1000,5000,20000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--out")
    given = parser.parse_args()
    rows = []
    tools = [t for t in TOOLS if t in given.tools.split(",") or given.tools == ",".join(TOOLS)]
    print("| nodes | tool | nodes left | CPU seconds | of onnxsim's | MiB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, given.nodes.split(",")):
            source = Path(folder, f"chain{count}.onnx")
            exact = chain(count, source)
            runs: dict[str, list[tuple[float, float]]] = {t: [] for t in tools}
            left: dict[str, int] = {}
            for _ in range(given.repeats):
                for tool in tools:
                    out = Path(folder, f"out-{count}-{tools.index(tool)}.onnx")
                    out.unlink(missing_ok=True)
                    runs[tool].append(cost(TOOLS[tool], source, out))
                    left[tool] = nodes_of(out)
            middle = {
                t: [statistics.median(v) for v in zip(*r, strict=True)] for t, r in runs.items()
            }
            base = middle.get("onnxsim", [float("nan")])[0]
            for tool in tools:
                seconds, memory = middle[tool]
                rows.append(
                    {
                        "nodes": exact,
                        "tool": tool,
                        "left": left[tool],
                        "cpu_seconds": seconds,
                        "mib": memory,
                    }
                )
                print(
                    f"| {exact:,} | {tool} | {left[tool]:,} | {seconds:.2f} | "
                    f"{seconds / base:.2f} | {memory:.0f} |",
                    flush=True,
                )
    if given.out:
        Path(given.out).write_text(json.dumps({"command": sys.argv, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
