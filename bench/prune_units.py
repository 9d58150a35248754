"""Parameters left when half of the units go, over many architectures: what is frozen, and why.

    python bench/prune_structures.py --out structures  # architectures written for this
    python bench/prune_published.py --out published    # some of transformers
    python bench/prune_units.py --models DIR [--models DIR ...] [--out bench/results/prune_units.md]

Every NAME.onnx of each DIR, as its exporter wrote it, through `clean,fold` and then
`prune(ratio=0.5, of="units")`, by weights alone: which units go makes no difference here. A model
that is pruned nowhere would leave 1; one whose every matrix loses half of its rows and columns .25;
tables of tokens and the widths of residual streams stay. *Frozen first* is the reason that holds
most parameters of the result's axes, of those that stand for more than a tenth.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from graphopt import Context, optimize
from graphopt.analyses.dims import dimensions


def parameters(model: ir.Model) -> dict[str, int]:
    """Elements of every floating-point weight."""
    return {
        name: math.prod(int(d) for d in value.shape)
        for name, value in model.graph.initializers.items()
        if value.shape is not None and value.dtype is not None and value.dtype.is_floating_point()
    }


def row(path: Path) -> tuple[str, float, int, str]:
    """Name, share of the parameters left, prunable dimensions, why most of the rest stays."""
    exact = optimize(str(path), "clean,fold", measure=False, verify="graph").model
    spec = "clean,fold,prune(ratio=0.5,of='units',score='l2',compensate=False)"
    pruned = optimize(str(path), spec, measure=False, verify="graph").model
    before, dims = parameters(exact), Context(exact).get(dimensions)
    reasons: Counter[str] = Counter()
    for frozen in dims.frozen:
        if frozen.tensor in before and "window" not in frozen.reason:  # kernels are no units
            reasons[frozen.reason.split("'")[0].strip()] += before[frozen.tensor]
    total = sum(before.values())
    why = next((r for r, n in reasons.most_common(1) if n > 0.1 * total), "")
    inner = sum(d.scope == "inner" for d in dims.prunable.values())
    return path.stem, sum(parameters(pruned).values()) / total, inner, why


def table(folder: Path) -> Iterator[str]:
    rows = sorted((row(p) for p in sorted(folder.glob("*.onnx"))), key=lambda r: -r[1])
    shares = [share for _, share, _, _ in rows]
    yield f"## {folder.name}: mean {sum(shares) / len(shares):.3f} of {len(rows)} models\n"
    yield f"{sum(s > 0.68 for s in shares)} of them above .68\n"
    yield "| model | parameters left | inner dimensions | frozen first |\n|---|---|---|---|"
    for name, share, inner, why in rows:
        yield f"| {name} | {share:.3f} | {inner} | {why} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = "\n".join(line for folder in args.models for line in table(folder))
    print(text)
    if args.out:
        command = "`python bench/prune_units.py --models DIR ...`"
        args.out.write_text(f"Parameters left at half of the units ({command}).\n\n{text}")


if __name__ == "__main__":
    main()
