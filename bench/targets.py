#!/usr/bin/env python3
"""graphopt's targets beside OpenVINO, NNCF and ONNX Runtime's quantizer, one interleaved run each.

    python bench/targets.py --models DIR [--glyphs DIR] [--prepare] [--out DIR] [NAME ...]

DIR holds NAME.onnx with NAME.npz (`in:` and `out:` arrays) beside it. Every variant runs in a
process of its own, as deployed, and all take turns in random order. Models up to 50 MB run on one
thread and on all; a peer's row is that of the number of threads that is faster for it, graphopt's
that of the number it chose (`graphopt.tune`). A table gives the speed-up over ONNX Runtime's float
on all threads, its 95 % interval, and the relative L2 error of the outputs. Below it, for every
peer: how much faster the fastest graphopt result is that is at least as exact.

--glyphs adds trained models (NAME.onnx and glyphs.npz with x_val, y_val, x_train): points of
accuracy lost instead of error, and the fastest pruned graphopt result that lost at most one point
beside the fastest peer, however exact, and the fastest of equal or worse accuracy.

--prepare makes what --work keeps, and times nothing.
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

from graphopt import Budget, load, optimize, session, tune
from graphopt.backend import backend_of
from graphopt.deploy.manifest import read_manifest, write_manifest
from graphopt.deploy.processors import processors
from graphopt.errors import GraphOptError
from graphopt.measuring.fastest_target import runnable
from graphopt.measuring.statistics import compare_times
from graphopt.measuring.worker import all_served, alternate
from graphopt.samples import Samples

SPECS = {
    "float": "clean, fold, fuse",
    "int8": "clean, fold, fuse, int8",
    "prune + int8": "clean, fold, prune(ratio=0.5), fuse, int8",
}


#: Ratios of pruning that trained models are tried with beside the half, on the CPU: refitted alone,
#: and trained for some epochs on the unlabelled training images.
RATIOS = (0.35,)
TRAINED = ((0.5, 3), (0.65, 3), (0.5, 6))
#: Models up to here run on one thread too.
SMALL = 50_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--glyphs", type=Path)
    parser.add_argument("--prepare", action="store_true", help="make the variants, time nothing")
    parser.add_argument("--ready", action="store_true", help="take only what --work holds")
    parser.add_argument("--table", action="store_true", help="only write the table again")
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
        for path in sorted(folder.glob("*.onnx")) if folder and not args.table else []:
            if args.names and path.stem not in args.names:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                work = (args.work or Path(scratch)) / path.stem
                work.mkdir(parents=True, exist_ok=True)
                found = run(path, work, args)
            if found:
                remember(args.out / "targets.json", f"{folder.name}/{path.stem}", found)
            gc.collect()
    write_table(args.out / "targets.json", args.out / "targets.md")


def zoo(path: Path, work: Path, args: Any) -> dict[str, Any]:
    """A model with random weights: error against the reference outputs."""
    with np.load(path.with_suffix(".npz")) as data:
        feeds = {k[3:]: data[k] for k in data.files if k.startswith("in:")}
        expected = {k[4:]: data[k] for k in data.files if k.startswith("out:")}
    calibration = [feeds, *(draw(feeds, seed) for seed in range(7))]
    variants = [*peers(path, work, calibration), *ours(path, work, calibration, args)]
    for variant in variants:
        got = variant.call(feeds)
        variant.error = max(relative(got[k], expected[k]) for k in expected)
    return {} if args.prepare else timed(path, work, variants, feeds, args.seconds)


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
    specs = {f"prune {r} + int8": f"clean, fold, prune(ratio={r}), fuse, int8" for r in RATIOS}
    training = [{name: pixels["x_train"][k : k + 32]} for k in range(0, len(pixels["x_train"]), 32)]
    trained = {
        f"prune {r} + {n} epochs + int8": f"clean, fold, prune(ratio={r}), distill(epochs={n}),"
        " fuse, int8"
        for r, n in TRAINED
    }
    variants = [
        *peers(path, work, calibration),
        *ours(path, work, calibration, args, {**SPECS, **specs}, budget),
        *ours(path, work, training, args, trained),
    ]
    if args.prepare:
        return {}
    feeds = {name: pixels["x_val"][:1]}
    known = work / "accuracy.json"
    found = json.loads(known.read_text()) if known.is_file() else {}
    for variant in variants:
        if variant.name not in found:
            found[variant.name] = accuracy(variant.call)
    known.write_text(json.dumps(found, indent=1) + "\n")
    source = found[variants[0].name]
    for variant in variants:
        variant.error = 100 * (source - found[variant.name])
    return {**timed(path, work, variants, feeds, args.seconds), "accuracy": source}


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
        backend = backend_of(target)
        assert backend is not None
        for label, spec in specs.items():
            if label in SPECS and label not in args.specs.split(","):
                continue
            if target.name == "openvino-f32" and label != "float":
                continue
            if target.name != "cpu" and label not in SPECS:
                continue
            file = work / f"{target.name}-{label.replace(' ', '')}" / "model.onnx"
            facts = file.with_suffix(".facts.json")
            if args.ready and not facts.is_file():
                continue
            try:
                if not facts.is_file():
                    file.parent.mkdir(exist_ok=True)
                    facts.write_text(
                        json.dumps(make(path, spec, target, file, calibration, budget))
                    )
                opened = session(file)
            except GraphOptError as error:
                print(f"  {target.name} {label}: {error}", flush=True)
                continue
            made = json.loads(facts.read_text())
            name = f"graphopt {target.name}: {label}{made['note']}"
            how = read_manifest(file)
            assert how is not None
            took = made["seconds"]
            found.append(Variant(name, True, opened, file, target, how, 0.0, took))
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
        measure_seconds=1.0,
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


def timed(
    path: Path, work: Path, variants: list[Variant], feeds: Feeds, seconds: float
) -> dict[str, Any]:
    """Let all take turns; a peer is timed on one thread too where models are small."""
    total = processors()
    counts = [0, 1] if path.stat().st_size <= SMALL and total > 1 else [0]
    for variant in variants:
        if variant.ours and len(counts) > 1:
            write_manifest(variant.path, dataclasses.replace(variant.how, threads=0))
            tune(variant.path, feeds=feeds, every=False, seconds=2.0)
            variant.how = read_manifest(variant.path)
    entries = [
        (v, dataclasses.replace(v.how, threads=n) if not v.ours else v.how)
        for v in variants
        for n in (counts if not v.ours else [0])
    ]
    for variant in variants:  # the sessions here are no longer needed
        variant.call = str
    gc.collect()
    opened = [(v.path, v.target, how) for v, how in entries]
    with all_served(opened, feeds, work) as models:
        times, _ = alternate(models, seconds)
    again = times[:, -1]
    columns = {
        v.name: min(
            (k for k, (w, _) in enumerate(entries) if w is v),
            key=lambda k: float(np.median(times[:, k])),
        )
        for v in variants
    }
    best = np.stack([times[:, columns[v.name]] for v in variants], axis=1)
    for k, variant in enumerate(variants):
        timing = compare_times(times[:, 0], best[:, k], again)
        variant.speed = 1 / timing.ratio
        variant.interval = (1 / timing.ci[1], 1 / timing.ci[0])
        variant.threads = entries[columns[variant.name]][1].threads or total
        print(
            f"{path.stem:14s} {span(variant.speed, variant.interval)} {variant.threads} threads, "
            f"error {variant.error:9.5f}  {variant.name}",
            flush=True,
        )
    noise = compare_times(times[:, 0], again, again).spread
    kept = ("name", "ours", "error", "seconds", "speed", "interval", "threads")
    return {
        "float_ms": float(np.median(times[:, 0])),
        "rounds": len(times),
        "noise": noise,
        "variants": [{k: getattr(v, k) for k in kept} for v in variants],
        "verdicts": verdicts(variants, best, again),
        "pruned": pruned(variants, best, again),
    }


def pruned(variants: list[Variant], times: Any, again: Any) -> dict[str, Any]:
    """The fastest pruned and int8 result that lost at most a point, beside the fastest peers."""
    able = [
        k
        for k, v in enumerate(variants)
        if v.ours and "prune" in v.name and "without" not in v.name and v.error <= 1.0
    ]
    if not able:
        return {}
    best = min(able, key=lambda k: float(np.median(times[:, k])))
    found = {"ours": variants[best].name, "lost": variants[best].error}
    for label, worst in (("any", -np.inf), ("equal or worse", variants[best].error - 1e-9)):
        beside = [k for k, v in enumerate(variants) if not v.ours and v.error >= worst]
        if not beside:
            continue
        peer = min(beside, key=lambda k: float(np.median(times[:, k])))
        timing = compare_times(times[:, peer], times[:, best], again)
        ratio, interval = 1 / timing.ratio, (1 / timing.ci[1], 1 / timing.ci[0])
        found[label] = {"peer": variants[peer].name, "ratio": ratio, "ci": interval}
    return found


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

    from graphopt.deploy.processors import extensions

    data = json.loads(source.read_text())
    notes = out.with_name(f"{out.stem}_notes.md")
    lines = [
        "# Targets and peers",
        "",
        "`python bench/targets.py --models DIR --glyphs DIR`: speed-up over ONNX Runtime float "
        "on all threads (95 % interval), relative L2 error, or points of accuracy lost where "
        "accuracy is given. Every variant runs in a process of its own and they take turns. Models "
        "up to 50 MB run on one thread and on all: a peer's row is the faster of the two, "
        "graphopt's what it chose. Noise is how far ONNX Runtime float strays from itself in the "
        "same run. "
        f"{processors()} processors; {', '.join(extensions())}.",
        *(["", notes.read_text().rstrip()] if notes.is_file() else []),
    ]
    for name, found in data.items():
        trained = "accuracy" in found
        head = f", accuracy {found['accuracy']:.4f}" if trained else ""
        lines += [
            "",
            f"## {name}: {found['float_ms']:.3g} ms{head}, {found['rounds']} rounds, "
            f"noise {found['noise']:.1%}",
            "",
            f"| variant | speed-up | threads | {'points lost' if trained else 'error'} | made in |",
            "|---|---|---|---|---|",
        ]
        for row in found["variants"]:
            speed = span(row["speed"], row["interval"])
            cells = (row["name"], speed, str(row["threads"]), f"{row['error']:.3g}")
            lines.append(f"| {' | '.join(cells)} | {row['seconds']:.0f} s |")
        lines += ["", "| peer | fastest graphopt result at least as exact | times as fast |"]
        lines += ["|---|---|---|"]
        for said in found["verdicts"]:
            ratio = span(said["ratio"], said["ci"]) if said["ratio"] else "-"
            lines.append(f"| {said['peer']} | {said['ours'] or 'none'} | {ratio} |")
        if trained:
            lines += ["", *sentences(found["pruned"])]
    out.write_text("\n".join(lines) + "\n")


def sentences(found: dict[str, Any]) -> list[str]:
    """What the pruned result is beside the peers, in words."""
    if not found:
        return ["No pruned result lost at most a point."]
    said = [f"{found['ours']} lost {found['lost']:.2f} points."]
    for label, which in (("any", "of all"), ("equal or worse", "of equal or worse accuracy")):
        if label in found:
            beside = found[label]
            times = span(beside["ratio"], beside["ci"])
            said.append(
                f"It is {times} times as fast as the fastest peer {which}: {beside['peer']}."
            )
        else:
            said.append(f"No peer is {which}.")
    return [" ".join(said)]


if __name__ == "__main__":
    main()
