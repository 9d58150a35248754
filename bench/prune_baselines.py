"""Structured pruning from papers, on the same models, units, counts and samples as ours.

    python bench/prune_baselines.py --models DIR [--only resnet20 ...] [--left 0.5 0.3 0.2]

DIR is as for bench/prune.py. Every method cuts the same dimensions to the same counts (those that
prune chooses: all have the same MACs) and differs in which units go and how the weights that read
them change. Costs are sums over all that read a dimension. Batch norms are folded: none are adapted
afterwards, and OBSPA is without its last step.

* OSSCAR (Meng et al., ICML 2024): layer by layer on what the pruned model feeds them; backward
  elimination, then a local search that swaps ever fewer units; least squares.
* CORP (Zhang and Yang, arXiv:2602.05243): units of least energy go, all at once; what they held is
  an affine function of those that stay, by ridge regression, folded into weights and biases.
* OBSPA (Wang et al., arXiv:2403.18955): units whose features have the least scores of the optimal
  brain surgeon go, all at once, with its update of the other weights.
* two-stage reconstruction (Li et al., Expert Systems with Applications 296, 2026): units of least
  norm go; what they held is put into the others; then, layer by layer, outputs are fitted to the
  original's on what the pruned model feeds them.

Rows are kept in results/prune_baselines.json; the table is results/prune_baselines.md.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse import Fuse
from graphopt.passes.prune import Prune
from graphopt.passes.prune.choice import Curve, choose
from graphopt.passes.prune.curves import curves
from graphopt.passes.prune.reconstruct import Reader, eliminate
from graphopt.passes.prune.scores import magnitude
from prune import SHAPES, USUAL, accuracy, normalize
from prune_masked import Layer, Sums, damped, layers

from graphopt import Context
from graphopt.analyses.cost import cost
from graphopt.analyses.dims import Dimension, dimensions
from graphopt.analyses.dims.cost_model import time_like, work
from graphopt.blas import one_thread
from graphopt.execution.staged import Staged
from graphopt.rewriting.cutting import cut
from graphopt.samples import Samples

Array = np.ndarray[Any, Any]
LEFT = (0.5, 0.3, 0.2)
METHODS = ("ours", "OSSCAR", "CORP", "OBSPA", "two-stage")
RESULTS = Path(__file__).parent / "results"
#: A layer, and its sums.
Seen = tuple[Layer, list[Sums]]


class Problem:
    """A model, its dimensions, the layers that read them, and sums of the original."""

    def __init__(self, source: ir.Model, samples: Samples) -> None:
        self.source, self.samples = source, samples
        self.ctx = Context(source, samples=samples, shapes=SHAPES)
        found = self.ctx.get(dimensions).prunable
        self.names = list(found)
        self.dims: dict[str, Dimension] = {n: d for n, d in found.items() if d.scope == "inner"}
        self.layers = layers(source, self.dims)
        self._sums: dict[str, list[Sums]] = {}

    def sums(self, name: str, was: Staged) -> list[Sums]:
        """Of a layer of the original."""
        if name not in self._sums:
            self._sums[name] = self.layers[name].sums(self.layers[name], was, was)
        return self._sums[name]

    def prune(self, method: str, counts: Mapping[str, int]) -> ir.Model:
        """The source with `counts` units in its dimensions, by one of the papers."""
        model, kept = self.source.clone(), dict[str, Array]()
        one_shot = method in ("CORP", "OBSPA")
        with Staged(self.source, self.samples) as was, Staged(model, self.samples) as now:
            for name, layer in layers(model, self.dims).items():
                original = self.layers[name]
                seen = self.sums(name, was) if one_shot else layer.sums(original, was, now)
                for dim in (d for d in layer.units if d in counts and d not in kept):
                    readers = [
                        (other, seen if n == name else self.sums(n, was))
                        for n, other in self.layers.items()
                        if dim in other.units
                    ]
                    kept[dim] = self.choose(method, dim, counts[dim], readers)
                stays = np.ones((len(seen), len(seen[0].f)), bool)
                for dim, units in layer.units.items():
                    stays &= (units < 0) | np.isin(units, kept.get(dim, units))
                if stays.all() and one_shot:
                    continue
                made = [
                    _fit(method, s, w, b, at, shifts=layer.shifts)
                    for s, (w, b), at in zip(seen, original.weights(), stays, strict=True)
                ]
                layer.store(model, made)
                now.recompute(layer.op.node.outputs)
        # a dimension is named after its weight, which may be another one now
        names = dict(zip(self.names, Context(model).get(dimensions).prunable, strict=True))
        cut(model, {names[dim]: units for dim, units in kept.items()})
        return model

    def choose(self, method: str, dim: str, count: int, seen: list[Seen]) -> Array:
        """The units that stay."""
        size = self.dims[dim].size
        if method == "OSSCAR":
            return swapped(_readers(dim, seen), size, count)
        if method == "two-stage":
            return _largest(magnitude("l2", self.source, self.dims[dim], self.ctx), count)
        scores = np.zeros(size)
        for layer, sums in seen:
            for s, (w, _), unit in zip(sums, layer.weights(), layer.units[dim], strict=True):
                second = s.ff / s.rows
                if method == "CORP":
                    each = np.diag(second) * (w**2).sum(0)
                else:
                    each = (w**2).sum(0) / np.diag(np.linalg.inv(damped(second)))
                here = unit >= 0
                scores += np.bincount(unit[here], each[here], minlength=size) / each.mean()
        return _largest(scores, count)


def _largest(scores: Array, count: int) -> Array:
    return Curve.of_scores(scores).kept(count)


def _fit(
    method: str, s: Sums, weight: Array, bias: Array, at: Array, *, shifts: bool
) -> tuple[Array, Array]:
    """Weight and bias that read only the features `at`."""
    if method == "OBSPA" or not shifts:
        inner = damped(s.ff / s.rows)
        made = np.zeros_like(weight)
        cross = (inner @ weight.T)[at] if method == "OBSPA" else (s.fy / s.rows)[at]
        made[:, at] = np.linalg.solve(inner[np.ix_(at, at)], cross).T
        return made, bias
    if method == "two-stage":
        weight, _ = Sums(s.ff, s.ff @ weight.T, s.f, weight @ s.f, s.rows).fit(weight, at)
    return s.fit(weight, at)


def _readers(dim: str, seen: list[Seen]) -> list[Reader]:
    """The layers at their least squares; errors are shares of what their sums vary by."""
    found = []
    for layer, sums in seen:
        made = []
        for s, (w, _), unit in zip(sums, layer.weights(), layer.units[dim], strict=True):
            fitted, _ = s.fit(w, np.ones(len(s.f), bool))
            energy = float(((fitted @ s.covariance) * fitted).sum())
            made.append(Reader(fitted, damped(s.covariance), unit, energy))
        whole = max(sum(r.energy for r in made), 1e-30)
        found += [Reader(r.weight, r.covariance, r.units, whole) for r in made]
    return found


def swapped(readers: list[Reader], size: int, count: int) -> Array:
    """OSSCAR: backward elimination, then swaps of ever fewer units while the error falls."""
    kept = eliminate(readers, size, count).kept(count)
    best, moves = _captured(readers, kept), max(1, min(count, size - count) // 4)
    while moves:
        losses, _ = _prices(readers, kept, size)
        fewer = kept[np.argsort(losses[kept], kind="stable")[moves:]]
        _, gains = _prices(readers, fewer, size)
        gains[fewer] = -np.inf
        tried = np.sort(np.concatenate([fewer, np.argsort(-gains, kind="stable")[:moves]]))
        now = _captured(readers, tried)
        if now > best * (1 + 1e-7):
            best, kept = now, tried
        else:
            moves //= 2
    return kept


def _captured(readers: list[Reader], kept: Array) -> float:
    """How much of the readers' sums the features of these units can make up."""
    total = 0.0
    for r in readers:
        s = np.flatnonzero(np.isin(r.units, kept) | (r.units < 0))
        cross = r.covariance[s] @ r.weight.T
        made = np.linalg.solve(r.covariance[np.ix_(s, s)], cross)
        total += float((cross * made).sum()) / r.energy
    return total


def _prices(readers: list[Reader], kept: Array, size: int) -> tuple[Array, Array]:
    """What is lost without each unit that is kept, and gained with each that is not."""
    losses, gains = np.zeros(size), np.zeros(size)
    for r in readers:
        inside = np.isin(r.units, kept) | (r.units < 0)
        s, out = np.flatnonzero(inside), np.flatnonzero(~inside)
        cross = r.covariance @ r.weight.T
        inverse = np.linalg.inv(r.covariance[np.ix_(s, s)])
        weight, between = inverse @ cross[s], r.covariance[np.ix_(out, s)]
        losses += _blocks(inverse, weight, r.units[s], size) / r.energy
        schur = r.covariance[np.ix_(out, out)] - between @ inverse @ between.T
        gains += _blocks(schur, cross[out] - between @ weight, r.units[out], size) / r.energy
    return losses, gains


def _blocks(square: Array, rows: Array, units: Array, size: int) -> Array:
    """Per unit u the trace of rows_u^T square_uu^-1 rows_u."""
    found = np.zeros(size)
    for u in np.unique(units[units >= 0]):
        at = np.flatnonzero(units == u)
        found[u] = (rows[at] * np.linalg.solve(square[np.ix_(at, at)], rows[at])).sum()
    return found


def compare(
    path: Path, data: dict[str, Any], samples: Samples, left: list[float], methods: list[str],
    rows: list[dict[str, Any]], save,
) -> None:  # fmt: skip
    model = ir.load(path)
    Fuse().run(model, Context(model))
    p = Problem(model, samples)
    known = {(r["method"], r["left"]) for r in rows if r["model"] == path.stem}
    wanted = [(m, x) for x in left for m in methods if (m, x) not in known]
    if not wanted:
        return
    whole = accuracy(model, **data)
    before = cost(Context(model, shapes=SHAPES)).macs
    began = time.perf_counter()
    found = curves("reconstruction", model, p.dims, samples, p.ctx)
    scored = time.perf_counter() - began
    macs = (work(p.dims, "macs", p.ctx), time_like(p.dims, p.ctx))
    for method, share in wanted:
        one = Prune(ratio=1 - share)
        began = time.perf_counter()
        if method == "ours":
            pruned = model.clone()
            here = Context(pruned, samples=samples, shapes=SHAPES)
            theirs = here.get(dimensions).prunable
            one.apply(pruned, here, {n: theirs[n] for n in p.dims}, found, samples)
        else:
            amount, gain = macs
            chosen = choose(found, one._counts(p.dims, p.ctx), amount, one.ratio, gain=gain)
            pruned = p.prune(method, {n: c for n, c in chosen.items() if c < p.dims[n].size})
        seconds = time.perf_counter() - began + (scored if method == "ours" else 0.0)
        rows.append({
            "model": path.stem, "method": method, "left": share,
            "macs": round(cost(Context(pruned, shapes=SHAPES)).macs / before, 4),
            "accuracy": round(accuracy(pruned, **data), 4), "before": round(whole, 4),
            "seconds": round(seconds, 1),
        })  # fmt: skip
        print(rows[-1], flush=True)
        save()


def write(rows: list[dict[str, Any]], out: Path) -> None:
    left = sorted({r["left"] for r in rows}, reverse=True)
    lines = [
        "# Pruning beside methods from papers, without training",
        "",
        "`python bench/prune_baselines.py --models DIR`: accuracy on 4000 validation images"
        f" (standard error about 0.004), {USUAL} unlabelled samples, the same counts of units in"
        " every dimension. Written anew from the papers (see the script), not their authors' code.",
        "",
    ]
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = {(r["method"], r["left"]): r for r in rows if r["model"] == model}
        lines += [f"## {model}: {next(iter(mine.values()))['before']:.4f} before", ""]
        lines += ["| MACs left | " + " | ".join(f"{x:g}" for x in left) + " |"]
        lines += ["|---|" + "---|" * len(left)]
        for method in METHODS:
            cells = [mine.get((method, x)) for x in left]
            shown = [f"{c['accuracy']:.4f}" if c else "" for c in cells]
            lines.append(f"| {method} | " + " | ".join(shown) + " |")
        lines.append("")
    (out / "prune_baselines.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--left", nargs="*", type=float, default=list(LEFT))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    kept = args.out / "prune_baselines.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []

    def save() -> None:
        kept.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")

    with np.load(args.models / "glyphs.npz") as held:
        data = {"x": normalize(held["x_val"]), "y": held["y_val"]}
        x = normalize(held["x_train"][:USUAL])
    samples = Samples([{"x": x[i : i + 64]} for i in range(0, len(x), 64)])
    for path in sorted(args.models.glob("*.onnx")):
        if not args.only or path.stem in args.only:
            with one_thread():
                compare(path, data, samples, args.left, args.methods, rows, save)
    write(rows, args.out)


if __name__ == "__main__":
    main()
