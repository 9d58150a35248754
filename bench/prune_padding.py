"""Pruning an encoder of sentences whose samples are filled up to one length.

    python bench/prune_padding.py [--epochs 8] [--model FILE]

A BERT of three layers (width 48, 4 heads) learns from which module of Python's standard library
lines come: hashed words, an attention mask, a mean over the words. `clean,fold,prune(ratio=R)` with
512 unlabelled pieces; other pieces decide. *counted* is with the filling's rows in choice and
compensation, *ignored* without them, as the pass does it. Needs the torch extra.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import torch
from graphopt.passes.prune import Prune
from torch import nn

from graphopt import Context, optimize
from graphopt.calibration.padding import padding_of
from graphopt.execution.runtime import run_each
from graphopt.samples import Samples

MODULES = (
    "argparse", "ast", "calendar", "configparser", "datetime", "difflib", "doctest", "fractions",
    "ftplib", "imaplib", "inspect", "ipaddress", "mailbox", "pathlib", "pdb", "pickle", "platform",
    "plistlib", "random", "shutil", "smtplib", "statistics", "subprocess", "tarfile", "textwrap",
    "threading", "trace", "turtle", "typing", "zipfile",
)  # fmt: skip
LENGTH, WORDS, WIDTH, LAYERS = 48, 4096, 48, 3
LEFT = (0.8, 0.7, 0.6, 0.5)
Array = np.ndarray[Any, Any]


def lines() -> tuple[Array, Array, Array]:
    """Ids [n, LENGTH], masks, and modules [n], of two lines of code each."""
    ids, labels = [], []
    for module in MODULES:
        text = inspect.getsource(importlib.import_module(module))
        rows = [r for r in text.splitlines() if len(r.split()) > 2 and "import" not in r]
        label = len(set(labels))
        for at in range(0, len(rows) - 1, 2):
            words = re.findall(r"[A-Za-z]+|[^\sA-Za-z]", " ".join(rows[at : at + 2]))[:LENGTH]
            ids.append([2 + zlib.crc32(w.encode()) % (WORDS - 2) for w in words])
            labels.append(label)
    filled = np.zeros((len(ids), LENGTH), np.int64)
    for k, row in enumerate(ids):
        filled[k, : len(row)] = row
    return filled, (filled > 0).astype(np.int64), np.array(labels)


class Layer(nn.Module):
    """A post-norm transformer layer, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.n1, self.n2, self.drop = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, 4, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        p = (q @ k.transpose(-2, -1) * (WIDTH / 4) ** -0.5 + mask).softmax(-1)
        x = self.n1(x + self.drop(self.o((p @ v).transpose(1, 2).reshape(b, t, -1))))
        return self.n2(x + self.drop(self.down(nn.functional.gelu(self.up(x)))))


class Encoder(nn.Module):
    """Words and places, layers, a mean over what the mask leaves, a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.words, self.at = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm, self.layers = nn.LayerNorm(WIDTH), nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(input_ids) + self.at.weight)
        weight = attention_mask[..., None].float()
        for layer in self.layers:
            x = layer(x, (attention_mask[:, None, None].float() - 1) * 1e4)
        return self.head((x * weight).sum(1) / weight.sum(1))


def trained(ids: Array, mask: Array, labels: Array, epochs: int, path: Path) -> None:
    """Train on these lines and write the model."""
    torch.manual_seed(0)
    model = Encoder(int(labels.max()) + 1)
    steps = epochs * (len(ids) // 128)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    x, m, y = torch.tensor(ids), torch.tensor(mask), torch.tensor(labels)
    for _ in range(epochs):
        for at in torch.randperm(len(x))[: len(x) // 128 * 128].view(-1, 128):
            loss = nn.functional.cross_entropy(model(x[at], m[at]), y[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    names = ["input_ids", "attention_mask"]
    axes = {n: {0: "batch"} for n in names}
    torch.onnx.export(
        model.eval(), (x[:4], m[:4]), str(path), dynamo=False, input_names=names, dynamic_axes=axes
    )


def feeds(ids: Array, mask: Array, size: int) -> list[dict[str, Array]]:
    return [
        {"input_ids": ids[k : k + size], "attention_mask": mask[k : k + size]}
        for k in range(0, len(ids), size)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--model", type=Path, help="where the trained model is kept")
    args = parser.parse_args()
    ids, mask, labels = lines()
    blocks = np.arange(len(ids)) // 20  # neighbours are alike: whole blocks are held out
    test = blocks % 5 == 4
    rng = np.random.default_rng(0)
    train = rng.permutation(np.flatnonzero(~test))
    path = args.model or Path(tempfile.mkdtemp()) / "lines.onnx"
    if not path.exists():
        trained(ids[train], mask[train], labels[train], args.epochs, path)
    model = optimize(str(path), "clean,fold", measure=False, verify="graph").model
    check = feeds(ids[test], mask[test], 256)

    def outputs(of: ir.Model) -> Array:
        return np.concatenate([next(iter(o.values())) for o in run_each(of, check, optimize=True)])

    first = outputs(model)
    print(f"{mask[train[:512]].mean():.2f} of the samples are words, {test.sum()} lines decide")
    print(f"before: {(first.argmax(1) == labels[test]).mean():.4f}")
    print("| MACs left | filling | accuracy | relative error of the outputs |\n|---|---|---|---|")
    for left in LEFT:
        for how in ("counted", "ignored"):
            copy = model.clone()
            ctx = Context(copy, samples=Samples(feeds(ids[train[:512]], mask[train[:512]], 64)))
            with patch("graphopt.passes.prune.prune.padding_of", return_value=None) as off:
                if how == "ignored":
                    off.side_effect = padding_of
                Prune(ratio=1 - left).run(copy, ctx)
            found = outputs(copy)
            off_by = np.linalg.norm(found - first) / np.linalg.norm(first - first.mean(0))
            right = (found.argmax(1) == labels[test]).mean()
            print(f"| {left} | {how} | {right:.4f} | {off_by:.4f} |", flush=True)


if __name__ == "__main__":
    main()
