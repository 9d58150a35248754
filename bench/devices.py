#!/usr/bin/env python3
"""Every small model through every device target, each file executed by its own runtime.

    python bench/devices.py --models DIR [--glyphs DIR] [--targets a,b] [--again] [--out DIR]

DIR holds NAME.onnx with NAME.npz (`in:` and `out:` arrays) beside it. Each cell is the relative L2
error of the runtime's outputs against the framework's, and the median milliseconds of a run on one
thread; or why the model was refused. Rows are kept in devices.json, so that targets whose packages
clash can be added from an environment of their own.

--glyphs adds trained models (NAME.onnx; glyphs.npz with x_train, x_val, y_val): accuracy in float
and after int8 by the target's rules, item by item.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from graphopt.backends.devices.device import difference

from graphopt import load, optimize
from graphopt.backend import backend_of, find_target
from graphopt.errors import GraphOptError, MissingExtra
from graphopt.samples import Samples

TARGETS = ("cpu", "ort", "openvino-f32", "litert", "mnn", "ncnn", "executorch", "stablehlo")
SPEC = "clean, fold, fuse, int8"
RUNS, ITEMS, CALIBRATION = 30, 1000, 512
#: Models in int8, by what a target asks for: some ask for the same.
_QUANTIZED: dict[Any, Any] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--glyphs", type=Path)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--again", action="store_true", help="also what devices.json has")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    file = args.out / "devices.json"
    for folder, run in ((args.models, small), (args.glyphs, glyphs)):
        for path in sorted(folder.glob("*.onnx")) if folder else []:
            for name in args.targets.split(","):
                key = f"{run.__name__}/{path.stem}/{name}"
                if args.names and path.stem not in args.names:
                    continue
                if key in read(file) and not args.again:
                    continue
                try:
                    found = run(path, find_target(name))
                except MissingExtra as error:
                    print(key, error)
                    continue
                if found:
                    rows = read(file)
                    rows[key] = found
                    file.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
                    print(key, found, flush=True)
    (args.out / "devices.md").write_text(page(read(file)))


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def small(path: Path, target: Any) -> dict[str, Any]:
    """Error, milliseconds and bytes of one model, or why it was refused."""
    with np.load(path.with_suffix(".npz")) as data:
        feeds = {k[3:]: data[k] for k in data.files if k.startswith("in:")}
        expected = {k[4:]: data[k] for k in data.files if k.startswith("out:")}
    backend = backend_of(target)
    assert backend is not None
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = backend.lower(load(path), target, Path(folder, "model.onnx"))
            session = backend.session(file, alone(target))
        except GraphOptError as error:
            return {"refused": re.sub(r"/tmp/\S+/", "", str(error))[:300]}
        error = difference(expected, session(feeds))
        return {"error": error, "ms": milliseconds(session, feeds), "bytes": size(folder)}


def glyphs(path: Path, target: Any) -> dict[str, Any]:
    """Accuracy and milliseconds of one trained model in float and in int8."""
    if target.int8 is None:
        return {}
    with np.load(path.parent / "glyphs.npz") as data:
        train, x = (images(data[k][:n]) for k, n in (("x_train", CALIBRATION), ("x_val", ITEMS)))
        labels = data["y_val"][:ITEMS]
    model = load(path)
    (name,) = [v.name for v in model.graph.inputs]
    key = path, target.int8, target.operators, target.opset  # all that SPEC asks a target
    if key not in _QUANTIZED:
        batches = [{name: train[k : k + 32]} for k in range(0, CALIBRATION, 32)]
        samples = Samples(batches, "calibration")
        result = optimize(
            model, SPEC, target=target, samples=samples, measure=False, verify="graph"
        )
        _QUANTIZED[key] = result.model
    backend = backend_of(target)
    assert backend is not None
    found: dict[str, Any] = {}
    for form, one in (("float", model), ("int8", _QUANTIZED[key])):
        with tempfile.TemporaryDirectory() as folder:
            file = backend.lower(one, target, Path(folder, "model.onnx"))
            session = backend.session(file, alone(target))
            right = 0
            for k, label in enumerate(labels):
                (scores,) = session({name: x[k : k + 1]}).values()
                right += int(scores.argmax(-1)[0] == label)
            found[form] = right / len(labels)
            found[f"{form} ms"] = milliseconds(session, {name: x[:1]})
            found[f"{form} bytes"] = size(folder)
    return found


def size(folder: str) -> int:
    """Bytes of what is deployed."""
    return sum(f.stat().st_size for f in Path(folder).iterdir() if ".session." not in f.name)


def images(pixels: Any) -> Any:
    return ((pixels / np.float32(255) - 0.5) / 0.25).astype(np.float32).reshape(-1, 1, 32, 32)


def alone(target: Any) -> Any:
    return dataclasses.replace(target, threads=1)


def milliseconds(session: Any, feeds: Any) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session(feeds)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def page(rows: dict[str, Any]) -> str:
    """The table of small models, the one of trained models, and the refusals."""
    cells = {tuple(key.split("/")): row for key, row in rows.items()}
    names = sorted({name for kind, name, _ in cells if kind == "small"})
    targets = [t for t in TARGETS if any(key[2] == t for key in cells)]
    lines = [
        "# Small models on every device target",
        "",
        "`python bench/devices.py --models DIR --glyphs DIR`: each file was written by its target, "
        "compared with ONNX Runtime before it was kept, and executed by its own runtime. Cells: "
        "relative L2 error against the outputs of the framework that exported the model, and the "
        f"median milliseconds of {RUNS} runs on one thread (x86; the machine was shared: orders "
        "of magnitude).",
        "",
        f"| model | {' | '.join(targets)} |",
        f"|---|{'---|' * len(targets)}",
    ]
    for name in names:
        found = [cells.get(("small", name, t)) for t in targets]
        lines.append(f"| {name} | {' | '.join(map(cell, found))} |")
    tried = [[row for n in names if (row := cells.get(("small", n, t)))] for t in targets]
    ran = [f"{sum('error' in row for row in rows)} of {len(rows)}" for rows in tried]
    lines.append(f"| executed | {' | '.join(ran)} |")
    trained = sorted(key for key in cells if key[0] == "glyphs")
    if trained:
        lines += [
            "",
            "# Trained models, float and int8 by each target's rules",
            "",
            f"Points of accuracy on {ITEMS} validation glyphs, item by item; `-p {SPEC}`, "
            f"{CALIBRATION} samples. Milliseconds as above: the machine was shared.",
            "",
            "| model | target | float | int8 | difference | float ms | int8 ms | size |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for key in trained:
        row = cells[key]
        ratio = row["int8 bytes"] / row["float bytes"]
        lines.append(
            f"| {key[1]} | {key[2]} | {row['float']:.1%} | {row['int8']:.1%} | "
            f"{100 * (row['int8'] - row['float']):+.1f} | {row['float ms']:.2f} | "
            f"{row['int8 ms']:.2f} | {ratio:.2f} |"
        )
    refused = sorted(key for key, row in cells.items() if "refused" in row)
    if refused:
        lines += ["", "# Refused", "", "| model | target | because |", "|---|---|---|"]
    for key in refused:
        said = cells[key]["refused"].replace("|", "/").replace("\n", " ")
        lines.append(f"| {key[1]} | {key[2]} | {said} |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return "refused" if "refused" in row else f"{row['error']:.1e}, {row['ms']:.2f} ms"


if __name__ == "__main__":
    main()
