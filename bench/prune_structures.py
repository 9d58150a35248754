"""Architectures for bench/prune_units.py, written to be unlike each other.

    python bench/prune_structures.py --out DIR [NAME ...]

One block or a few of each kind, random weights, exported by torch's tracer (`dynamo=False`). What
matters is how channels, heads and groups are tied together, not what the network could learn. The
models are in prune_convolutions.py, prune_vision.py, prune_sequences.py and prune_signals.py.
Needs the torch extra.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import prune_convolutions
import prune_sequences
import prune_signals
import prune_vision
import torch
from torch import nn

ROOMS = (prune_convolutions, prune_vision, prune_sequences, prune_signals)
TABLE = {name: made for room in ROOMS for name, made in room.TABLE.items()}


def lively(module: nn.Module) -> nn.Module:
    """Random weights of ordinary sizes, and statistics that are not zero and one."""
    for m in module.modules():
        for name, p in m.named_parameters(recurse=False):
            if p.ndim >= 2:
                nn.init.normal_(p, 0, max(1, p[0].numel()) ** -0.5)
            else:
                nn.init.uniform_(p, *((0.5, 1.5) if name == "weight" else (-0.2, 0.2)))
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 1.5)
    return module.eval()


def asked(text: str, names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """The architectures that the command line asks for, of `names`, and where each goes."""
    parser = argparse.ArgumentParser(description=text.split("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for name in args.names or names:
        torch.manual_seed(0)
        yield name, args.out / f"{name}.onnx"


def main() -> None:
    for name, path in asked(__doc__, TABLE):
        make, feeds = TABLE[name]
        with torch.no_grad():
            torch.onnx.export(lively(make()), feeds, str(path), dynamo=False, opset_version=17)


if __name__ == "__main__":
    main()
