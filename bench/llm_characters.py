"""A small trained decoder of characters: this repository's documents, the form of llm_model.py.

    python bench/llm_characters.py --work DIR [--steps 300]

Trains in minutes on a CPU (kept under DIR), and tells the perplexity of what `weight_only` makes of
it, on text that was held back: as `graphopt optimize --eval perplexity` does.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from llm_model import Shape, build
from torch import nn
from torch.nn import functional

import graphopt
from graphopt.budget import Budget
from graphopt.execution.runtime import opened
from graphopt.samples import open_samples
from graphopt.verification.perplexity import bound

ROOT = Path(__file__).parents[1]
#: Of training.
STEPS = 300
#: Tokens of a row, rows of a step, and rows that GPTQ rounds for and that are judged.
LENGTH, ROWS, CALIBRATION, JUDGED = 128, 24, 64, 160


def text() -> str:
    """The documents, in order of their names; what is not ASCII is left out."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return "".join(p.read_text().encode("ascii", "ignore").decode() for p in pages)


class Decoder(nn.Module):
    """Llama of any shape; its weights lie as MatMul reads them and are named as llm_model's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = s = shape
        self.names: dict[str, nn.Parameter] = {}

        def weight(name: str, *dims: int, scale: float | None = None) -> None:
            array = torch.ones(dims) if len(dims) == 1 else torch.randn(dims)
            scale = 1.0 if len(dims) == 1 else scale or 1 / math.sqrt(dims[0])
            self.names[name] = nn.Parameter(array * scale)
            self.register_parameter(name.replace(".", "_"), self.names[name])

        weight("embed.weight", s.vocabulary, s.hidden, scale=1.0)
        for k in range(s.layers):
            weight(f"layer{k}.input_norm.weight", s.hidden)
            weight(f"layer{k}.post_norm.weight", s.hidden)
            for name in "qkvo":
                weight(f"layer{k}.{name}.weight", s.hidden, s.hidden)
            for name in ("gate", "up"):
                weight(f"layer{k}.{name}.weight", s.hidden, s.inner)
            weight(f"layer{k}.down.weight", s.inner, s.hidden)
        weight("final_norm.weight", s.hidden)
        weight("logits.weight", s.hidden, s.vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        s, w = self.shape, self.names
        at = torch.arange(ids.shape[1])[:, None]
        angles = at * 10000.0 ** (-torch.arange(0, s.head, 2) / s.head)
        cos, sin = angles.cos(), angles.sin()

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return functional.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], 1e-5)

        def turned(x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

        x = w["embed.weight"][ids]
        for k in range(s.layers):
            y = norm(x, f"layer{k}.input_norm")
            q, key, v = (
                (y @ w[f"layer{k}.{n}.weight"]).unflatten(-1, (s.heads, s.head)).transpose(1, 2)
                for n in "qkv"
            )
            y = functional.scaled_dot_product_attention(turned(q), turned(key), v, is_causal=True)
            x = x + y.transpose(1, 2).flatten(2) @ w[f"layer{k}.o.weight"]
            y = norm(x, f"layer{k}.post_norm")
            gated = functional.silu(y @ w[f"layer{k}.gate.weight"]) * (y @ w[f"layer{k}.up.weight"])
            x = x + gated @ w[f"layer{k}.down.weight"]
        return norm(x, "final_norm") @ w["logits.weight"]


def train(decoder: Decoder, tokens: torch.Tensor, steps: int) -> None:
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        starts = torch.randint(len(tokens) - LENGTH - 1, (ROWS, 1), generator=draw)
        rows = tokens[starts + torch.arange(LENGTH + 1)]
        logits = decoder(rows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", file=sys.stderr, flush=True)


def prepare(work: Path, steps: int) -> Path:
    """The trained model, and beside it the tokens to round for and those to judge on."""
    source = work / "characters.onnx"
    if source.exists():
        return source
    said = text()
    letters = sorted(set(said))
    tokens = np.array([letters.index(c) for c in said])
    train_on, held = tokens[: -len(tokens) // 10], tokens[-len(tokens) // 10 :]
    shape = Shape(3, 256, 512, 4, 4, len(letters), 1024, half=False)
    torch.manual_seed(0)
    decoder = Decoder(shape)
    train(decoder, torch.from_numpy(train_on), steps)
    build(shape, source, {n: p.detach().numpy() for n, p in decoder.names.items()})
    draw = np.random.default_rng(0)
    starts = draw.integers(len(train_on) - LENGTH, size=(CALIBRATION, 1))
    np.savez(work / "calibration.npz", input_ids=train_on[starts + np.arange(LENGTH)])
    rows = held[: len(held) // LENGTH * LENGTH].reshape(-1, LENGTH)[:JUDGED]
    np.savez(work / "held.npz", input_ids=rows)
    with torch.no_grad():
        logits = decoder(torch.from_numpy(rows))[:, :-1].flatten(0, 1)
        loss = functional.cross_entropy(logits, torch.from_numpy(rows[:, 1:]).flatten())
    print(f"perplexity in PyTorch {loss.exp().item():.4f}", file=sys.stderr)
    return source


class Judge:
    """Perplexity on the held text of what a pass makes of the source, by rounding for samples."""

    def __init__(self, work: Path, source: Path) -> None:
        self.model = graphopt.load(source)
        self.samples = work / "calibration.npz"
        held = open_samples(work / "held.npz", self.model)
        evaluate = bound(Budget(evaluate="perplexity"), self.model, held).evaluation
        assert evaluate is not None
        self.evaluate = evaluate
        self.source = self.perplexity(self.model)

    def perplexity(self, model: ir.Model) -> float:
        with opened(model) as predict:
            return -self.evaluate(predict)

    def rise(self, spec: str, samples: bool = True) -> tuple[float, int]:
        """The share by which the perplexity rises, and bytes."""
        result = graphopt.optimize(
            self.model, spec, samples=self.samples if samples else None, measure=False,
            verify="graph", cache="off", budget=Budget(max_disagreement=math.inf),
        )  # fmt: skip
        return self.perplexity(result.model) / self.source - 1, result.report.after.bytes or 0


def mixed(judge: Judge, most: float) -> tuple[str, int]:
    """The spec with most products in 2 bits whose perplexity rises by at most so much; how many.

    Those go first that alone raise it least for each weight.
    """
    four = "weight_only(block=32)"
    products = [n for n in judge.model.graph if n.op_type == "MatMul"]

    def spec(chosen: list[ir.Node]) -> str:
        layers = ", ".join(f"('{n.name}', 2)" for n in chosen)
        return f"weight_only(block=32, layers=({layers},))" if chosen else four

    alone = {n: judge.rise(spec([n]))[0] for n in products}
    size = {n: math.prod(n.inputs[1].shape.numpy()) for n in products}
    order = sorted(products, key=lambda n: alone[n] / size[n])
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if judge.rise(spec(order[:middle]))[0] <= most:
            low = middle
        else:
            high = middle
    return spec(order[:low]), low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    source = prepare(args.work, args.steps)
    judge = Judge(args.work, source)
    print(f"prepared in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    print("| weights | size MB | perplexity |\n|---|---|---|")
    size = sum(p.stat().st_size for p in args.work.glob("characters.onnx*"))
    print(f"| float | {size / 1e6:.2f} | {judge.source:.4f} |")
    for name, spec, samples in (
        ("8 bits", "weight_only(bits=8)", False),
        ("4 bits in blocks of 64, nearest", "weight_only", False),
        ("4 bits in blocks of 64, GPTQ", "weight_only", True),
        ("4 bits in blocks of 32, GPTQ", "weight_only(block=32)", True),
        ("2 bits in blocks of 32, GPTQ", "weight_only(bits=2, block=32)", True),
    ):
        rise, nbytes = judge.rise(spec, samples)
        print(f"| {name} | {nbytes / 1e6:.2f} | {rise:+.2%} |", flush=True)
    spec, count = mixed(judge, 0.03)
    products = sum(n.op_type == "MatMul" for n in judge.model.graph)
    rise, nbytes = judge.rise(spec)
    name = f"2 bits for {count} of {products} products, 4 for others, GPTQ"
    print(f"| {name} | {nbytes / 1e6:.2f} | {rise:+.2%} |")
    print(spec, file=sys.stderr)


if __name__ == "__main__":
    main()
