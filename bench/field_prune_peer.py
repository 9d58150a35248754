"""onnxsim's structured pruning and block-wise fine-tuning, for bench/field_prune.py.

    python bench/field_prune_peer.py MODEL OUT SAMPLES SPARSITY [--tune]

In the environment of bench/field.py. SAMPLES is a folder of recorded runs. Simplified first, as its
documentation says, then channels and heads by its calibrated ranking; --tune trains block by block
against the model's own activations, with its defaults, and says how many blocks it trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import onnx
import onnxsim
from field_peers import runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "out", "samples"):
        parser.add_argument(name, type=Path)
    parser.add_argument("sparsity", type=float)
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    feeds = runs(args.samples)
    simple, _ = onnxsim.simplify(onnx.load(args.model))
    given = {"calibration_data": feeds, "sparsity": args.sparsity}
    made = onnxsim.apply_structured_wanda_pruning(simple, **given)
    made = onnxsim.apply_attention_head_wanda_pruning(made, **given)
    trained = 0
    if args.tune:
        made, blocks = onnxsim.apply_block_finetune_all_blocks(simple, made, calibration_data=feeds)
        trained = sum(b.trained for b in blocks)
    onnx.save(made, args.out)
    print(json.dumps({"trained": trained}))


if __name__ == "__main__":
    main()
