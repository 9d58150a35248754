#!/usr/bin/env python3
"""Every model through every backend that runs here: outputs within the stated error, or refused.

    python bench/backends.py --models DIR [--models DIR ...] [--out DIR] [NAME ...]

DIR holds NAME.onnx with NAME.npz (`in:` and `out:` arrays of the framework it came from) beside it.
Each model is lowered as it is and after `clean, fold, fuse` for the target. An output passes if its
relative L2 error is within what the target's arithmetic implies; outputs of integers must be equal.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import load, optimize
from graphopt.backend import backend_of, find_target
from graphopt.errors import GraphOptError, MissingExtra
from graphopt.measuring.fastest_target import runnable

#: Largest relative L2 error per target. float32 sums in another order: 1e-4 over a whole network.
#: bfloat16 keeps 8 bits, 2^-9 a rounding; some dozens of roundings in a row, not all independent.
TOLERANCE = {"openvino": 0.05}
FLOAT = 1e-4
SPECS = {"as is": "", "fused": "clean, fold, fuse"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--forms", default=",".join(SPECS), help="which of: " + ", ".join(SPECS))
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    file = args.out / "backends.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    for folder in args.models:
        for path in sorted(folder.glob("*.onnx")):
            if not args.names or path.stem in args.names:
                made = through_all(path, args.forms.split(","))
                again = {(r["model"], r["target"], r["form"]) for r in made}
                rows = [r for r in rows if (r["model"], r["target"], r["form"]) not in again]
                rows += made
                file.write_text(json.dumps(rows) + "\n")
                print(path, *(f"{r['target']} {r['form']}: {r['said']}" for r in made), sep="\n  ")
    (args.out / "backends.md").write_text(table(rows))


def targets() -> list[Any]:
    """Those measured here, and the two that run without being measured or chosen."""
    found = [*runnable()[0], find_target("onnx")]
    try:
        return [*found, find_target("torch")]
    except MissingExtra:
        return found


def through_all(path: Path, forms: list[str]) -> list[dict[str, Any]]:
    """A row per target and form."""
    with np.load(path.with_suffix(".npz")) as data:
        feeds = {k[3:]: data[k] for k in data.files if k.startswith("in:")}
        expected = {k[4:]: data[k] for k in data.files if k.startswith("out:")}
    rows = []
    for target in targets():
        for form in forms:
            row = {"model": f"{path.parent.name}/{path.stem}", "target": target.name, "form": form}
            rows.append({**row, **one(path, SPECS[form], target, feeds, expected)})
    return rows


def one(path: Path, spec: str, target: Any, feeds: Any, expected: Any) -> dict[str, Any]:
    """The worst error of one model on one target, or why it was refused."""
    backend = backend_of(target)
    assert backend is not None
    try:
        model = load(path)
        if spec:
            model = optimize(model, spec, target=target, measure=False, verify="graph").model
        with tempfile.TemporaryDirectory() as folder:
            lowered = backend.lower(model, target, Path(folder, "model.onnx"))
            got = backend.session(lowered, target, beside=True)(feeds)
    except GraphOptError as error:
        return {"error": None, "said": f"refused: {error}"}
    error = max(relative(got[k], expected[k]) for k in expected)
    fits = error <= TOLERANCE.get(target.name, FLOAT)
    return {"error": error, "said": f"{'within' if fits else 'OUTSIDE'}: {error:.2g}"}


def relative(got: Any, expected: Any) -> float:
    """Relative L2 error; infinite where shapes, NaN or integers differ."""
    a, b = np.asarray(expected), np.asarray(got)
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind != "f":
        return 0.0 if (a == b).all() else float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if (finite != np.isfinite(b)).any():
        return float("inf")
    return float(np.linalg.norm(b[finite] - a[finite]) / max(np.linalg.norm(a[finite]), 1e-30))


def table(rows: list[dict[str, Any]]) -> str:
    """Counts per folder, target and form; below them every refusal and everything outside."""
    lines = [
        "# Every model through every backend",
        "",
        "`python bench/backends.py --models DIR ...`: outputs beside those of the framework that "
        f"exported the model. Within: relative L2 error at most {FLOAT:g}, on `openvino`, which "
        f"may compute in bfloat16, {TOLERANCE['openvino']:g}. OpenVINO ran natively: its plugin "
        "for ONNX Runtime finds Intel processors alone.",
        "",
        "| models | target | form | within | worst of them | outside | refused |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = dict.fromkeys((r["model"].partition("/")[0], r["target"], r["form"]) for r in rows)
    for folder, target, form in groups:
        of = [
            r
            for r in rows
            if (r["model"].partition("/")[0], r["target"], r["form"]) == (folder, target, form)
        ]
        kinds = Counter(r["said"].partition(":")[0] for r in of)
        worst = max((r["error"] for r in of if r["said"].startswith("within")), default=0.0)
        cells = (folder, target, form, f"{kinds['within']} of {len(of)}", f"{worst:.2g}")
        lines.append(f"| {' | '.join(cells)} | {kinds['OUTSIDE']} | {kinds['refused']} |")
    others = [r for r in rows if not r["said"].startswith("within")]
    if others:
        lines += ["", "| model | target | form | |", "|---|---|---|---|"]
    for r in others:
        said = r["said"].replace("|", "/")
        lines.append(f"| {r['model']} | {r['target']} | {r['form']} | {said[:300]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
