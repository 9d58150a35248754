#!/usr/bin/env python3
"""Models on ONNX Runtime's CUDA provider: correctness, size, and time beside the source there.

    python bench/cuda.py --models DIR [--models DIR ...] [--seconds S] [--out DIR] [NAME ...]

DIR holds NAME.onnx, with NAME.npz (`in:` arrays) beside it or else inputs drawn for it. Needs an
NVIDIA GPU and `graphopt[cuda]`; `--target cpu` goes through the same motions without one.

Every form of a model is made by graphopt without measuring, written by the target's backend and
opened as it is deployed. "kept" is the relative L2 difference of its outputs on the GPU to those of
the same file on the CPU, and has to be within the tolerance of its arithmetic; "lost" is that to
the source on the CPU, which is the price of the form itself. Times include the copies of inputs and
outputs: the source opened plainly by ONNX Runtime, the source as graphopt opens it, and every form
take turns in random order. Speed-ups are over the source as graphopt opens it, with their 95 %
interval.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import logging
import multiprocessing
import os
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from graphopt import load, optimize
from graphopt.analyses.binding import bind_shapes
from graphopt.backend import Timing, backend_of, find_target
from graphopt.deploy.manifest import Manifest
from graphopt.deploy.sessions import open_manifest
from graphopt.errors import GraphOptError
from graphopt.measuring.statistics import compare_times, interleave
from graphopt.samples import Samples, stand_ins


@dataclasses.dataclass(frozen=True)
class Form:
    """A pipeline, the target whose data it reads ("" for the bench's own), and its tolerance."""

    name: str
    passes: str
    tolerance: float
    target: str = ""


#: The provider multiplies float32 in TF32, whose 10 bits round as float16's do: 2^-11 an operand,
#: some dozens in a row. Eight bits of an activation are 2^-8, and a rounding the other way at a
#: boundary is a whole step.
FORMS = (
    Form("source", "", 0.01),
    Form("fused", "clean, fold, fuse", 0.01),
    Form("fp16", "clean, fold, fuse, fp16", 0.02),
    Form("4-bit weights", "clean, fold, fuse, weight_only(bits=4)", 0.01),
    Form("8-bit weights", "clean, fold, fuse, weight_only(bits=8)", 0.01),
    Form("fp16, 4-bit weights", "clean, fold, fuse, weight_only(bits=4), fp16", 0.02),
    Form("Q/DQ int8", "clean, fold, fuse, int8", 0.05, "tensorrt-sm90"),
)
HEAD = "| model | form | changes | bytes | kept | lost | ms | speed-up (95 %) | noise |"


@dataclasses.dataclass
class Row:
    """One form of one model; `said` is why it has no figures."""

    form: str
    tolerance: float
    file: Path | None = None
    on_cpu: Any = None
    changes: str = ""
    size: int = 0
    kept: float = float("nan")
    lost: float = float("nan")
    fits: bool = False
    call: Any = None
    timing: Timing | None = None
    said: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--target", default="cuda")
    parser.add_argument("--seconds", type=float, default=4.0, help="timing per model")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    target = find_target(args.target)
    if not target.measured:
        raise SystemExit(f"'{target.name}' does not run here; see `graphopt targets`")
    paths = [p for folder in args.models for p in sorted(folder.glob("*.onnx"))]
    paths = [p for p in paths if not args.names or p.stem in args.names]
    lines = [*preface(), HEAD, "|---" * HEAD.count(" | ") + "|---|"]
    count = min(len(FORMS), os.cpu_count() or 1)
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        for path in paths:
            with tempfile.TemporaryDirectory() as work:
                tasks = [(path, f, target, Path(work, str(k))) for k, f in enumerate(FORMS)]
                rows = list(pool.map(prepare, *zip(*tasks, strict=True)))
                for row in through(path, target, rows, args.seconds):
                    lines.append(line(path.stem, row))
                    print(lines[-1], flush=True)
            (args.out / f"{target.name}.md").write_text("\n".join(lines) + "\n")
            gc.collect()


def prepare(path: Path, form: Form, target: Any, folder: Path) -> Row:
    """One form, written for the target and run on the CPU; several are made at a time."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    row, feeds = Row(form.name, form.tolerance), inputs(path)
    backend = backend_of(target)
    assert backend is not None
    with refusals(row):
        model = load(path)
        if form.passes:
            made = optimize(
                model,
                form.passes,
                target=form.target or target,
                samples=Samples([feeds]),
                measure=False,
                verify="graph",
            )
            model = made.model
            row.changes = str(sum(s.edits for s in made.report.steps))
            idle = [s for s in made.report.steps[3:] if not s.edits]
            if idle:
                row.said = f"{idle[0].spec} changes nothing"
                return row
        folder.mkdir(parents=True)
        row.file = backend.lower(model, target, folder / "model.onnx")
        row.size = sum(f.stat().st_size for f in folder.glob("model.onnx*"))
        row.on_cpu = on_cpu(row.file, feeds)
    return row


def through(path: Path, target: Any, rows: list[Row], seconds: float) -> list[Row]:
    """Every form of one model run on the target, compared and timed; those that change nothing
    are left out.
    """
    feeds, backend = inputs(path), backend_of(target)
    assert backend is not None
    source = rows[0]
    plain = Row("source, plain session", source.tolerance, file=source.file, size=source.size)
    plain.on_cpu = source.on_cpu
    rows = [source, plain, *(r for r in rows[1:] if "changes nothing" not in r.said)]
    for row in rows:
        if row.file is None:
            continue
        with refusals(row):
            if row is plain:
                provider = backend.how(row.file, target).provider  # type: ignore[attr-defined]
                row.call = open_manifest(row.file, Manifest(target.name, provider))
            else:
                row.call = backend.session(row.file, target)
            first = row.call(feeds)
            again = row.call(feeds)  # a CUDA graph is replayed from the second run on
            if any(relative(again[k], first[k]) > row.tolerance for k in first):
                row.said = "two runs differ"
            judge(row, again, source.on_cpu)
    time_all(rows, feeds, seconds)
    return rows


def judge(row: Row, got: Any, expected: Any) -> None:
    """How far outputs are from the same file's and from the source's on the CPU."""
    row.lost = max(relative(got[k], expected[k]) for k in expected)
    if row.on_cpu is not None:
        row.kept = max(relative(got[k], row.on_cpu[k]) for k in row.on_cpu)
    row.fits = row.kept <= row.tolerance


@contextlib.contextmanager
def refusals(row: Row) -> Iterator[None]:
    """A form that fails is a finding, and the others go on."""
    try:
        yield
    except GraphOptError as error:
        row.call, row.said = None, f"refused: {error}"
    except Exception as error:
        row.call, row.said = None, f"FAILED: {type(error).__name__}: {error}"


def time_all(rows: list[Row], feeds: Any, seconds: float) -> None:
    """Times of every form that runs, beside the first, which is there twice."""
    there = [r for r in rows if r.call is not None]
    if not there or there[0] is not rows[0]:
        return
    calls = [lambda c=r.call: c(feeds) for r in [*there, there[0]]]
    times = interleave(calls, seconds)
    for row, column in zip(there, times.T[:-1], strict=True):
        row.timing = compare_times(times[:, 0], column, times[:, -1])
        row.call = None


def inputs(path: Path) -> dict[str, Any]:
    """Those beside the model, or drawn for what its inputs mean."""
    beside = path.with_suffix(".npz")
    if beside.is_file():
        with np.load(beside) as data:
            found = {k[3:]: data[k] for k in data.files if k.startswith("in:")}
        if found:
            return found
    model = load(path)
    return dict(next(iter(stand_ins(model, seed=0, shapes=bind_shapes(model, {})[0]))))


def on_cpu(path: Path, feeds: Any) -> dict[str, Any] | None:
    """Outputs on the CPU, not optimized; None if its provider has no kernel for the file."""
    try:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:
        print(f"  not on the CPU: {str(error)[:300]}", flush=True)
        return None


def relative(got: Any, expected: Any) -> float:
    """Relative L2 difference; infinite where shapes or integers differ or values aren't finite."""
    a, b = np.asarray(expected), np.asarray(got)
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind not in "f":
        return 0.0 if (a == b).all() else float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    error = np.linalg.norm(b - a) / max(np.linalg.norm(a), 1e-30)
    return float(error) if np.isfinite(error) else float("inf")


def line(model: str, row: Row) -> str:
    """A row of the table."""
    cells = [model, row.form, row.changes, f"{row.size:,}" if row.size else ""]
    if row.timing is None:
        return "| " + " | ".join([*cells, "", "", "", row.said[:400].replace("|", "/"), ""]) + " |"
    low, high = row.timing.ci
    kept = f"{row.kept:.2g}{'' if row.fits else ' OUTSIDE'}"
    speed = f"{1 / row.timing.ratio:.2f} ({1 / high:.2f} to {1 / low:.2f}) {row.said}".strip()
    cells += [kept, f"{row.lost:.2g}", f"{row.timing.b_ms:.3f}", speed, f"{row.timing.spread:.1%}"]
    return "| " + " | ".join(cells) + " |"


def preface() -> list[str]:
    """What ran where."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError):
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        return [f"{said}; ONNX Runtime {ort.__version__}.", ""]
    return [f"ONNX Runtime {ort.__version__}, no GPU.", ""]


if __name__ == "__main__":
    main()
