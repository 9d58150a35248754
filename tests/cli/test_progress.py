"""What a user sees while something long runs: the pass's own steps, and how long they will take."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphopt as package
from graphopt.cli.progress import Estimate
from graphopt.samples import Samples

SLOW = """
import time
from dataclasses import dataclass
from graphopt import Pass

@dataclass(frozen=True)
class Slow(Pass):
    def run(self, model, ctx):
        for _ in ctx.track(range(8), 8, "resting"):
            time.sleep(0.3)
        return 0
"""


def test_the_time_left_is_that_of_what_is_done():
    said = Estimate()
    assert said("prune: scoring", 0, 4, 10.0) == "0/4"
    assert said("prune: scoring", 1, 4, 12.0) == "1/4, about 6 s left"
    assert said("prune: refitting", 0, 20, 13.0) == "0/20"
    assert said("prune: refitting", 2, 20, 43.0) == "2/20, about 4 min left"
    assert said("distill: epoch 1/9, loss 0.5", 10, 1000, 50.0) == "10/1000"
    assert said("distill: epoch 1/9, loss 0.4", 20, 1000, 150.0) == "20/1000, about 2.7 h left"
    assert said("int8: running samples", 3, 0, 160.0) == ""
    assert said("prune: scoring", 3, 4, 170.0) == "3/4", "another search, begun in the middle"
    assert said("prune: scoring", 0, 4, 171.0) == "0/4", "from the beginning again"


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of Unix")
def test_it_is_shown_on_a_terminal_soon(folder):
    Path("slow.py").write_text(SLOW)
    master, slave = pty.openpty()
    command = [sys.executable, "-P", "-m", "graphopt", "optimize", "model.onnx", "-o", "o.onnx"]
    with subprocess.Popen(
        [*command, "-p", "slow.py:Slow", "--no-measure"],
        stdout=subprocess.DEVNULL,
        stderr=slave,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
    ) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                shown += os.read(master, 4096)
            except OSError:  # the other end was closed
                break
        assert process.wait() == 0
    os.close(master)
    text = shown.decode()
    left = r"step 1 of 1, slow.py:Slow: resting.*?\d/8, about [\d.]+ (s|min|h) left"
    assert re.search(left, text), repr(text)


@pytest.fixture
def conv(folder):
    """Convolutions and products, with real samples: something to do for every pass."""
    rng = np.random.default_rng(0)
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[batch, 3, 8, 8] x) => (float[batch, 10] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        b = Relu(a)
        c = Conv<pads = [1, 1, 1, 1]>(b, w2)
        d = Relu(c)
        e = GlobalAveragePool(d)
        f = Flatten(e)
        g = MatMul(f, w3)
        h = Relu(g)
        y = MatMul(h, w4)
    }
    """
    proto = onnx.parser.parse_model(text)
    shapes = {"w1": (32, 3, 3, 3), "w2": (64, 32, 3, 3), "w3": (64, 256), "w4": (256, 10)}
    for name, shape in shapes.items():
        weight = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(weight.astype(np.float32), name)
        )
    onnx.save(proto, "conv.onnx")
    return rng.normal(size=(64, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ("prune(ratio=0.5)", {"scoring dimensions", "refitting layers"}),
        ('prune(ratio=0.5, spread="sensitivity")', {"measuring how far outputs move"}),
        ("svd(error=0.5)", {"factoring layers"}),
        ("svd(ratio=0.3)", {"factoring layers", "factoring chosen layers"}),
        ("int8", {"running samples"}),
        ("weight_only", {"rounding weights"}),
        ("fp16", {"running samples"}),
    ],
)
def test_passes_that_take_long_tell_their_own_steps(conv, spec, steps):
    told = []
    package.optimize(
        "conv.onnx", spec, samples=conv, target="cuda" if spec == "fp16" else "cpu", measure=False,
        progress=lambda text, done, total: told.append((text, done, total)),
    )  # fmt: skip
    name = spec.partition("(")[0]
    counted = {
        text.removeprefix(f"step 1 of 1, {name}: ")
        for text, _, total in told
        if (total or spec == "fp16") and text.startswith(f"step 1 of 1, {name}: ")
    }
    assert steps <= counted, told
    assert all(0 <= done < total for _, done, total in told if total)


def test_samples_tell_how_many_there_are_once_they_were_read():
    told = []
    samples = Samples([{"x": np.zeros(1)}] * 3, "here")
    watched = samples.watched(lambda done, total: told.append((done, total)))
    assert (len(list(watched)), len(list(watched))) == (3, 3)
    assert told == [(0, 0), (1, 0), (2, 0), (0, 3), (1, 3), (2, 3)]
    assert (repr(watched), watched.digest()) == (repr(samples), samples.digest())


def test_builds_log_each_step_once(conv, graphopt):
    np.savez("conv.npz", x=conv)
    code, _, err = graphopt(
        "optimize", "conv.onnx", "-p", "prune,int8", "--samples", "conv.npz", "--no-measure",
        "-o", "o.onnx", "--log-level", "info",
    )  # fmt: skip
    assert code == 0
    lines = [line.partition("graphopt: ")[2] for line in err.splitlines()]
    assert "step 1 of 2, prune: refitting layers" in lines
    assert "step 2 of 2, int8: checking what it did" in lines
    assert len(lines) < 60
