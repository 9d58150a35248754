"""Low-rank factorization: accuracy against cost, latency at full size, time and memory.

    python bench/lowrank.py accuracy --models DIR [--names lstm,...]  # glyph models and glyphs.npz
    python bench/lowrank.py latency --models DIR                      # vgg16.onnx, bert_base.onnx
    python bench/lowrank.py memory --models DIR                       # bert_base.onnx

Rows go to bench/results/lowrank.json, tables to lowrank.md, the plot to lowrank.png (matplotlib).
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.svd import Svd

from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.cost import cost
from graphopt.backend import backend_of, find_target
from graphopt.context import Context
from graphopt.execution.runtime import run_each
from graphopt.formats import load, save
from graphopt.measuring.parts import timer_of
from graphopt.samples import Samples

RESULTS = Path(__file__).parent / "results"
RATIOS = {
    "resnet20": (0.5, 0.7, 0.8),
    "transformer": (0.4, 0.5, 0.6, 0.7),
    "lstm": (0.25, 0.3, 0.35, 0.4, 0.45),
}
SAMPLES = 512


def counted(model: ir.Model) -> dict[str, float]:
    shapes = bind_shapes(model, {})[0]
    found = Context(model, shapes=shapes).get(cost)
    return {"macs": found.macs, "params": found.params}


# --- accuracy -----------------------------------------------------------------------------------


def accuracy(model: ir.Model, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    feeds = [{"x": x[i : i + 250]} for i in range(0, len(x), 250)]
    name = model.graph.outputs[0].name or ""
    said = [out[name].argmax(-1) for out in run_each(model, feeds, optimize=True)]
    return float((np.concatenate(said) == y).mean())


def accuracies(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    data = np.load(folder / "glyphs.npz")
    x_val, x_train = (
        ((data[k].astype(np.float32) / 255 - 0.5) / 0.25) for k in ("x_val", "x_train")
    )
    feeds = [{"x": x_train[i : i + 64]} for i in range(0, SAMPLES, 64)]
    rows = []
    for name in names:
        source = load(folder / f"{name}.onnx")
        whole = counted(source)
        first = accuracy(source, x_val, data["y_val"])
        rows.append({"model": name, "kind": "source", "ratio": 0.0, "accuracy": first, **whole})
        for ratio in RATIOS[name]:
            for kind in ("plain", "data-aware"):
                model = load(folder / f"{name}.onnx")
                samples = Samples(feeds, "unlabelled") if kind == "data-aware" else None
                ctx = Context(model, samples=samples, pass_name="svd")
                Svd(ratio=ratio).run(model, ctx)
                got = accuracy(model, x_val, data["y_val"])
                row = {"model": name, "kind": kind, "ratio": ratio, "accuracy": got}
                rows.append({**row, **counted(model)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def left_at(rows: list[dict[str, Any]], name: str, kind: str, of: str, drop: float) -> float | None:
    """Share of the cost left where accuracy is `drop` below the source's, interpolated."""
    source = next(r for r in rows if r["model"] == name and r["kind"] == "source")
    points = [source, *(r for r in rows if r["model"] == name and r["kind"] == kind)]
    points.sort(key=lambda r: -r[of])
    limit = source["accuracy"] - drop
    for a, b in itertools.pairwise(points):
        if b["accuracy"] < limit <= a["accuracy"]:
            share = (a["accuracy"] - limit) / (a["accuracy"] - b["accuracy"])
            return float((a[of] + share * (b[of] - a[of])) / source[of])
    return None


def accuracy_tables(rows: list[dict[str, Any]]) -> str:
    lines = ["## Accuracy of the glyph models", ""]
    lines.append(f"Without retraining; data-aware on {SAMPLES} unlabelled training glyphs.")
    lines += ["", "| model | removed | plain | | | data-aware | | |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines.append("| | | accuracy | MACs left | params left | accuracy | MACs left | params left |")
    names = list(dict.fromkeys(r["model"] for r in rows))
    for name in names:
        source = next(r for r in rows if r["model"] == name and r["kind"] == "source")
        lines.append(f"| {name} | 0 | {source['accuracy']:.4f} | | | | | |")
        for ratio in sorted({r["ratio"] for r in rows if r["model"] == name} - {0.0}):
            cells = []
            for kind in ("plain", "data-aware"):
                row = next(
                    r for r in rows if (r["model"], r["kind"], r["ratio"]) == (name, kind, ratio)
                )
                cells.append(f"{row['accuracy']:.4f}")
                cells += [f"{row[of] / source[of]:.3f}" for of in ("macs", "params")]
            lines.append(f"| {name} | {ratio:g} | " + " | ".join(cells) + " |")
    lines += ["", "Share left at one point of accuracy lost (interpolated):", ""]
    lines += ["| model | MACs, plain | MACs, data-aware | ratio | params, plain | params, aware |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in names:
        at = {
            (kind, of): left_at(rows, name, kind, of, 0.01)
            for kind in ("plain", "data-aware")
            for of in ("macs", "params")
        }
        a, b = at["plain", "macs"], at["data-aware", "macs"]
        ratio = f"{b / a:.2f}" if a and b else ""
        show = [f"{v:.3f}" if v else "" for v in (a, b)]
        show += [ratio]
        show += [
            f"{v:.3f}" if v else "" for v in (at["plain", "params"], at["data-aware", "params"])
        ]
        lines.append(f"| {name} | " + " | ".join(show) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r["model"] for r in rows))
    figure, axes = plt.subplots(2, len(names), figsize=(4 * len(names), 6), squeeze=False)
    for column, name in enumerate(names):
        source = next(r for r in rows if r["model"] == name and r["kind"] == "source")
        for line, of in enumerate(("macs", "params")):
            at = axes[line][column]
            for kind in ("plain", "data-aware"):
                points = [source, *(r for r in rows if (r["model"], r["kind"]) == (name, kind))]
                points.sort(key=lambda r: r[of])
                xs = [p[of] / source[of] for p in points]
                at.plot(xs, [p["accuracy"] for p in points], marker="o", label=kind)
            at.set_title(name)
            at.set_xlabel(f"{of} left")
            at.set_ylabel("accuracy")
            at.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


# --- latency ------------------------------------------------------------------------------------


def low_rank(model: ir.Model, seed: int = 0) -> None:
    """Replace every large weight by one of an eighth of its rank plus 10 % of noise (in norm)."""
    rng = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) not in (2, 4):
            continue
        w = tensor.numpy()
        rows, columns = w.shape[0], w.size // w.shape[0]
        if min(rows, columns) < 32:
            continue
        rank = min(rows, columns) // 8
        a = rng.standard_normal((rows, rank), np.float32)
        new = a @ rng.standard_normal((rank, columns), np.float32)
        new *= np.linalg.norm(w) / np.linalg.norm(new)
        noise = rng.standard_normal((rows, columns), np.float32)
        new += noise * (0.1 * np.linalg.norm(new) / np.linalg.norm(noise))
        value.const_value = ir.tensor(new.reshape(w.shape), name=value.name)


def latencies(folder: Path, seconds: float) -> list[dict[str, Any]]:
    rows = []
    target = find_target("cpu")
    backend = backend_of(target)
    assert backend is not None
    for name in ("bert_base", "vgg16"):
        with np.load(folder / f"{name}.npz") as data:
            feeds = {k[3:]: data[k] for k in data.files if k.startswith("in:")}
        for kind in ("random weights", "low rank plus noise"):
            with tempfile.TemporaryDirectory() as scratch:
                paths = [Path(scratch, "a.onnx"), Path(scratch, "b.onnx")]
                model = load(folder / f"{name}.onnx")
                if kind != "random weights":
                    low_rank(model)
                save(model, paths[0])
                before = counted(model)
                model = load(paths[0])
                shapes = {k: v.shape for k, v in feeds.items()}
                ctx = Context(
                    model,
                    target=target,
                    pass_name="svd",
                    shapes=shapes,
                    timer=timer_of(target),
                )
                start = time.perf_counter()
                edits = Svd(energy=0.9).run(model, ctx)
                took = time.perf_counter() - start
                save(model, paths[1])
                after = counted(model)
                times = backend.measure(*paths, feeds, target, seconds)
            slower = sum("no faster" in r.reason for r in ctx.refusals)
            full = sum("of the energy" in r.reason for r in ctx.refusals)
            rows.append(
                {
                    "model": name,
                    "weights": kind,
                    "factored": edits,
                    "refused_slower": slower,
                    "refused_rank": full,
                    "seconds": took,
                    **{f"{k}_before": v for k, v in before.items()},
                    **{f"{k}_after": v for k, v in after.items()},
                    "ms_before": times.a_ms,
                    "ms_after": times.b_ms,
                    "ratio": times.ratio,
                    "ci": times.ci,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def latency_tables(rows: list[dict[str, Any]]) -> str:
    lines = ["## Full-size models at energy 0.9, every factored layer measured on the target", ""]
    lines.append(
        "Random weights have full rank: little can be factored. 'Low rank plus noise' is an eighth "
        "of the rank with a tenth of noise in norm. The machine was busy: read the ratios."
    )
    lines += ["", "| model | weights | factored | rank too high | measured no faster | params |"]
    lines[-1] += " MACs | ms | ratio (95 %) | seconds |"
    lines += ["|---" * 10 + "|"]
    for r in rows:
        lines.append(
            f"| {r['model']} | {r['weights']} | {r['factored']} | {r['refused_rank']} | "
            f"{r['refused_slower']} | {r['params_before'] / 1e6:.1f} -> "
            f"{r['params_after'] / 1e6:.1f} M | {r['macs_before'] / 1e9:.2f} -> "
            f"{r['macs_after'] / 1e9:.2f} G | {r['ms_before']:.1f} -> {r['ms_after']:.1f} | "
            f"{r['ratio']:.2f} ({r['ci'][0]:.2f} to {r['ci'][1]:.2f}) | {r['seconds']:.0f} |"
        )
    return "\n".join(lines)


# --- memory -------------------------------------------------------------------------------------


def _anonymous() -> float:
    """Anonymous memory of this process in MB."""
    text = Path("/proc/self/status").read_text()
    return float(text.split("RssAnon:")[1].split()[0]) / 1000


def _peak(path: Path, answer: Any) -> None:
    import threading

    seen = [_anonymous()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(_anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    start, cpu = time.perf_counter(), time.process_time()
    model = load(path)
    edits = Svd(energy=0.9).run(model, Context(model, pass_name="svd"))
    with tempfile.TemporaryDirectory() as scratch:
        save(model, Path(scratch, "out.onnx"))
    took, used = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    thread.join()
    answer.put({"edits": edits, "seconds": took, "cpu_seconds": used, "peak_anon_mb": max(seen)})


def memory(folder: Path) -> dict[str, Any]:
    path = folder / "bert_base.onnx"
    spawn = multiprocessing.get_context("spawn")
    answer = spawn.Queue()
    child = spawn.Process(target=_peak, args=(path, answer))
    child.start()
    row: dict[str, Any] = answer.get()
    child.join()
    size = path.stat().st_size / 1e6
    return {**row, "model_mb": size, "limit_mb": 150 + 1.3 * size}


def memory_table(row: dict[str, Any]) -> str:
    return (
        "## Time and memory: BERT-base read, factored at energy 0.9 and written, one process\n\n"
        "| layers factored | seconds | processor seconds | peak anonymous MB | limit MB |\n"
        "|---|---|---|---|---|\n"
        f"| {row['edits']} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | "
        f"{row['peak_anon_mb']:.0f} | {row['limit_mb']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("accuracy", "latency", "memory"))
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--names", default=",".join(RATIOS))
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    names = args.names.split(",")
    if args.what == "accuracy":
        found: Any = accuracies(args.models, names)
    elif args.what == "latency":
        found = latencies(args.models, args.seconds)
    else:
        found = memory(args.models)
    store = RESULTS / "lowrank.json"
    kept = json.loads(store.read_text()) if store.exists() else {}
    if args.what == "accuracy":
        found += [r for r in kept.get("accuracy", []) if r["model"] not in names]
        plot(found, RESULTS / "lowrank.png")
    kept[args.what] = found
    RESULTS.mkdir(exist_ok=True)
    store.write_text(json.dumps(kept, indent=1) + "\n")
    tables = {"accuracy": accuracy_tables, "latency": latency_tables, "memory": memory_table}
    text = "\n\n".join(make(kept[k]) for k, make in tables.items() if k in kept)
    (RESULTS / "lowrank.md").write_text(f"# Low-rank factorization\n\n{text}\n")


if __name__ == "__main__":
    main()
