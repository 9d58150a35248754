#!/usr/bin/env python3
"""graphopt's targets beside OpenVINO, NNCF and ONNX Runtime's quantizer, one interleaved run each.

    python bench/targets.py --models DIR [--glyphs DIR] [--threads 2] [--out DIR] [NAME ...]

DIR holds NAME.onnx with NAME.npz (`in:` and `out:` arrays) beside it. For each model every variant
is opened in one process and timed in rounds of random order; a table gives the speed-up over ONNX
Runtime's float, its 95 % interval, and the relative L2 error of the outputs. Below it, for every
peer: whether the fastest graphopt result that is at least as exact is slower than it.

--glyphs adds trained models (NAME.onnx and glyphs.npz with x_val, y_val, x_train): accuracy
instead of error, and the fastest graphopt result that lost at most one point.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import Feeds, Variant, peers

from graphopt import Budget, load, optimize
from graphopt.auto import runnable
from graphopt.backend import backend_of
from graphopt.errors import GraphOptError
from graphopt.samples import Samples
from graphopt.timing import compare_times, interleave

SPECS = {
    "float": "clean, fold, fuse",
    "int8": "clean, fold, fuse, int8",
    "prune + int8": "clean, fold, prune(ratio=0.5), fuse, int8",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--glyphs", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--specs", default=",".join(SPECS), help="which of: " + ", ".join(SPECS))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--work", type=Path, help="keep what was made here, and take it from here")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    for folder, run in ((args.models, zoo), (args.glyphs, glyphs)):
        for path in sorted(folder.glob("*.onnx")) if folder else []:
            if args.names and path.stem not in args.names:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                work = (args.work or Path(scratch)) / path.stem
                work.mkdir(parents=True, exist_ok=True)
                found = run(path, work, args)
            remember(args.out / "targets.json", path.stem, found)
            gc.collect()
    write_table(args.out / "targets.json", args.out / "targets.md")


def zoo(path: Path, work: Path, args: Any) -> dict[str, Any]:
    """A model with random weights: error against the reference outputs."""
    with np.load(path.with_suffix(".npz")) as data:
        feeds = {k[3:]: data[k] for k in data.files if k.startswith("in:")}
        expected = {k[4:]: data[k] for k in data.files if k.startswith("out:")}
    calibration = [feeds, *(draw(feeds, seed) for seed in range(7))]
    variants = [*peers(path, work, calibration, args), *ours(path, work, calibration, args)]
    for variant in variants:
        got = variant.call(feeds)
        variant.error = max(relative(got[k], expected[k]) for k in expected)
    return timed(path.stem, variants, feeds, args.seconds)


def glyphs(path: Path, work: Path, args: Any) -> dict[str, Any]:
    """A trained model: points of accuracy lost on the validation data."""
    with np.load(path.parent / "glyphs.npz") as data:
        pixels = {k: (data[k] / np.float32(255) - 0.5) / 0.25 for k in ("x_train", "x_val")}
        labels = data["y_val"]
    pixels = {k: v.astype(np.float32).reshape(-1, 1, 32, 32) for k, v in pixels.items()}
    (name,) = [v.name for v in load(path).graph.inputs]

    def accuracy(predict: Callable[[Feeds], dict[str, Any]]) -> float:
        right = 0
        for k in range(0, len(labels), 100):
            (scores,) = predict({name: pixels["x_val"][k : k + 100]}).values()
            right += int((scores.argmax(-1) == labels[k : k + 100]).sum())
        return right / len(labels)

    calibration = [{name: pixels["x_train"][k : k + 32]} for k in range(0, 512, 32)]
    budget = Budget(max_drop=0.01, evaluate=accuracy)
    specs = {f"prune {r} + int8": f"prune(ratio={r}), fuse, int8" for r in (0.2, 0.35, 0.5)}
    variants = [
        *peers(path, work, calibration, args),
        *ours(path, work, calibration, args, {**SPECS, **specs}, budget),
    ]
    feeds = {name: pixels["x_val"][:1]}
    source = accuracy(variants[0].call)
    for variant in variants:
        variant.error = 100 * (source - accuracy(variant.call))
    return {**timed(path.stem, variants, feeds, args.seconds), "accuracy": source}


def ours(
    path: Path,
    work: Path,
    calibration: list[Feeds],
    args: Any,
    specs: dict[str, str] = SPECS,
    budget: Budget | None = None,
) -> list[Variant]:
    """graphopt on every target this machine runs."""
    found = []
    for target in runnable()[0]:
        if args.threads:
            target = dataclasses.replace(target, threads=args.threads)
        backend = backend_of(target)
        assert backend is not None
        for label, spec in specs.items():
            if label in SPECS and label not in args.specs.split(","):
                continue
            if target.name == "openvino-f32" and label != "float":
                continue
            file = work / f"{target.name}-{label.replace(' ', '')}" / "model.onnx"
            facts = file.with_suffix(".facts.json")
            try:
                if not facts.is_file():
                    file.parent.mkdir(exist_ok=True)
                    facts.write_text(
                        json.dumps(make(path, spec, target, file, calibration, budget))
                    )
                opened = backend.session(file, target, beside=True)
            except GraphOptError as error:
                print(f"  {target.name} {label}: {error}", flush=True)
                continue
            made = json.loads(facts.read_text())
            name = f"graphopt {target.name}: {label}{made['note']}"
            found.append(Variant(name, True, opened, 0.0, made["seconds"]))
            print(f"  {name}: made in {made['seconds']:.0f} s", flush=True)
    return found


def make(
    path: Path,
    spec: str,
    target: Any,
    file: Path,
    calibration: list[Feeds],
    budget: Budget | None,
) -> dict[str, Any]:
    began = time.perf_counter()
    result = optimize(
        path,
        spec,
        target=target,
        samples=Samples(calibration, "calibration"),
        budget=budget,
        measure_seconds=2.0,
    )
    backend_of(target).lower(result.model, target, file)  # type: ignore[union-attr]
    undone = [s.spec for s in result.report.steps if s.status in ("undone", "refused")]
    note = f" (without {', '.join(undone)})" if undone else ""
    return {"note": note, "seconds": time.perf_counter() - began}


def draw(feeds: Feeds, seed: int) -> Feeds:
    """Inputs like the given: normal floats, token ids below the largest seen, the same masks."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, array in feeds.items():
        if array.dtype.kind == "f":
            drawn[name] = rng.standard_normal(array.shape).astype(array.dtype)
        elif array.max(initial=0) > 1:
            drawn[name] = rng.integers(0, array.max(), array.shape).astype(array.dtype)
        else:
            drawn[name] = array
    return drawn


def relative(got: Any, expected: Any) -> float:
    a, b = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    return float(np.linalg.norm(b - a) / max(np.linalg.norm(a), 1e-30))


def timed(name: str, variants: list[Variant], feeds: Feeds, seconds: float) -> dict[str, Any]:
    calls = [lambda call=v.call: call(feeds) for v in variants]
    times = interleave([*calls, calls[0]], seconds)
    again = times[:, -1]
    for k, variant in enumerate(variants):
        timing = compare_times(times[:, 0], times[:, k], again)
        variant.speed = 1 / timing.ratio
        variant.interval = (1 / timing.ci[1], 1 / timing.ci[0])
        print(
            f"{name:14s} {span(variant.speed, variant.interval)} error {variant.error:9.5f}  "
            f"{variant.name}",
            flush=True,
        )
    noise = compare_times(times[:, 0], again, again).spread
    rows = [
        {
            k: v
            for k, v in dataclasses.asdict(dataclasses.replace(x, call=str)).items()
            if k != "call"
        }
        for x in variants
    ]
    return {
        "float_ms": float(np.median(times[:, 0])),
        "rounds": len(times),
        "noise": noise,
        "variants": rows,
        "verdicts": verdicts(variants, times, again),
    }


def verdicts(variants: list[Variant], times: Any, again: Any) -> list[dict[str, Any]]:
    """For every peer, the fastest of ours that is at least as exact, and the ratio of the two."""
    said = []
    for k, peer in enumerate(variants):
        if peer.ours:
            continue
        exact = [
            j for j, v in enumerate(variants) if v.ours and v.error <= peer.error * 1.01 + 1e-6
        ]
        if not exact:
            said.append({"peer": peer.name, "ours": None, "ratio": None, "ci": None})
            continue
        best = min(exact, key=lambda j: float(np.median(times[:, j] / times[:, k])))
        timing = compare_times(times[:, k], times[:, best], again)
        said.append(
            {
                "peer": peer.name,
                "ours": variants[best].name,
                "ratio": 1 / timing.ratio,
                "ci": (1 / timing.ci[1], 1 / timing.ci[0]),
            }
        )
    return said


def span(value: float, interval: Any) -> str:
    return f"{value:.2f} ({interval[0]:.2f}-{interval[1]:.2f})"


def remember(file: Path, name: str, found: dict[str, Any]) -> None:
    data = json.loads(file.read_text()) if file.is_file() else {}
    data[name] = found
    file.write_text(json.dumps(data, indent=1) + "\n")


def write_table(source: Path, out: Path) -> None:

    from graphopt.processors import extensions, processors

    data = json.loads(source.read_text())
    lines = [
        "# Targets and peers",
        "",
        "`python bench/targets.py --models DIR --glyphs DIR`: speed-up over ONNX Runtime float "
        "(95 % interval), relative L2 error, or points of accuracy lost where accuracy is given. "
        "Noise is how far ONNX Runtime float strays from itself in the same run: on a machine busy "
        "with other work it is large, and then only intervals that lie apart say something. "
        f"{processors()} processors; {', '.join(extensions())}.",
    ]
    for name, found in data.items():
        trained = "accuracy" in found
        head = f", accuracy {found['accuracy']:.4f}" if trained else ""
        lines += [
            "",
            f"## {name}: {found['float_ms']:.3g} ms{head}, {found['rounds']} rounds, "
            f"noise {found['noise']:.1%}",
            "",
            f"| variant | speed-up | {'points lost' if trained else 'error'} | made in |",
            "|---|---|---|---|",
        ]
        for row in found["variants"]:
            cells = (row["name"], span(row["speed"], row["interval"]), f"{row['error']:.3g}")
            lines.append(f"| {' | '.join(cells)} | {row['seconds']:.0f} s |")
        lines += ["", "| peer | fastest graphopt result at least as exact | times as fast |"]
        lines += ["|---|---|---|"]
        for said in found["verdicts"]:
            ratio = span(said["ratio"], said["ci"]) if said["ratio"] else "-"
            lines.append(f"| {said['peer']} | {said['ours'] or 'none'} | {ratio} |")
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
