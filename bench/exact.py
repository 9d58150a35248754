"""The exact passes beside onnxsim, onnxslim, onnxscript's optimizer and ONNX Runtime's offline one.

    python bench/exact.py --models DIR [--models DIR ...] [--light] --out bench/results/exact

DIR holds NAME.onnx, and NAME.npz beside it (arrays `in:INPUT`); inputs without one are drawn from a
seed. Every tool runs in a process of its own for every model, forked from one that has done the
imports: seconds are reading, rewriting and writing; memory is the peak of that process's anonymous
memory above what it had at the fork, seen from outside every 2 ms. Every result is then compared
with its source on the inputs, ONNX Runtime's own optimizations off, and timed beside its source in
interleaved rounds, on one thread, the runtime's optimizations on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

STANDARD = ("graphopt", "onnxsim", "onnxslim", "onnxscript", "ort-basic")
RUNTIME = ("graphopt-cpu", "ort-extended")
VERIFIED = ("graphopt-verified",)
SPEC = "clean,fold,fuse"
#: Why a peer leaves fewer nodes, by model (the end of its path) and peer.
REASONS = Path(__file__).with_name("exact_reasons.json")


# --- the tools: each reads `source` and writes `out` ------------------------------------------


def graphopt(target_name: str) -> Any:
    import onnxruntime  # noqa: F401  (imports are not counted)

    import graphopt.analyses.shapes.operators
    import graphopt.graph.evaluation
    import graphopt.rewriting.opset  # noqa: F401
    from graphopt import Context, parse
    from graphopt.backend import find_target
    from graphopt.formats import load, save

    passes, target = parse(SPEC), find_target(target_name)

    def rewrite(source: str, out: str) -> None:
        model = load(source)
        before = None
        for one in passes:  # as graphopt.pipeline.step.run_pass does
            ctx = Context(model, target=target, pass_name=str(one))
            if before is not None:
                ctx.adopt(before)
            one.run(model, ctx)
            ctx.invalidate(one.preserves)
            before = ctx
        save(model, out)

    return rewrite


def verified() -> Any:
    """As a user runs it: outputs compared after every pass, the report written, nothing timed."""
    import onnxruntime  # noqa: F401

    import graphopt.pipeline.run
    from graphopt import parse
    from graphopt.formats import save

    passes = parse(SPEC)

    def rewrite(source: str, out: str) -> None:
        result = graphopt.pipeline.optimize.optimize(source, passes, target="onnx", measure=False)
        save(result.model, out)

    return rewrite


def onnxsim() -> Any:
    import onnx
    import onnxsim

    def rewrite(source: str, out: str) -> None:
        large = size_of(source) > 2**31 - 2**20
        simplified, _ = onnxsim.simplify(source if large else onnx.load(source))
        onnx.save(simplified, out, save_as_external_data=large)

    return rewrite


def onnxslim() -> Any:
    import onnxslim

    return lambda source, out: onnxslim.slim(
        source, out, save_as_external_data=size_of(source) > 2**31 - 2**20
    )


def onnxscript() -> Any:
    import onnx_ir as ir
    import onnxscript.optimizer

    def rewrite(source: str, out: str) -> None:
        model = onnxscript.optimizer.optimize(ir.load(source))
        large = size_of(source) > 2**31 - 2**20
        ir.save(model, out, external_data=Path(out).name + ".data" if large else None)

    return rewrite


def ort(level: str) -> Any:
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel

    def rewrite(source: str, out: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(levels, f"ORT_ENABLE_{level.upper()}")
        options.optimized_model_filepath = out
        if size_of(source) > 2**31 - 2**20:
            name = Path(out).name + ".data"
            key = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(key, name)
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return rewrite


TOOLS = {
    "graphopt": lambda: graphopt("onnx"),
    "graphopt-cpu": lambda: graphopt("cpu"),
    "graphopt-verified": verified,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxscript": onnxscript,
    "ort-basic": lambda: ort("basic"),
    "ort-extended": lambda: ort("extended"),
}


def size_of(path: str) -> int:
    """Bytes of a model, external data of the same name included."""
    return sum(p.stat().st_size for p in Path(path).parent.glob(Path(path).name + "*"))


# --- children -----------------------------------------------------------------------------------


def child_rewrite(rewrite: Any, source: str, out: str) -> dict[str, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    rewrite(source, out)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }


def count_nodes(path: str) -> int:
    import onnx_ir as ir

    return sum(1 for _ in ir.load(path).graph.all_nodes())


def child_judge(source: str, result: str, feeds: str, seconds: float) -> dict[str, Any]:
    import onnxruntime

    from graphopt.measuring.statistics import interleave, interval

    levels = onnxruntime.GraphOptimizationLevel
    given = dict(np.load(feeds))

    def session(path: str, level: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1  # two pools that spin would slow each other
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    error, outputs = 0.0, []
    for path in (source, result):
        s = session(path, levels.ORT_DISABLE_ALL)
        outputs.append(
            dict(zip([o.name for o in s.get_outputs()], s.run(None, given), strict=True))
        )
        del s
    for name, a in outputs[0].items():
        error = max(error, difference(a, outputs[1][name]))
    pair = [session(p, levels.ORT_ENABLE_ALL) for p in (source, result)]
    times = interleave([partial(s.run, None, given) for s in pair], seconds)
    mean, low, high = interval(np.log(times[:, 1] / times[:, 0]))
    source_ms, ms = np.median(times, axis=0)
    return {
        "error": error,
        "source_ms": float(source_ms),
        "ms": float(ms),
        "ratio": float(np.exp(mean)),
        "ratio_ci": [float(np.exp(low)), float(np.exp(high))],
    }


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2; infinite if shapes differ or NaN or Inf moved."""
    if a.shape != b.shape or a.dtype.kind not in "fiub":
        return 0.0 if a.shape == b.shape and (a == b).all() else float("inf")
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)):
        return float("inf")
    norm = float(np.linalg.norm(x[finite]))
    return float(np.linalg.norm(x[finite] - y[finite])) / max(norm, 1e-30)


# --- the parent ---------------------------------------------------------------------------------


def anonymous(pid: int) -> int:
    """Anonymous memory of a process, in bytes."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def serve(kind: str) -> None:
    """Import once, then do every job read from stdin in a fork."""
    if kind == "judge":
        import onnxruntime  # noqa: F401

        work: Any = child_judge
    else:
        rewrite = TOOLS[kind]()

        def work(source: str, out: str) -> dict[str, Any]:
            return child_rewrite(rewrite, source, out)

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            print(f"START {os.getpid()} {anonymous(os.getpid())}", flush=True)
            try:
                found = work(*json.loads(line))
            except BaseException as error:  # whatever a tool raises is its result
                lines = [f"{type(error).__name__}: {error}", *str(error).splitlines()]
                found = {"failed": lines[0][:200]}
            print("RESULT " + json.dumps(found), flush=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            found = {"failed": f"killed by signal {status & 127}"}
            print("RESULT " + json.dumps(found), flush=True)


class Server:
    """A process that has done one tool's imports."""

    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--serve", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *job: Any, limit: float) -> dict[str, Any]:
        """One job's result, with the peak of its anonymous memory."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        watch: Watch | None = None
        for line in self.process.stdout:
            if line.startswith("START "):
                pid, base = line.split()[1:]
                watch = Watch(int(pid), int(base), limit)
                watch.start()
            elif line.startswith("RESULT "):
                found: dict[str, Any] = json.loads(line[7:])
                assert watch
                watch.done.set()
                watch.join()
                return {**found, "anonymous": watch.peak - watch.base}
        return {"failed": "the tool's process ended"}


class Watch(threading.Thread):
    """The peak of a process's anonymous memory, until done; ends it after `limit` seconds."""

    def __init__(self, pid: int, base: int, limit: float) -> None:
        super().__init__(daemon=True)
        self.pid, self.base, self.peak, self.limit = pid, base, base, limit
        self.done = threading.Event()

    def run(self) -> None:
        end = time.monotonic() + self.limit
        while not self.done.wait(0.002):
            self.peak = max(self.peak, anonymous(self.pid))
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                return


def feeds_for(source: Path, folder: Path) -> Path:
    """Inputs beside the model, or seeded ones."""
    import onnxruntime

    path = folder / "feeds.npz"
    beside = source.with_suffix(".npz")
    if beside.exists():
        arrays = np.load(beside)
        np.savez(path, **{k[3:]: arrays[k] for k in arrays if k.startswith("in:")})
        return path
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    inputs = onnxruntime.InferenceSession(str(source), options).get_inputs()
    rng = np.random.default_rng(0)
    shapes = {i.name: [d if isinstance(d, int) else 1 for d in i.shape] for i in inputs}
    np.savez(path, **{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    return path


def measure(
    source: Path, servers: dict[str, Server], seconds: float, limit: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"nodes": count_nodes(str(source)), "bytes": size_of(str(source))}
    with tempfile.TemporaryDirectory(prefix="exact-", dir=os.environ.get("EXACT_TMP")) as scratch:
        folder = Path(scratch)
        feeds = feeds_for(source, folder)
        for tool, server in servers.items():
            if tool == "judge":
                continue
            out = folder / tool / "model.onnx"
            out.parent.mkdir()
            found = server.run(str(source), str(out), limit=limit)
            if "failed" not in found:
                found.update(nodes=count_nodes(str(out)), bytes=size_of(str(out)))
                if seconds and tool not in VERIFIED:
                    judge = servers["judge"]
                    judged = judge.run(str(source), str(out), str(feeds), seconds, limit=limit)
                    judged.pop("anonymous", None)
                    bad = {"unrunnable": judged.get("failed")}
                    found.update(bad if "failed" in judged else judged)
            row[tool] = found
            for file in out.parent.iterdir():
                file.unlink()
    return row


def light_models() -> list[Path]:
    import onnx.backend.test

    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    return sorted(folder.glob("*.onnx"))


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, action="append", default=[])
    parser.add_argument("--light", action="store_true", help="the light models that onnx ships")
    parser.add_argument("--tools", default=",".join([*STANDARD, *RUNTIME, *VERIFIED]))
    parser.add_argument("--seconds", type=float, default=0.5, help="timing per result; 0: none")
    parser.add_argument("--limit", type=float, default=600, help="seconds a tool may take")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    from exact_report import as_text

    data = args.out.with_suffix(".json")
    rows: dict[str, Any] = json.loads(data.read_text()) if data.exists() else {}
    models = [(d.name, p) for d in args.models for p in sorted(d.glob("*.onnx"))]
    models += [("light", p) for p in (light_models() if args.light else [])]
    servers = {tool: Server(tool) for tool in [*args.tools.split(","), "judge"]}
    for group, path in models:
        name = f"{group}/{path.stem}"
        row = measure(path, servers, args.seconds, args.limit)
        rows[name] = {**rows.get(name, {}), **row}
        counts = {t: r.get("nodes", r.get("failed")) for t, r in row.items() if isinstance(r, dict)}
        print(name, row["nodes"], counts, flush=True)
        data.write_text(json.dumps(rows, indent=1) + "\n")
        reasons = json.loads(REASONS.read_text()) if REASONS.exists() else {}
        notes = args.out.with_name(args.out.name + "_notes.md")
        said = notes.read_text() if notes.exists() else ""
        args.out.with_suffix(".md").write_text(as_text(rows, reasons, said))


if __name__ == "__main__":
    main()
