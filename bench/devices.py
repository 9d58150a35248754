#!/usr/bin/env python3
"""Every small model through every device target, each file executed by its own runtime.

    python bench/devices.py make WORK --models DIR --glyphs DIR [--targets a,b] [--only a,b]
    python bench/devices.py time WORK [--targets a,b]

DIR of --models holds NAME.onnx with NAME.npz (`in:` and `out:` arrays) beside it: `make` writes
each for every target and compares the runtime's outputs with the framework's (relative L2 error),
or keeps why it was refused. DIR of --glyphs holds trained models (NAME.onnx; glyphs.npz with
x_train, x_val, y_val): their accuracy item by item, in float and after int8 by the target's rules.

`time` opens all that was kept in WORK in one process for each target, on one thread, where they
take turns; it takes a few seconds for each target, on a machine that should be quiet. Rows are kept
in devices.json, so that targets whose packages clash can be added from environments of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from devices_page import SPEC, TARGETS, page
from graphopt.backends.devices.device import difference

from graphopt import Context, load, optimize
from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.cost import cost
from graphopt.backend import backend_of, find_target
from graphopt.errors import GraphOptError, MissingExtra
from graphopt.samples import Samples

ITEMS, CALIBRATION = 1000, 512
#: Rounds of turns, and seconds of one turn; a turn has two runs before it and one at least.
ROUNDS, TURN = 7, 0.03
#: Time over time on the processor from which on a run is said to have waited for it.
WAITED = 1.2
#: Models in int8, by what a target asks for: some ask for the same.
_QUANTIZED: dict[Any, Any] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("make", "time", "turns"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--glyphs", type=Path)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--only", default="", help="names of models, with commas")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    if args.what == "turns":
        print("\n" + json.dumps(turns(args.work, args.targets)))
        return
    file = args.out / "devices.json"
    for name in args.targets.split(","):
        try:
            find_target(name)
        except MissingExtra as error:
            print(error)
            continue
        (make if args.what == "make" else times)(name, file, args)
    (args.out / "devices.md").write_text(page(read(file)))


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def keep(file: Path, key: str, row: dict[str, Any]) -> None:
    rows = read(file)
    rows[key] = row
    file.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    print(key, row, flush=True)


def make(name: str, file: Path, args: argparse.Namespace) -> None:
    """Write and compare each model for one target."""
    for folder, run in ((args.models, small), (args.glyphs, glyphs)):
        for path in sorted(folder.glob("*.onnx")) if folder else []:
            if not args.only or path.stem in args.only.split(","):
                key = f"{run.__name__}/{path.stem}/{name}"
                shutil.rmtree(args.work / key, ignore_errors=True)
                keep(file, key, run(path, find_target(name), args.work / key))


def small(path: Path, target: Any, folder: Path) -> dict[str, Any]:
    """Error and bytes of one model, or why it was refused."""
    with np.load(path.with_suffix(".npz")) as data:
        feeds = {k[3:]: data[k] for k in data.files if k.startswith("in:")}
        expected = {k[4:]: data[k] for k in data.files if k.startswith("out:")}
    try:
        session = written(load(path), target, folder / "float", feeds)
    except GraphOptError as error:
        shutil.rmtree(folder)
        return {"refused": re.sub(r"/\S+/", "", str(error))[:300]}
    error = difference(expected, session(feeds))
    return {"error": error, "bytes": size(folder / "float")}


def glyphs(path: Path, target: Any, folder: Path) -> dict[str, Any]:
    """Accuracy and bytes of one trained model in float and in int8, and the share in integers."""
    with np.load(path.parent / "glyphs.npz") as data:
        train, x = (images(data[k][:n]) for k, n in (("x_train", CALIBRATION), ("x_val", ITEMS)))
        labels = data["y_val"][:ITEMS]
    model = load(path)
    (name,) = [v.name for v in model.graph.inputs]
    forms = {"float": model}
    if target.int8 is not None:
        key = path, target.int8, target.operators, target.opset  # all that SPEC asks a target
        if key not in _QUANTIZED:
            batches = [{name: train[k : k + 32]} for k in range(0, CALIBRATION, 32)]
            samples = Samples(batches, "calibration")
            result = optimize(
                model, SPEC, target=target, samples=samples, measure=False, verify="graph"
            )
            _QUANTIZED[key] = result.model
        forms["int8"] = _QUANTIZED[key]
    found: dict[str, Any] = {}
    for form, one in forms.items():
        session = written(one, target, folder / form, {name: x[:1]})
        scores = [next(iter(session({name: x[k : k + 1]}).values())) for k in range(ITEMS)]
        right = sum(int(s.argmax(-1)[0] == label) for s, label in zip(scores, labels, strict=True))
        found[form] = {"accuracy": right / ITEMS, "bytes": size(folder / form)}
        if form == "int8":
            found[form]["integers"] = integers(one)
    return found


def written(model: Any, target: Any, folder: Path, feeds: Any) -> Any:
    """A session of the model's file in `folder`, where what it is run on lies beside it."""
    folder.mkdir(parents=True)
    backend = backend_of(target)
    assert backend is not None
    file = backend.lower(model, target, folder / "model.onnx")
    np.savez(folder.with_suffix(".npz"), **feeds)
    return backend.session(file, alone(target))


def integers(model: Any) -> float:
    """The share of multiply-accumulates whose data and weights are integers."""

    def whole(node: Any, k: int) -> bool:
        source = node.inputs[k].producer() if node.inputs[k] is not None else None
        return source is not None and source.op_type == "DequantizeLinear"

    counted = cost(Context(model, shapes=bind_shapes(model)[0])).nodes
    macs = {node: counted[node.name].macs or 0 for node in model.graph.all_nodes()}
    between = sum(n for node, n in macs.items() if n and whole(node, 0) and whole(node, 1))
    return between / sum(macs.values())


def size(folder: Path) -> int:
    """Bytes of what is deployed."""
    return sum(f.stat().st_size for f in folder.iterdir() if ".session." not in f.name)


def images(pixels: Any) -> Any:
    return ((pixels / np.float32(255) - 0.5) / 0.25).astype(np.float32).reshape(-1, 1, 32, 32)


def alone(target: Any) -> Any:
    return dataclasses.replace(target, threads=1)


def times(name: str, file: Path, args: argparse.Namespace) -> None:
    """Milliseconds of all that was kept for one target, in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "turns", str(args.work), "--targets", name]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    for key, found in json.loads(said.splitlines()[-1]).items():
        kind, model, form = key.split("/")
        row = read(file)[f"{kind}/{model}/{name}"]
        held = row if kind == "small" else row[form]
        held.pop("busy", None)
        held.update(found)
        keep(file, f"{kind}/{model}/{name}", row)


def turns(work: Path, name: str) -> dict[str, dict[str, Any]]:
    """Median milliseconds of every file of one target, which take turns in this process.

    Where a run waited for the processor, its own time on it, and "busy".
    """
    target = alone(find_target(name))
    backend = backend_of(target)
    assert backend is not None
    opened = {}
    for feeds in sorted(work.glob(f"*/*/{name}/*.npz")):
        session = backend.session(feeds.with_suffix("") / f"model{target.suffix}", target)
        kind, model, _, form = feeds.with_suffix("").relative_to(work).parts
        with np.load(feeds) as data:
            opened[f"{kind}/{model}/{form}"] = session, {k: data[k] for k in data.files}
    taken: dict[str, list[tuple[float, float]]] = {key: [] for key in opened}
    for _ in range(ROUNDS):
        for key, (session, given) in opened.items():
            for _ in range(2):
                session(given)
            end = time.perf_counter() + TURN
            while (start := time.perf_counter()) < end:
                own = time.process_time()
                session(given)
                runs = time.perf_counter() - start, time.process_time() - own
                taken[key].append((1e3 * runs[0], 1e3 * runs[1]))
    found: dict[str, dict[str, Any]] = {}
    for key, all_ in taken.items():
        waited = sum(w for w, _ in all_) > WAITED * sum(p for _, p in all_)
        found[key] = {"ms": statistics.median(p if waited else w for w, p in all_)}
        found[key] |= {"busy": True} if waited else {}
    return found


if __name__ == "__main__":
    main()
