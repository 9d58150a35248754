"""Models of other frameworks: what they compute, their conversion, and the conversion optimized.

    GRAPHOPT_PYTHON_KERAS=/envs/keras/bin/python ... python bench/worlds.py --work DIR \\
        --out bench/results/worlds.md

Small models are trained on the spot (worlds_models.py, in each framework's own Python), read by
their formats and optimized with `trees,clean,fold,fuse`; framework, conversion and result run on
the same inputs at two batch sizes and two sizes of every other dynamic axis. What was found is kept
in DIR, and a run goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import graphopt
from graphopt.converting.checks import difference, predicted
from graphopt.converting.process import interpreter
from graphopt.errors import GraphOptError
from graphopt.execution.runtime import run
from graphopt.formats import format_of
from graphopt.io.reading import NOTES

PASSES = "trees(zipmap=False),clean,fold,fuse"
#: Endings of what a framework's models are named by.
WORLDS = {
    "sklearn": ("*.skops", "*.joblib"),
    "xgboost": ("*.json", "*.ubj"),
    "lightgbm": ("*.txt",),
    "keras": ("*.keras",),
    "jax": (),
    "tensorflow": ("*.tflite", "dense", "conv"),
    "paddle": ("*.json",),
}
FUNCTIONS = ("dense", "convolution", "recurrence", "attention", "norm")
ROWS, OTHERS = (2, 5), (8, 13)
#: What framework, conversion and result may be apart, of the largest number.
MOST = 1e-5


def models_of(world: str, folder: Path) -> list[str]:
    """Made where they are not there yet."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        script = Path(__file__).with_name("worlds_models.py")
        command = [interpreter(world), "-W", "ignore", str(script), world, str(folder)]
        subprocess.run(command, check=True)
    if world == "jax":
        return [f"{folder}/functions.py:{name}" for name in FUNCTIONS]
    return sorted(str(p) for pattern in WORLDS[world] for p in folder.glob(pattern))


def examine(path: str) -> dict[str, Any]:
    """One model: how far the three are apart at every size, and how many bytes they take."""
    found: dict[str, Any] = {}
    try:
        with format_of(path).opened(path) as (model, source):  # type: ignore[attr-defined]
            found["by"] = model.graph.meta[NOTES][0]
            result = graphopt.optimize(model, PASSES, measure=False)
            evidence = result.report.evidence  # None where nothing was edited
            names = ("proved", "checked", "assumed")
            found["evidence"] = {n: getattr(evidence, n, 0) for n in names}
            found["bytes"] = [len(serialized(m)) for m in (model, result.model)]
            found["nodes"] = [len(list(m.graph)) for m in (model, result.model)]
            converted, optimized, sizes = 0.0, 0.0, []
            dynamic = any(
                not isinstance(d, int) for v in model.graph.inputs for d in list(v.shape or ())[1:]
            )
            others = OTHERS if dynamic else OTHERS[:1]
            for seed, (rows, other) in enumerate(itertools.product(ROWS, others)):
                feeds, want = predicted(model, source, rows, other, seed)
                first, last = (list(run(m, feeds).values()) for m in (model, result.model))
                converted = max(converted, *(difference(x, first[k]) for k, x in want.items()))
                optimized = max(optimized, *(map(difference, first, last)))
                optimized = max(optimized, *(difference(x, last[k]) for k, x in want.items()))
                sizes.append("x".join(map(str, next(iter(feeds.values())).shape)))
            found |= {"converted": converted, "optimized": optimized, "sizes": sizes}
    except GraphOptError as error:
        found["error"] = str(error)
    return found


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


def row(world: str, name: str, found: dict[str, Any]) -> str:
    if "error" in found:
        return f"| {world} | {name} | {found['error'][:160]} | | | | |"
    before, after = found["bytes"]
    evidence = found["evidence"]
    known = f"{evidence['proved']} / {evidence['checked']} / {evidence['assumed']}"
    nodes = " -> ".join(map(str, found["nodes"]))
    return (
        f"| {world} | {name} | {found['converted']:.1e} | {found['optimized']:.1e} | "
        f"{nodes} | {before / 1e3:.1f} -> {after / 1e3:.1f} | {known} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(WORLDS))
    given = parser.parse_args()
    kept = given.work / "found.json"
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    for world in given.only:
        for path in models_of(world, given.work / world):
            key = f"{world}/{Path(path).name}"
            if key not in known:
                print(key, flush=True)
                known[key] = examine(path)
                kept.write_text(json.dumps(known, indent=1))
    rows = [row(*key.split("/"), found) for key, found in sorted(known.items())]
    good = [f for f in known.values() if max(f.get("optimized", 1), f.get("converted", 1)) <= MOST]
    given.out.write_text(
        f"""# Models of other frameworks

`python bench/worlds.py --work DIR --out bench/results/worlds.md`, {platform.machine()}, each
framework in a Python of its own. Framework, conversion and result (`{PASSES}`) run on the same
inputs at {ROWS[0]} and {ROWS[1]} rows, and at {OTHERS[0]} and {OTHERS[1]} of every other dynamic
axis. Apart: the largest difference of any output, of its largest number. Evidence: edits proved,
checked, assumed. **{len(good)} of {len(known)} are at most {MOST:.0e} apart.**

| framework | model | conversion apart | result apart | nodes | kB | evidence |
|---|---|---|---|---|---|---|
"""
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
