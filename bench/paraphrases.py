"""Models written otherwise: exporters differ in structure, the result must not.

    python bench/paraphrases.py FOLDER [--largest 4000000] [--seed 0] [--only FORM]
                                [--found FOLDER] [--out bench/results/paraphrases.md]

Every .onnx file below FOLDER is written in each way of `paraphrase_forms.py`, and both go through
`clean,fold,fuse`. Wanted: no error, no step undone, outputs as `random_graphs.py` compares them
with the paraphrase's own, and for forms that show nothing more of the model, no more nodes than the
model as it was leaves. Files of what is found otherwise go to `--found`.
"""

from __future__ import annotations

import argparse
import collections
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from paraphrase_forms import OPEN, PLAIN
from random_graphs import difference, run

import graphopt
from graphopt.analyses.binding import bind_shapes
from graphopt.samples import stand_ins

PASSES = "clean,fold,fuse"
SECONDS = 300
FORMS = {**PLAIN, **OPEN}


def optimized(path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The result, and what was undone on the way to it."""
    out = path.with_suffix(".made.onnx")
    result = graphopt.optimize(path, PASSES, measure=False)
    graphopt.save(result.model, out)
    undone = [f"{s.spec}: {s.reason}"[:200] for s in result.report.steps if s.status == "undone"]
    return onnx.load(out), undone


def count(model: onnx.ModelProto) -> int:
    return sum(n.op_type != "Constant" for n in model.graph.node)


def feeds_of(path: Path) -> dict[str, Any]:
    model = graphopt.load(path)
    return dict(next(iter(stand_ins(model, shapes=bind_shapes(model)[0]))))


def examined(path: Path, forms: list[str], seed: int, found: Path) -> dict[str, str]:
    """What is wrong with each form; "" is nothing, "-" a form that has no place in the model."""
    source = onnx.load(path)
    found.mkdir(parents=True, exist_ok=True)
    feeds = feeds_of(path)
    try:
        wanted = run(source, feeds)
    except Exception:  # on no inputs that can be invented
        return {}
    plain, undone = optimized(_written(source, found / f"{path.stem}.plain.onnx"))
    if undone:
        return {"as it is": undone[0]}
    least = count(plain)
    said = {}
    for name in forms:
        place = found / f"{path.stem}.{''.join(c for c in name if c.isalnum())}.onnx"
        said[name] = wrong(source, name, seed, place, feeds, wanted, least)
        if said[name] in ("", "-"):
            place.unlink(missing_ok=True)
        place.with_suffix(".made.onnx").unlink(missing_ok=True)
    return said


def wrong(
    source: onnx.ModelProto,
    name: str,
    seed: int,
    place: Path,
    feeds: dict[str, Any],
    wanted: list[Any],
    least: int,
) -> str:
    model = onnx.ModelProto()
    model.CopyFrom(source)
    if not FORMS[name](model, random.Random(f"{seed} {name} {place.stem}")):
        return "-"
    _written(model, place)
    given = {**feeds, "either": np.array(True)} if name == "branch of an input" else feeds
    try:
        expected = run(model, given)
    except Exception as error:
        return f"! the form itself does not run: {str(error)[:150]}"
    if any(difference(a, b) > 1e-5 for a, b in zip(wanted, expected, strict=False)):
        return "! the form itself computes something else"
    try:
        made, undone = optimized(place)
        got = run(made, given)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if far := differing(source, model, given, expected, got):
        return far
    if name == "weights as inputs":
        shaken = {
            t.name: np.array(onnx.numpy_helper.to_array(t) * 0.9 + 0.01, np.float32)
            for t in model.graph.initializer
            if t.name in {v.name for v in model.graph.input}
        }
        other = given | shaken
        if differing(None, model, other, run(model, other), run(made, other)):
            return "a replaced weight is not followed"
    if undone:
        return f"undone: {undone[0]}"
    if name in PLAIN and count(made) > least:
        return f"{count(made)} nodes instead of {least}"
    return ""


def differing(
    source: onnx.ModelProto | None,
    model: onnx.ModelProto,
    given: dict[str, Any],
    expected: list[Any],
    got: list[Any],
) -> str:
    """The output that is further off than the runtime's optimizations move it, in either form."""
    noises = []
    for one in (model, source):
        feeds = {k: v for k, v in given.items() if one is model or k != "either"}
        try:
            noises.append(run(one, feeds, optimize=True) if one is not None else [])
        except Exception:  # the runtime's own optimizer fails on it
            noises.append([])
    for k, (a, b) in enumerate(zip(expected, got, strict=True)):
        allowed = max((difference(a, n[k]) for n in noises if k < len(n)), default=0.0)
        if (off := difference(a, b)) > max(1e-5, 4 * allowed):
            return f"output {k} differs by {off:.2g}"
    return ""


def _written(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--largest", type=int, default=4_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--found", type=Path, default=Path("paraphrases_found"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    paths = sorted(p for p in args.folder.rglob("*.onnx") if p.stat().st_size <= args.largest)
    forms = [f for f in FORMS if not args.only or f == args.only]
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for path in paths:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            try:
                said = pool.submit(examined, path, forms, args.seed, args.found).result(SECONDS)
            except Exception as error:  # of one model: the others go on
                said = {"as it is": f"{type(error).__name__}: {str(error)[:150]}"}
        for form, text in said.items():
            kind = "as wanted" if not text else text if text == "-" else "otherwise"
            counts[form][kind] += 1
            if text not in ("", "-"):
                print(f"{path.name} | {form} | {text}", flush=True)
    lines = ["| form | models | as wanted |", "|---|---|---|"]
    for form, seen in counts.items():
        lines.append(f"| {form} | {seen['as wanted'] + seen['otherwise']} | {seen['as wanted']} |")
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(["# Models written otherwise", "", *lines]) + "\n")


if __name__ == "__main__":
    main()
