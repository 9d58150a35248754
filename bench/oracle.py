"""Is the pruned model the masked twin? Every dimension of every model, alone and all together.

    python bench/oracle.py --models DIR [--models DIR ...] [--out bench/results/oracle.md]

DIR holds NAME.onnx with NAME.npz (arrays `in:INPUT`). The twin (tests/masked_twin.py) is the source
model with masks in it, and shares no code with the cut. Units kept are random.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))
from examine import examine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--together", action="store_true", help="all dimensions at once alone")
    args = parser.parse_args()
    rows = ["| model | dimensions | equal | worst alone | all at 0.5 |", "|---|---|---|---|---|"]
    failed = 0
    for folder in args.models:
        for path in sorted(folder.glob("*.onnx")):
            if args.only and path.stem not in args.only:
                continue
            arrays = np.load(path.with_suffix(".npz"))
            feeds = {k[3:]: arrays[k] for k in arrays.files if k.startswith("in:")}
            found = list(examine(ir.load(path), feeds, one_by_one=not args.together))
            wrong = [o for o in found if not o.equal]
            failed += len(wrong)
            alone = max((o.error for o in found if o.what != "all at 0.5"), default=0.0)
            whole = next((o.error for o in found if o.what == "all at 0.5"), 0.0)
            rows.append(
                f"| {folder.name}/{path.stem} | {max(0, len(found) - 1)} | "
                f"{len(found) - len(wrong)}/{len(found)} | {alone:.1e} | {whole:.1e} |"
            )
            print(rows[-1], flush=True)
            for o in wrong:
                print(f"    NOT EQUAL {o.what}: kept {o.kept} of {o.units}, error {o.error:.2e}")
    if args.out:
        args.out.write_text(__doc__.split("\n")[0] + "\n\n" + "\n".join(rows) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
