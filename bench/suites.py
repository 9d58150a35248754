"""Other projects' models through an exact and a lossy pipeline: none crashes or is changed.

    python bench/suites.py FOLDER [--largest 4000000] [--out bench/results/suites.md]

Every .onnx file below FOLDER (fetched by whoever runs this: burn-onnx, tract, VNN-COMP, ...) up to
so many bytes goes through both. Allowed is success, with outputs as `random_graphs.py` compares
them after the exact one and of the same shapes and types after the lossy one; or exit 3 in one line
for what ONNX Runtime does not open either, and for opsets below 7.
"""

from __future__ import annotations

import argparse
import collections
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzz import EXACT, call, session
from random_graphs import difference

from graphopt import load
from graphopt.analyses.binding import bind_shapes
from graphopt.cli import main as graphopt
from graphopt.samples import stand_ins

LOSSY = "prune(ratio=0.3),svd(error=0.1),fuse,int8"
SECONDS = 120


def examined(path: Path) -> tuple[str, str]:
    """How the model fared, and what is wrong with that or ""."""
    runs = opens(path)
    with tempfile.TemporaryDirectory() as folder:
        for spec in (EXACT, LOSSY):
            made = Path(folder, f"{len(spec)}.onnx")
            command = ["optimize", str(path), "-p", spec, "--no-measure", "-o", str(made), "--json"]
            code, said, _, _ = call(graphopt, command)
            if code not in (0, 3) or "Traceback" in said:
                return "crashed", f"{spec}: exit {code}: {said.strip()[-300:]}"
            if code == 3 and not runs:
                return "refused, as by the runtime", ""
            if code == 3 and "is too old" in said:
                return "refused: opset below 7", ""
            if code == 3:
                return "refused", f"{spec}: {said.strip()[-300:]}"
            if runs and (wrong := compared(path, made, exact=spec == EXACT)):
                return "changed", f"{spec}: {wrong}"
    return ("passed" if runs else "passed, though the runtime does not open it"), ""


def opens(path: Path) -> bool:
    try:
        session(path)
    except Exception:  # the runtime refuses the file, whatever it says
        return False
    return True


def compared(source: Path, result: Path, exact: bool) -> str:
    """What differs between the outputs of two models, or "" (also if the source does not run)."""
    model = load(source)
    feeds = next(iter(stand_ins(model, shapes=bind_shapes(model)[0])))
    try:
        expected = session(source).run(None, feeds)
        noise = session(source, optimize=True).run(None, feeds)
    except Exception:  # on no sizes that are known here
        return ""
    try:
        one = session(result)
        got = one.run(None, feeds)
    except Exception as error:
        return f"the result does not run: {str(error)[:200]}"
    names = [o.name for o in one.get_outputs()]
    for name, a, b, c in zip(names, expected, got, noise, strict=True):
        if not isinstance(a, np.ndarray):
            continue
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"output {name}: {a.dtype}{a.shape} became {b.dtype}{b.shape}"
        if exact and (error := difference(a, b)) > max(1e-5, 4 * difference(a, c)):
            return f"output {name}: {error:.3g}"
    return ""


def random_parts(path: Path) -> bool:
    """Whether a model draws numbers, so that no two runs of it agree."""
    kinds = {n.op_type for n in onnx.load(path, load_external_data=False).graph.node}
    return any(k.startswith("Random") or k in ("Bernoulli", "Multinomial") for k in kinds)


def survey(paths: list[Path]) -> tuple[collections.Counter[str], dict[str, str]]:
    """Every model, one after the other, in a process that is replaced when it dies."""
    counts: collections.Counter[str] = collections.Counter()
    found: dict[str, str] = {}
    pool: Any = None
    for path in paths:
        pool = pool or ProcessPoolExecutor(1, get_context("spawn"), initializer=silent)
        try:
            verdict, wrong = pool.submit(examined, path).result(SECONDS)
        except (BrokenProcessPool, TimeoutError) as error:
            verdict, wrong = "crashed", type(error).__name__
            for process in (pool._processes or {}).values():
                process.kill()
            pool.shutdown()
            pool = None
        if verdict == "changed" and random_parts(path):
            verdict, wrong = "draws numbers: not compared", ""
        counts[verdict] += 1
        if wrong:
            found[str(path)] = f"{verdict}: {wrong}"
            print(path, found[str(path)], flush=True)
    return counts, found


def silent() -> None:
    """What the runtime prints is not what the tool says."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--largest", type=int, default=4_000_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    start = time.monotonic()
    every = sorted(args.folder.rglob("*.onnx"))
    paths = [p for p in every if p.stat().st_size <= args.largest]
    lines = [
        "# Other projects' models",
        "",
        f"`python bench/suites.py FOLDER`: {len(paths)} of {len(every)} files, those of at most "
        f"{args.largest:,} bytes, through `{EXACT}` and `{LOSSY}`.",
        "",
        "| suite | models | verdict |",
        "|---|---|---|",
    ]
    wrong: dict[str, str] = {}
    for suite in sorted({p.relative_to(args.folder).parts[0] for p in paths}):
        mine = [p for p in paths if p.relative_to(args.folder).parts[0] == suite]
        counts, found = survey(mine)
        wrong |= found
        told = ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
        lines.append(f"| {suite} | {len(mine)} | {told} |")
    lines += ["", *(f"* {Path(p).relative_to(args.folder)}: {w}" for p, w in wrong.items())]
    print("\n".join(lines), f"\n{time.monotonic() - start:.0f} s")
    if args.out:
        args.out.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
