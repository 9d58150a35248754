"""Reading and writing models: graphopt beside `onnx` and `onnx_ir`, seconds and private memory.

    python bench/io.py --models DIR [--generated] [--repeats 3]

Each tool reads a model and writes it to a temporary folder, in a process of its own, in turns. Time
is from after the imports to the end of the write (graphopt's includes syncing to disk, which the
others do not do). Memory is the process' largest anonymous resident size (RssAnon), imports
included, seen by sampling it every 2 ms; mapped pages of the input file are not in it, as the
system can drop them at will. `--generated` adds a model of 1.4 GB with its weights embedded and
one of 2.8 GB with external data, made in the temporary folder and deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TOOLS = ("graphopt", "onnx", "onnx_ir")


def graphopt_tool(source: str, out: str, external: bool) -> float:
    import graphopt
    from graphopt.io.writing import size_of  # noqa: F401

    began = time.perf_counter()
    model = graphopt.load(source)
    read = time.perf_counter() - began
    graphopt.save(model, out, external=external)
    return read


def onnx_tool(source: str, out: str, external: bool) -> float:
    import onnx

    began = time.perf_counter()
    model = onnx.load(source)
    read = time.perf_counter() - began
    onnx.save(model, out, save_as_external_data=external, location="out.onnx.data")
    return read


def onnx_ir_tool(source: str, out: str, external: bool) -> float:
    import onnx_ir

    began = time.perf_counter()
    model = onnx_ir.load(source)
    read = time.perf_counter() - began
    onnx_ir.save(model, out, external_data="out.onnx.data" if external else None)
    return read


def child(tool: str, source: str, out: str, external: bool) -> None:
    """Run one tool; tell the parent when the imports are done, and the times at the end."""
    function = globals()[f"{tool}_tool"]
    module = __import__(tool)
    if tool == "graphopt":
        __import__("graphopt.io")
    del module
    print("ready", flush=True)
    began = time.perf_counter()
    read = function(source, out, external)
    print(json.dumps({"read": read, "total": time.perf_counter() - began}), flush=True)


def measure(tool: str, source: Path, folder: Path, external: bool) -> dict[str, float]:
    """Seconds to read, seconds in all and peak private bytes of one run."""
    out = folder / "out.onnx"
    command = [sys.executable, __file__, "--child", tool, str(source), str(out), str(int(external))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            try:
                text = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            at = text.find("RssAnon:")
            if at >= 0:
                peak = max(peak, int(text[at + 8 :].split(None, 1)[0]) * 1024)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    process.stdout.close()
    code = process.wait()
    stop.set()
    watcher.join()
    for path in folder.glob("out.onnx*"):
        path.unlink()
    if code:
        raise SystemExit(f"{tool} failed on {source}")
    return {**json.loads(lines[-1]), "peak": float(peak)}


def generate(folder: Path, gigabytes: float, external: bool) -> Path:
    """A deep stack of MatMul, Add, Relu with distinct weights, written layer by layer."""
    import numpy as np
    import onnx_ir as ir

    import graphopt

    width = 2048
    layers = int(gigabytes * 1e9 / (width * width * 4))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, width]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="stack")
    last = x

    def weight(k: int) -> ir.TensorProtocol:
        rng = np.random.default_rng(k)
        return ir.tensor(rng.standard_normal((width, width), np.float32) * np.float32(0.02))

    for k in range(layers):
        shape = ir.Shape([width, width])
        lazy = ir.LazyTensor(lambda k=k: weight(k), ir.DataType.FLOAT, shape, name=f"w{k}")
        w = ir.Value(
            name=f"w{k}", type=ir.TensorType(ir.DataType.FLOAT), shape=shape, const_value=lazy
        )
        bias = ir.tensor(np.zeros(width, np.float32), name=f"b{k}")
        b = ir.Value(
            name=f"b{k}", type=ir.TensorType(bias.dtype), shape=bias.shape, const_value=bias
        )
        graph.register_initializer(w)
        graph.register_initializer(b)
        for op, inputs in (("MatMul", [w]), ("Add", [b]), ("Relu", [])):
            node = ir.Node("", op, [last, *inputs], name=f"{op}{k}")
            node.outputs[0].name = f"{op}{k}_out"
            graph.append(node)
            last = node.outputs[0]
    last.type, last.shape = x.type, x.shape
    graph.outputs.append(last)
    path = folder / f"generated-{gigabytes:.1f}GB{'-external' if external else ''}.onnx"
    graphopt.save(ir.Model(graph, ir_version=10), path, external=external)
    return path


def total_bytes(path: Path) -> int:
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def run(sources: list[Path], folder: Path, repeats: int) -> list[str]:
    import onnx

    rows = []
    for source in sources:
        external = source.with_name(source.name + ".data").exists()
        found: dict[str, list[dict[str, float]]] = {t: [] for t in TOOLS}
        for _ in range(repeats):
            for tool in TOOLS:
                found[tool].append(measure(tool, source, folder, external))
        nodes = len(onnx.load(source, load_external_data=False).graph.node)
        cells = [source.stem, f"{total_bytes(source) / 1e6:,.0f}", str(nodes)]
        for tool in TOOLS:
            middle = {k: statistics.median(r[k] for r in found[tool]) for k in found[tool][0]}
            cells.append(f"{middle['read']:.3f} / {middle['total']:.2f}")
            cells.append(f"{max(r['peak'] for r in found[tool]) / 1e9:.3f}")
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--generated", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--temporary", type=Path, help="folder for temporary files")
    default = Path(__file__).parent / "results" / "io.md"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="graphopt-bench-", dir=options.temporary))
    try:
        rows = run(sorted(options.models.glob("*.onnx")), folder, options.repeats)
        if options.generated:
            for size, external in ((1.4, False), (2.8, True)):
                made = generate(folder, size, external)
                rows += run([made], folder, options.repeats)
                for path in folder.iterdir():
                    path.unlink()
    finally:
        shutil.rmtree(folder)
    head = ["model", "MB", "nodes"]
    for tool in TOOLS:
        head += [f"{tool}: s read / in all", "GB private"]
    from importlib.metadata import version

    tools = ", ".join(f"{t} {version(t.replace('_', '-'))}" for t in TOOLS)
    text = [
        "# Reading and writing",
        "",
        f"`python bench/io.py --models DIR --generated`: {tools}; Python "
        f"{platform.python_version()}, {os.cpu_count()} CPUs. Median of {options.repeats} runs, "
        "in turns; memory is the largest anonymous resident size, imports included. graphopt's "
        "time includes syncing the file to disk; the others' does not. Other work ran "
        "on the machine: compare within a row.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *rows,
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:5], bool(int(sys.argv[5])))  # type: ignore[arg-type]
    else:
        main()
