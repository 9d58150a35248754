"""Search: how well costs are predicted, how fast the solver is, what is found on trained models.

    python bench/search.py --models DIR --part solver
    python bench/search.py --models DIR --part costs [--candidates 60] [--only resnet20]
    python bench/search.py --models DIR --part found [--only resnet20] [--trials 20] [--olive DIR]

DIR holds trained models (`NAME.onnx`, logits of `x`) and `glyphs.npz` (x_train, x_val, y_val).
*costs* fits the correction as a search does, builds random choices without samples, and compares
the prediction with their latency, each in a process of its own in turns with the model. *found*
searches with 256 unlabelled samples, judged on 2,000 validation images, and times the result beside
the source, the best pipeline written by hand that keeps the same limit, and what Olive found. Rows
are kept in search.json: a second call replaces those that it measures again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import Budget, load, optimize, search
from graphopt.backend import find_target
from graphopt.errors import GraphOptError
from graphopt.measuring.gauge import Gauge
from graphopt.pipeline.prepare import prepare
from graphopt.pipeline.run import run
from graphopt.pipeline.state import State
from graphopt.searching.correction import built, correct, hasty, settled
from graphopt.searching.cost import CostModel
from graphopt.searching.solver import Knapsack
from graphopt.searching.space import passes_for, space_of
from graphopt.searching.table import Table

#: Points of accuracy that may be lost.
MAX_DROP = 0.5
#: Pipelines a person would write: the strongest that keeps the limit is the one to beat.
BY_HAND = (
    "clean, fold, fuse, int8",
    *(f"clean, fold, prune(ratio={r}), fuse, int8" for r in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
)
SCORE = """
import numpy as np
with np.load({glyphs!r}) as held:
    X = (held["x_val"][:2000].astype(np.float32) / 255 - 0.5) / 0.25
    Y = held["y_val"][:2000]

def accuracy(predict):
    right = 0
    for i in range(0, len(X), 250):
        (logits,) = predict({{"x": X[i : i + 250]}}).values()
        right += int((logits.argmax(1) == Y[i : i + 250]).sum())
    return 100 * right / len(X)
"""


def solver() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.random(10))[::-1] for _ in range(500)]
    losses = [np.r_[0.0, np.cumsum(rng.random(9) ** 3)] for _ in range(500)]
    began = time.perf_counter()
    Knapsack.of(costs, losses).solve(100.0)
    return {"part": "solver", "model": "500 x 10", "seconds": time.perf_counter() - began}


def costs(path: Path, candidates: int, seconds: float) -> dict[str, Any]:
    target = find_target("cpu")
    base, steps = passes_for(None)
    setting = prepare(path, measure=False, verify="graph")
    setting = prepare(run(setting, list(base)).model, measure=False, verify="graph")
    setting = hasty(setting)
    space = space_of(base, steps, setting)
    source = built(setting, space, space.nothing)
    table = Table(target, None)
    began = time.perf_counter()
    model = CostModel(setting, space, table, target, source.model)
    model.around(space.nothing)
    measured = time.perf_counter() - began
    correct(model, setting, target, lambda *_: None)
    rng = np.random.default_rng(0)
    predicted: list[float] = []
    times: list[tuple[float, float]] = []
    with Gauge(target, seconds) as gauge:
        while len(times) < candidates:
            choice = random_choice(space, rng)
            try:
                made = built(setting, space, choice)
            except GraphOptError:
                continue
            times.append(gauge.quicker(source, made, setting.feeds))
            predicted.append(model.predict(choice).latency)
            print(path.stem, len(times), f"{times[-1][1]:.3f} {predicted[-1]:.3f}", flush=True)
    errors = np.abs(np.array(predicted) / settled(times) - 1)
    return {
        "part": "costs",
        "model": path.stem,
        "candidates": len(errors),
        "median": float(np.median(errors)),
        "p95": float(np.quantile(errors, 0.95)),
        "entries": len(table.entries),
        "table_seconds": measured,
    }


def random_choice(space: Any, rng: np.random.Generator) -> tuple[int, ...]:
    """A share of the dimensions cut at random, most layers in one form."""
    forms = sorted({o.kind for g in space.groups if not g.graded for o in g.options if o.kind})
    form = rng.choice(["", *forms])
    share = rng.random()
    chosen = []
    for group in space.groups:
        kinds = [o.kind for o in group.options]
        if group.sized:
            chosen.append(int(rng.integers(len(kinds))) if rng.random() < share else 0)
        elif group.graded:
            chosen.append(int(rng.integers(len(kinds))) if rng.random() < 0.1 else 0)
        else:
            chosen.append(kinds.index(form) if form in kinds and rng.random() < 0.9 else 0)
    return tuple(chosen)


def found(
    path: Path, glyphs: Path, trials: int, minimize: str, cache: str | None, olive: Path | None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        score, samples = Path(folder, "score.py"), Path(folder, "calib.npz")
        score.write_text(SCORE.format(glyphs=str(glyphs)))
        with np.load(glyphs) as held:
            x = held["x_train"][:256]
        np.savez(samples, x=(x.astype(np.float32) / 255 - 0.5) / 0.25)
        evaluate = f"{score}:accuracy"
        began = time.perf_counter()
        result = search(
            str(path), samples=str(samples), minimize=minimize, trials=trials, cache=cache,
            budget=Budget(max_drop=MAX_DROP, evaluate=evaluate),
        )  # fmt: skip
        took = time.perf_counter() - began
        report = result.result.report
        return {
            "part": "found",
            "model": path.stem,
            "minimize": minimize,
            "threads": report.machine["threads"] or report.machine["processors"],
            "met": result.met,
            "drop": report.before.metric - report.after.metric,
            "speed": 1 / report.latency_ratio if report.latency_ratio else None,
            "size": report.before.bytes / report.after.bytes,
            "trials": len(result.report.trials),
            "seconds": took,
            "spec": result.report.spec,
            "hand": by_hand(path, samples, evaluate),
            "olive": side_by_side(path, olive) if olive else {},
        }


def by_hand(path: Path, samples: Path, evaluate: str) -> dict[str, Any]:
    """The fastest of the pipelines a person would write that keeps the limit."""
    best: dict[str, Any] = {}
    for spec in BY_HAND:
        budget = Budget(max_drop=MAX_DROP, evaluate=evaluate)
        made = optimize(path, spec, samples=samples, budget=budget, measure_seconds=3.0).report
        told = made.met and made.verdict == "faster"  # not where the machine was too noisy
        if told and made.latency_ratio and made.before.bytes and made.after.bytes:
            speed = 1 / made.latency_ratio
            if speed > best.get("speed", 0):
                best = {"spec": spec, "speed": speed, "size": made.before.bytes / made.after.bytes}
    return best


def side_by_side(path: Path, olive: Path) -> dict[str, Any]:
    """What bench/search_olive.py found for this model, in turns with the source."""
    setting = prepare(path, measure=False, verify="graph")
    theirs = State(load(olive / path.name), setting.shapes)
    with Gauge(find_target("cpu"), 5.0) as gauge:
        source, own = gauge.quicker(setting.source, theirs, setting.feeds)
    told = json.loads((olive / f"{path.stem}.json").read_text())
    return {"speed": source / own, "accuracy": told["accuracy"]}


def beside(row: dict[str, Any]) -> dict[str, str]:
    """How fast the best by hand and Olive's are; a dash where that is not known."""
    speeds = {"by hand": row["hand"].get("speed"), "Olive": row["olive"].get("speed")}
    return {who: "-" if speed is None else f"{speed:.2f}" for who, speed in speeds.items()}


def write(rows: list[dict[str, Any]], out: Path) -> None:
    lines = [
        "# Search",
        "",
        "`python bench/search.py --models DIR --part solver|costs|found`; see there for what is"
        " measured. Conditions of each run stand in search_notes.md.",
        "",
    ]
    for part in ("solver", "costs", "found"):
        mine = [
            {k: v for k, v in r.items() if k not in ("part", "hand", "spec", "olive")}
            | (beside(r) if part == "found" else {})
            for r in rows
            if r["part"] == part
        ]
        if not mine:
            continue
        keys = list(mine[0])
        lines += [f"## {part}", "", "| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
        for row in mine:
            cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"{r['model']}, {r['minimize']}: `{r['spec']}`\n" for r in rows if "spec" in r]
    (out / "search.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--part", choices=["solver", "costs", "found"], required=True)
    parser.add_argument("--only", nargs="*", default=["resnet20", "transformer", "lstm"])
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.6, help="timing of one candidate")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--minimize", default="latency")
    parser.add_argument("--cache")
    parser.add_argument("--olive", type=Path, help="what bench/search_olive.py wrote")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    kept = args.out / "search.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []

    def save(row: dict[str, Any]) -> None:
        name = ("part", "model", "minimize", "threads")
        rows[:] = [r for r in rows if any(r.get(k) != row.get(k) for k in name)]
        rows.append(row)
        print({k: v for k, v in row.items() if k != "spec"}, flush=True)
        kept.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
        write(rows, args.out)

    if args.part == "solver":
        save(solver())
        return
    for name in args.only:
        path = args.models / f"{name}.onnx"
        if args.part == "costs":
            save(costs(path, args.candidates, args.seconds))
        else:
            glyphs = args.models / "glyphs.npz"
            save(found(path, glyphs, args.trials, args.minimize, args.cache, args.olive))


if __name__ == "__main__":
    main()
