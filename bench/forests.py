#!/usr/bin/env python3
"""Tree ensembles, source against reduced: size, and latency by rows and threads.

    GRAPHOPT_PYTHON_SKLEARN=... python bench/forests.py make WORK
    python bench/forests.py time WORK
    python bench/forests.py rows WORK

`make` trains on scikit-learn's 1,797 digits of 8 x 8, converts, and reduces (`trees, clean`).
`time` opens source and result on one thread and on two, each in a process of its own, in ONNX
Runtime; the four take turns, about 3 s for each number of rows, on a machine that should be quiet.
`rows` shows what `graphopt.tune` chooses for each reduced one: threads, and rows of a run.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import graphopt
from graphopt.backend import Timing, find_target
from graphopt.converting.process import interpreter
from graphopt.deploy.manifest import Manifest, manifest_path, read_manifest
from graphopt.deploy.processors import processors
from graphopt.measuring.statistics import compare_times
from graphopt.measuring.worker import alternate, keep_feeds, served

TRAINING = """
import sys
from sklearn.datasets import load_digits
x, y = load_digits(return_X_y=True)
folder = sys.argv[1]
"""
#: What trains each, and the file that it writes.
FORESTS = {
    "sklearn": (
        "forest.joblib",
        "from sklearn.ensemble import RandomForestClassifier; import joblib; "
        "made = RandomForestClassifier(200, random_state=0).fit(x.astype('float32'), y); "
        "joblib.dump(made, folder + '/forest.joblib')",
    ),
    "xgboost": (
        "boosted.json",
        "import xgboost; xgboost.train({'objective': 'multi:softprob', 'num_class': 10}, "
        "xgboost.DMatrix(x, y), 50).save_model(folder + '/boosted.json')",
    ),
    "lightgbm": (
        "boosted.txt",
        "import lightgbm; lightgbm.train({'objective': 'multiclass', 'num_class': 10, "
        "'verbose': -1}, lightgbm.Dataset(x, y), 50).save_model(folder + '/boosted.txt')",
    ),
}
ROWS, THREADS, SECONDS, TUNING = (1, 16, 256), (1, 2), 3.0, 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("make", "time", "rows"))
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "make":
        make(args.work)
        return
    if args.what == "rows":
        chosen_rows(args.work)
        return
    heads = "model", "rows", "kB", "source ms (1, 2 threads)", "reduced ms", "1 thread", "2 threads"
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in FORESTS:
        for rows in ROWS:
            print(timed(name, rows, args.work), flush=True)


def make(work: Path) -> None:
    """Train, convert and reduce each."""
    for name, (file, training) in FORESTS.items():
        command = [interpreter(name), "-W", "ignore", "-c", TRAINING + training, str(work)]
        subprocess.run(command, check=True)
        source = graphopt.load(work / file, trust="pickle")
        graphopt.save(source, work / f"{name}.source.onnx")
        result = graphopt.optimize(source, "trees, clean", measure=False)
        graphopt.save(result.model, work / f"{name}.reduced.onnx")
        print(result)


def chosen_rows(work: Path) -> None:
    """Threads and rows of a run that are chosen for each reduced one."""
    print("| model | threads | rows at once | rows a second, of one by one |\n|---|---|---|---|")
    for name in FORESTS:
        shutil.copy(work / f"{name}.reduced.onnx", file := work / f"{name}.tuned.onnx")
        manifest_path(file).unlink(missing_ok=True)
        last = graphopt.tune(file, seconds=TUNING)[-1:]
        how = read_manifest(file) or Manifest("cpu")
        told = [f"{1e3 / t.timing.b_ms:,.0f}, {1e3 / t.timing.a_ms:,.0f}" for t in last if how.rows]
        threads = how.threads or processors()
        print(f"| {name} | {threads} | {how.rows or '?'} | {''.join(told)} |", flush=True)


def timed(name: str, rows: int, work: Path) -> str:
    """One row of the table."""
    x = np.random.default_rng(0).integers(0, 17, (rows, 64)).astype(np.float32)
    files = [work / f"{name}.{form}.onnx" for form in ("source", "reduced")]
    (given,) = (v.name or "" for v in graphopt.load(files[0]).graph.inputs)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        feeds = keep_feeds({given: x}, Path(folder))
        opened = [
            stack.enter_context(
                served(file, find_target("cpu"), feeds, Manifest("cpu", threads=count))
            )
            for file in files
            for count in THREADS
        ]
        times, singles = alternate(opened, SECONDS)
    again = times[:, -1]
    pairs = [compare_times(times[:, k], times[:, k + 2], times[:, k]) for k in (0, 1)]
    noise = compare_times(times[:, 0], again, again).spread
    ms = [f"{np.median(s):.3g}" for s in singles]
    size = " -> ".join(f"{f.stat().st_size / 1e3:.0f}" for f in files)
    return (
        f"| {name} | {rows} | {size} | {ms[0]}, {ms[1]} | {ms[2]}, {ms[3]} | "
        f"{ratio(pairs[0])} | {ratio(pairs[1])} (noise {noise:.1%}) |"
    )


def ratio(timing: Timing) -> str:
    low, high = timing.ci
    return f"{timing.ratio:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
