"""Recovery: accuracy against MACs left without training, after distillation, and beside a peer.

    python bench/recover.py curve --models DIR [--names resnet20,...] [--left 0.3]
    python bench/recover.py peer --models DIR [--left 0.3]     # Torch-Pruning + the same training
    python bench/recover.py recipes --models DIR [--recipe svd]   # svd, int8, all of them together
    python bench/recover.py latency --models DIR               # of what recipes wrote, interleaved
    python bench/recover.py goals --models DIR [--goal resnet20] [--seed 1]   # deep cuts, one core
    python bench/recover.py steps --models DIR --names NAMES   # float32 beside bfloat16

DIR holds trained models (`NAME.onnx`) and `glyphs.npz` (x_train, x_val, y_val). Samples are all of
x_train, without labels; accuracy is that of ONNX Runtime on x_val. Rows are kept in recover.json:
a further call adds to them or replaces its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, optimize
from graphopt.analyses.cost import cost
from graphopt.backend import backend_of, find_target
from graphopt.deploy.processors import extensions
from graphopt.execution.runtime import run_each
from graphopt.formats import load, save
from graphopt.samples import Samples, open_samples
from graphopt.training.examples import Examples
from graphopt.training.loop import train
from graphopt.training.losses import Criterion, kinds_of
from graphopt.training.schedule import Plan
from graphopt.training.store import Store

RESULTS = Path(__file__).parent / "results"
LEFT = (0.5, 0.3, 0.2)
SHAPES = {"x": (1, 1, 32, 32)}
RECIPES = {
    "svd": "svd(ratio=0.7)",
    "svd, distill": "svd(ratio=0.7), distill",
    "int8": "fuse, int8",
    "int8 qat": "fuse, int8(qat=True)",
    "prune, distill": "prune(ratio=0.7), distill",
    "prune, distill, int8": "prune(ratio=0.7), distill, fuse, int8",
    "prune, svd, distill, int8": "prune(ratio=0.6), svd(ratio=0.25), distill, fuse, int8",
    "prune, distill, int8 qat": "prune(ratio=0.7), distill, fuse, int8(qat=True)",
    "rounds": "prune(ratio=0.452), distill(epochs=2), prune(ratio=0.452), distill(epochs=2)",
    "rounds to 0.2": "prune(ratio=0.553), distill, prune(ratio=0.553), distill",
    "features": 'prune(ratio=0.7), distill(loss="features")',
}
#: What is cut, and how it is recovered within ten minutes of two cores (20 minutes of CPU time).
GOALS = {
    "resnet20 at 0.2": ("resnet20", "prune(ratio=0.8), distill(epochs=8, lr=1e-3)"),
    "transformer at 0.45": ("transformer", "fuse, prune(ratio=0.55), distill(epochs=5, lr=1e-3)"),
    "lstm at 0.5": ("lstm", "prune(ratio=0.5), distill(epochs=30, lr=2e-3)"),
    "resnet20 without 3 blocks": ("resnet20", "depth(blocks=3), distill(epochs=3, lr=1e-3)"),
    "mobilenetv2 at 0.25": ("mobilenetv2", "prune(ratio=0.75), distill(epochs=6, lr=1e-3)"),
    "vgg16 at 0.06": ("vgg16", "prune(ratio=0.94), distill(epochs=6, lr=1e-3)"),
}
Array = np.ndarray[Any, Any]


class Data:
    """The glyphs: unlabelled samples, and what accuracy is measured on."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        with np.load(folder / "glyphs.npz") as held:
            self.x = self._normal(held["x_train"][:count])
            self.x_val, self.y_val = self._normal(held["x_val"]), held["y_val"]

    @staticmethod
    def _normal(x: Array) -> Array:
        return (x.astype(np.float32) / 255 - 0.5) / 0.25

    def samples(self, model: ir.Model) -> Samples:
        return open_samples({"x": self.x}, model)

    def accuracy(self, model: ir.Model) -> float:
        feeds = [{"x": self.x_val[i : i + 250]} for i in range(0, len(self.x_val), 250)]
        found = [next(iter(out.values())) for out in run_each(model, feeds, optimize=True)]
        return self.right(np.concatenate(found))

    def right(self, logits: Array) -> float:
        return float((logits.argmax(-1) == self.y_val).mean())


def counted(model: ir.Model) -> tuple[int, int]:
    found = Context(model, shapes=SHAPES).get(cost)
    return found.macs, found.params


class Rows:
    """The results so far; a row is known by model, what was done and MACs asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def put(self, **row: Any) -> None:
        known = ("model", "what", "left", "seed")
        self.rows = [r for r in self.rows if any(r.get(k) != row.get(k) for k in known)]
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        self.rows.append(rounded)
        print(json.dumps(rounded), flush=True)
        self.path.write_text("[\n" + ",\n".join(json.dumps(r) for r in self.rows) + "\n]\n")

    def find(self, model: str, what: str, left: float | None = None) -> dict[str, Any] | None:
        keys = (model, what, left)
        rows = (r for r in self.rows if (r["model"], r["what"], r.get("left")) == keys)
        return next(rows, None)


def through(
    data: Data, name: str, spec: str, target: str, seed: int = 0
) -> tuple[list[tuple[ir.Model, float, float]], list[str]]:
    """The model after each pass of `spec`, its seconds and those of CPU time, and the notes."""
    from graphopt.spec import parse

    source = load(data.folder / f"{name}.onnx")
    samples = data.samples(source)
    model, found, notes = source.clone(), [], []
    for one in parse(spec):
        began, used = time.perf_counter(), time.process_time()
        ctx = Context(
            model,
            seed=seed,
            source=source,
            samples=samples,
            shapes=SHAPES,
            target=find_target(target),
            pass_name=str(one),
        )
        one.run(model, ctx)
        spent = time.perf_counter() - began, time.process_time() - used
        found.append((model.clone(), *spent))
        notes += ctx.notes
    return found, notes


def curve(data: Data, rows: Rows, names: list[str], lefts: list[float], target: str) -> None:
    suffix = "" if target == "cpu" else f", target {target}"
    for name in names:
        source = load(data.folder / f"{name}.onnx")
        macs, params = counted(source)
        if rows.find(name, "original") is None:
            rows.put(model=name, what="original", macs=1.0, accuracy=data.accuracy(source))
        for left in lefts:
            first = "fuse, " if name == "transformer" else ""
            done, notes = through(data, name, f"{first}prune(ratio={1 - left:g}), distill", target)
            spent = 0.0
            for (model, seconds, _), what in zip(
                done[-2:], ("prune", "prune, distill"), strict=True
            ):
                spent += seconds
                after = counted(model)
                rows.put(
                    model=name, what=what + suffix, left=left, macs=after[0] / macs,
                    params=after[1] / params, accuracy=data.accuracy(model), seconds=spent,
                )  # fmt: skip
            print(notes[-1], flush=True)


def goals(data: Data, rows: Rows, wanted: str, seed: int) -> None:
    """Deep cuts and their recovery, on one thread: accuracy and CPU seconds after each."""
    import torch

    torch.set_num_threads(1)
    for goal, (name, spec) in GOALS.items():
        if wanted not in goal:
            continue
        source = load(data.folder / f"{name}.onnx")
        whole, macs = data.accuracy(source), counted(source)[0]
        done, notes = through(data, name, spec, "onnx", seed)
        cut, made = done[-2][0], done[-1][0]
        rows.put(
            model=name, what=goal, goal=spec, seed=seed, before=whole, macs=counted(made)[0] / macs,
            cut=data.accuracy(cut), accuracy=data.accuracy(made),
            cpu=[round(used) for _, _, used in done], seconds=sum(s for _, s, _ in done),
            isa=extensions()[-1],
        )  # fmt: skip
        print(notes[-1], flush=True)


def peer(data: Data, rows: Rows, lefts: list[float]) -> None:
    """Torch-Pruning: magnitude of its groups, the same share of every layer (globally chosen ones
    collapse single layers here), then the same loop, data, loss and epochs.
    """
    import torch
    import torch_pruning as tp
    from prune import residual_network

    source = load(data.folder / "resnet20.onnx")
    held = {k: v.const_value.numpy() for k, v in source.graph.initializers.items()}
    example = torch.zeros(1, 1, 32, 32)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    for left in lefts:
        low, high = 0.0, 0.95
        for _ in range(8):  # its ratio is of channels: find the one that leaves these MACs
            net = residual_network(held).eval()
            whole, _ = tp.utils.count_ops_and_params(net, example)
            pruner = tp.pruner.BasePruner(
                net, example, importance, pruning_ratio=(low + high) / 2, global_pruning=False,
                ignored_layers=[net.head],
            )  # fmt: skip
            pruner.step()
            macs, _ = tp.utils.count_ops_and_params(net, example)
            low, high = (low, (low + high) / 2) if macs < left * whole else ((low + high) / 2, high)
        share = macs / whole
        cut = accuracy_of(net, data)
        rows.put(model="resnet20", what="Torch-Pruning", left=left, macs=share, accuracy=cut)
        began = time.perf_counter()
        report = same_training(net, source, data)
        rows.put(
            model="resnet20", what="Torch-Pruning, the same training", left=left, macs=share,
            accuracy=accuracy_of(net, data), seconds=time.perf_counter() - began,
        )  # fmt: skip
        print(report, flush=True)


def same_training(net: Any, source: ir.Model, data: Data) -> Any:
    """What the distill pass does with its defaults, on a module of torch's own."""
    import torch
    from graphopt.passes.distill import Distill

    class Tupled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any) -> Any:
            return (self.net(x),)

    options, store = Distill(), Store()
    for feeds, outputs in zip(
        data.samples(source), run_each(source, data.samples(source), optimize=True), strict=True
    ):
        store.add([feeds["x"], *outputs.values()])
    batches = Examples(store.finish(), 1, rows=True, size=options.batch, seed=0)
    criterion = Criterion(kinds_of(batches.targets(), "auto"))
    plan = Plan(epochs=options.epochs, lr=options.lr)
    return train(Tupled(), batches, criterion, plan, Context(source))


def accuracy_of(net: Any, data: Data) -> float:
    import torch

    with torch.no_grad():
        parts = [net(torch.from_numpy(data.x_val[i : i + 250])) for i in range(0, 4000, 250)]
    return data.right(torch.cat(parts).numpy())


def recipes(data: Data, rows: Rows, names: list[str], wanted: list[str], kept: Path) -> None:
    for name in names:
        source = load(data.folder / f"{name}.onnx")
        macs, params = counted(source)
        for what in wanted:
            began = time.perf_counter()
            result = optimize(
                source, RECIPES[what], samples=data.samples(source), measure_seconds=1.0
            )
            seconds = time.perf_counter() - began
            for step in result.report.steps:
                print(step.spec, step.status, step.reason, step.notes, flush=True)
            path = kept / f"{name}-{what.replace(', ', '-').replace(' ', '_')}.onnx"
            save(result.model, path)
            after = counted(result.model)
            rows.put(
                model=name, what=what, spec=RECIPES[what], macs=after[0] / macs,
                params=after[1] / params, accuracy=data.accuracy(result.model), seconds=seconds,
                bytes=path.stat().st_size / (data.folder / f"{name}.onnx").stat().st_size,
                steps=[f"{s.spec.partition('(')[0]}: {s.status}" for s in result.report.steps],
            )  # fmt: skip


def latency(data: Data, rows: Rows, names: list[str], kept: Path, seconds: float) -> None:
    """Latency at batch 1 of what `recipes` wrote, in interleaved pairs with the original."""
    target = find_target("cpu")
    backend = backend_of(target)
    assert backend is not None
    feeds = {"x": data.x_val[:1]}
    for name in names:
        for row in [r for r in rows.rows if r["model"] == name and "spec" in r]:
            path = kept / f"{name}-{row['what'].replace(', ', '-').replace(' ', '_')}.onnx"
            with tempfile.TemporaryDirectory() as scratch:
                source = load(data.folder / f"{name}.onnx")
                a = backend.lower(source, target, Path(scratch, "a.onnx"))
                b = backend.lower(load(path), target, Path(scratch, "b.onnx"))
                times = backend.measure(a, b, feeds, target, seconds)
            row |= {"speed": 1 / times.ratio, "ci": [1 / c for c in reversed(times.ci)]}
            row |= {"ms": [times.a_ms, times.b_ms], "spread": times.spread}
            rows.put(**row)


def steps(data: Data, rows: Rows, names: list[str]) -> None:
    """CPU time of a step of training on 32 rows and one thread, in float32 and in bfloat16.

    The least of five, taken in turns.
    """
    import torch

    from graphopt.execution.trainable import trainable

    torch.set_num_threads(1)
    x = torch.from_numpy(data.x[:32]).contiguous(memory_format=torch.channels_last)
    for name in names:
        module = trainable(load(data.folder / f"{name}.onnx"))
        for p in module.parameters():
            if p.ndim == 4:
                p.data = p.data.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)
        spent: dict[bool, list[float]] = {False: [], True: []}
        for half in (False, True) * 6:
            began = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                (scores,) = module(x)
            (scores.float() ** 2).mean().backward()
            optimizer.step()
            spent[half].append(1e3 * (time.process_time() - began))
        float32, bfloat16 = (min(spent[half][1:]) for half in (False, True))
        rows.put(model=name, what="step", float32=float32, bfloat16=bfloat16)


# --- tables -------------------------------------------------------------------------------------


def write(rows: Rows) -> list[str]:
    """Write recover.md; returns the models of its curves."""
    names = list(dict.fromkeys(r["model"] for r in rows.rows if r["what"] == "original"))
    lines = ["# Recovery by distillation", ""]
    lines += [
        "`python bench/recover.py curve|peer|recipes|latency --models DIR`: three epochs over "
        "12,000 unlabelled training glyphs, learned from the original's outputs alone; accuracy by "
        "ONNX Runtime on 4,000 validation glyphs of font families never trained on (standard error "
        "about 0.0035). Two cores, no GPU; seconds are those of the passes, pruning and its refit "
        "included. The target is `cpu`: channels go in steps of 4 to 16, by a layer's width. "
        "Torch-Pruning is given the loop as distill sets it by default (learning rate 5e-4, no "
        "batch norms left to adapt): a rate of its own might serve it better and was not sought.",
        "",
    ]
    for name in names:
        lines += curve_table(rows, name)
    lines += recipe_table(rows, names)
    lines += goals_table(rows)
    lines += steps_table(rows)
    (RESULTS / "recover.md").write_text("\n".join(lines) + "\n")
    return names


LINES = (
    "prune",
    "prune, distill",
    "Torch-Pruning",
    "Torch-Pruning, the same training",
)


def curve_table(rows: Rows, name: str) -> list[str]:
    whole = rows.find(name, "original")
    if whole is None:
        return []
    lines = [f"## {name}: {whole['accuracy']:.4f} before", "", "| MACs left |"]
    lines[-1] += "".join(f" {left:g} | s |" for left in LEFT)
    lines.append("|---" * (1 + 2 * len(LEFT)) + "|")
    for what in LINES:
        found = [rows.find(name, what, left) for left in LEFT]
        if any(found):
            cells = [_cells(r) for r in found]
            lines.append(f"| {what} |" + "".join(cells))
    return [*lines, ""]


def _cells(row: dict[str, Any] | None) -> str:
    if row is None:
        return " | |"
    off = "" if abs(row["macs"] - row["left"]) <= 0.02 else f" ({row['macs']:.2f} left)"
    seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
    return f" {row['accuracy']:.4f}{off} | {seconds} |"


def recipe_table(rows: Rows, names: list[str]) -> list[str]:
    lines = ["## Whole pipelines", ""]
    lines.append(
        "Speed: how many times as fast as the original at batch 1, interleaved pairs on ONNX "
        "Runtime's CPU provider, 95 % interval. Bytes: of the file, as a share of the original's. "
        "Steps that were undone (no faster) are named."
    )
    lines += ["", "| model | passes | accuracy | MACs | params | bytes | speed | seconds |"]
    lines.append("|---" * 8 + "|")
    for name in names:
        for r in (r for r in rows.rows if r["model"] == name and "spec" in r):
            speed = f"{r['speed']:.2f} ({r['ci'][0]:.2f} to {r['ci'][1]:.2f})" if "ci" in r else ""
            undone = [s for s in r["steps"] if not s.endswith("kept")]
            also = f" ({'; '.join(undone)})" if undone else ""
            lines.append(
                f"| {name} | `{r['spec']}`{also} | {r['accuracy']:.4f} | {r['macs']:.2f} | "
                f"{r['params']:.2f} | {r['bytes']:.2f} | {speed} | {r['seconds']:.0f} |"
            )
    return lines


GOALS_HEAD = (
    "`python bench/recover.py goals --models DIR [--goal NAME] [--seed N]`, on one thread: all of "
    "the 12,000 training glyphs, no labels, target `onnx` (any count of units). A busy machine, so "
    "that seconds are of CPU time; 20 minutes stand for ten minutes of two cores. The aim is "
    "at most half a point lost; differences below a quarter of a point are within chance. A step "
    "takes twice the time on `avx2`, where rows were mixed (they were not on the other processor)."
)


def goals_table(rows: Rows) -> list[str]:
    lines = ["", "## Deep cuts", "", GOALS_HEAD, ""]
    head = "| | seed | passes | before | MACs | cut | recovered | points lost | CPU seconds | on |"
    lines += [head, "|---" * 10 + "|"]
    found = [r for r in rows.rows if "goal" in r]
    for r in sorted(found, key=lambda r: (list(GOALS).index(r["what"]), r["seed"])):
        lines.append(
            f"| {r['what']} | {r['seed']} | `{r['goal']}` | {r['before']:.4f} | {r['macs']:.3f} | "
            f"{r['cut']:.4f} | {r['accuracy']:.4f} | {100 * (r['before'] - r['accuracy']):.2f} | "
            f"{sum(r['cpu'])} ({r['cpu'][-1]} of distill) | {r['isa']} |"
        )
    return lines


def steps_table(rows: Rows) -> list[str]:
    lines = ["", "## A step in bfloat16", ""]
    lines.append(
        "`python bench/recover.py steps --models DIR --names NAMES`: milliseconds of CPU time of a "
        "step on 32 rows, one thread of a busy processor with AVX512-BF16, without AMX; training "
        "is in float32 there since."
    )
    lines += ["", "| model | float32 | bfloat16 |", "|---|---|---|"]
    for r in (r for r in rows.rows if r["what"] == "step"):
        lines.append(f"| {r['model']} | {r['float32']:.0f} | {r['bfloat16']:.0f} |")
    return lines


def plot(rows: Rows, names: list[str], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        whole = rows.find(name, "original")
        for k, what in enumerate(LINES):
            found = [r for left in LEFT if (r := rows.find(name, what, left))]
            if found and whole:
                points = [(1.0, whole["accuracy"]), *((r["macs"], r["accuracy"]) for r in found)]
                xs, ys = zip(*points, strict=True)
                axis.plot(
                    xs,
                    ys,
                    "o-" if "distill" in what or "training" in what else "x:",
                    color=f"C{k}",
                    label=what,
                )
        if whole:
            axis.axhline(whole["accuracy"] - 0.005, color="0.7", lw=1)
        axis.set(title=name, xlabel="MACs left", ylabel="accuracy")
        axis.set_ylim(bottom=0.8)
        axis.invert_xaxis()
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "what", choices=("curve", "peer", "recipes", "latency", "goals", "steps", "tables")
    )
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--names", default="resnet20")
    parser.add_argument("--left", type=float, nargs="*", default=list(LEFT))
    parser.add_argument("--target", default="cpu", help="of the curve")
    parser.add_argument("--goal", default="", help="those whose names have this in them")
    parser.add_argument("--seed", type=int, default=0, help="of the goals")
    parser.add_argument("--recipe", nargs="*", default=list(RECIPES))
    parser.add_argument("--samples", type=int, default=12000)
    parser.add_argument("--kept", type=Path, help="where recipes writes models (latency reads it)")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    data, rows = Data(args.models, args.samples), Rows(RESULTS / "recover.json")
    kept = args.kept or Path(tempfile.gettempdir(), "graphopt-recover")
    kept.mkdir(exist_ok=True)
    names = args.names.split(",")
    if args.what == "curve":
        curve(data, rows, names, args.left, args.target)
    elif args.what == "peer":
        peer(data, rows, args.left)
    elif args.what == "recipes":
        recipes(data, rows, names, args.recipe, kept)
    elif args.what == "steps":
        steps(data, rows, names)
    elif args.what == "goals":
        goals(data, rows, args.goal, args.seed)
    elif args.what == "latency":
        latency(data, rows, names, kept, args.seconds)
    names = write(rows)
    if args.what not in ("goals", "steps"):
        plot(rows, names, RESULTS / "recover.png")


if __name__ == "__main__":
    main()
