"""What is known of the edits of exact passes, and what it costs to know it.

    python bench/proof.py --models DIR [--models DIR ...] [--out FILE]

Per folder: edits of `clean,fold,fuse` proved, checked and assumed, and the seconds of evidence
beside those of the passes. Broken rewrites are in `mutants.py`.
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

from proof_regions import examined

from graphopt.formats import load


def judged(folder):
    """Verdicts of a folder's edits, and the seconds of passes and of evidence."""
    verdicts, passes, evidence, models = collections.Counter(), 0.0, 0.0, 0
    for path in sorted(folder.glob("*.onnx")):
        models += 1
        for found, spent, judging in examined(load(path)):
            passes, evidence = passes + spent, evidence + judging
            verdicts.update(found.counts if found else {})
    return models, verdicts, passes, evidence


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = ["| models | edits | proved | checked | assumed | passes | evidence |", "|" + "---|" * 7]
    for folder in args.models:
        models, v, passes, evidence = judged(folder)
        rows.append(
            f"| {folder.name}: {models} | {sum(v.values())} | {v['proved']} | {v['checked']} | "
            f"{v['assumed']} | {passes:.1f} s | {evidence:.1f} s |"
        )
        print(rows[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
