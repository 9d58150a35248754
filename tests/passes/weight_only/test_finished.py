"""A quantization that is killed goes on at the matrix where it was, and gives the same bytes."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphopt.passes.weight_only import finished

import graphopt
from graphopt.execution import runtime, staged
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
LAYERS = 6


def drawn(*dims):
    return RNG.standard_normal(dims).astype(np.float32)


#: Optimizes; sends itself SIGKILL after so many matrices. Says how many were rounded here.
PROGRAM = """
import os, signal, sys
import graphopt
from graphopt.execution.staged import Staged
from graphopt.passes.weight_only import finished, writer
model, samples, out, cache, most = sys.argv[1:]
finished.LARGE = 0
rounded, compute = writer.in_blocks, Staged._compute
count = stages = 0
def staged(*given):
    global stages
    stages += 1
    return compute(*given)
Staged._compute = staged
def counted(*given):
    global count
    if count == int(most):
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    return rounded(*given)
writer.in_blocks = counted
result = graphopt.optimize(model, "weight_only", samples=samples or None, measure=False,
                           budget=graphopt.Budget(max_disagreement=float("inf")), cache=cache)
result.write(out, external=True)
print(stages, count)
"""


@pytest.fixture
def source(tmp_path):
    text = "h0 = Add(x, b)  "
    text += "".join(f"p{k} = MatMul(h{k}, w{k})  h{k + 1} = Relu(p{k})  " for k in range(LAYERS))
    weights = {f"w{k}": drawn(128, 128) / 12 for k in range(LAYERS)}
    x = drawn(4, 128)
    constants = {"b": np.ones(128, np.float32), **weights}
    model = parse_model(f"{text}y = Neg(h{LAYERS})", inputs={"x": x}, constants=constants)
    graphopt.save(model, tmp_path / "m.onnx", external=True)
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path


def started(folder, samples, out, cache, most):
    (folder / out).parent.mkdir(exist_ok=True)
    given = (folder / "m.onnx", samples, folder / out, folder / cache, most)
    command = [sys.executable, "-c", PROGRAM, *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def both(folder, out):
    return [(folder / f"{out}{end}").read_bytes() for end in ("", ".data")]


@pytest.mark.parametrize("given", ["", "x.npz"], ids=["nearest", "samples"])
def test_a_killed_run_goes_on(source, given):
    samples = source / given if given else ""
    whole = started(source, samples, "whole/o.onnx", "other", 99)
    assert whole.stdout.split()[-1] == str(LAYERS), whole.stderr
    killed = started(source, samples, "o.onnx", "cache", 4)
    assert killed.returncode == -signal.SIGKILL
    assert not (source / "o.onnx").exists()
    (kept,) = (source / "cache" / "weights").iterdir()
    assert len(list(kept.glob("*.q.npy"))) == len(list(kept.glob("*.scale.npy"))) == 4
    assert not list(kept.glob("*.zero.npy"))  # blocks are symmetric
    part = next(kept.glob("*.q.npy"))  # a file cut off, as a power cut may leave it, is made again
    part.write_bytes(part.read_bytes()[:200])
    again = started(source, samples, "o.onnx", "cache", 99)
    assert again.stdout.split()[-1] == str(LAYERS - 3), again.stderr
    assert both(source, "o.onnx") == both(source, "whole/o.onnx")
    assert list((source / "cache" / "weights").iterdir()) == []
    assert list((source / "other" / "weights").iterdir()) == []


def test_layers_that_are_finished_are_not_run_again(source):
    """Values of the samples are there too: a deep model is not run again up to where it was."""
    killed = started(source, source / "x.npz", "o.onnx", "cache", 4)
    assert killed.returncode == -signal.SIGKILL
    again = started(source, source / "x.npz", "o.onnx", "cache", 99)
    stages, rounded = map(int, again.stdout.split()[-2:])
    assert rounded == LAYERS - 4, again.stderr
    assert stages == LAYERS - 5  # the value that the next matrix multiplies was there
    whole = started(source, source / "x.npz", "whole/o.onnx", "other", 99)
    assert whole.stdout.split()[-2:] == [str(LAYERS), str(LAYERS)]
    assert both(source, "o.onnx") == both(source, "whole/o.onnx")


def test_another_run_takes_nothing_up(source):
    assert started(source, "", "o.onnx", "cache", 3).returncode == -signal.SIGKILL
    other = started(source, source / "x.npz", "p.onnx", "cache", 99)
    assert other.stdout.split()[-1] == str(LAYERS)


def test_where_nothing_can_be_kept_nothing_is(source):
    (source / "cache").write_text("no folder")
    done = started(source, "", "o.onnx", "cache", 99)
    assert done.stdout.split()[-1] == str(LAYERS), done.stderr


@pytest.mark.parametrize("given", [None, "x.npz"], ids=["nearest", "samples"])
def test_a_model_in_parts_becomes_the_same_bytes(source, given, monkeypatch):
    """What runs part by part, its matrices and values on disk, is what fits into memory too."""
    names = []
    for large in (False, True):
        if large:
            monkeypatch.setattr(runtime, "IN_PARTS", 100)
            monkeypatch.setattr(staged, "IN_PARTS", 100)
            monkeypatch.setattr(finished, "LARGE", 0)
        made = graphopt.optimize(
            source / "m.onnx",
            "weight_only",
            samples=source / given if given else None,
            measure=False,
            budget=graphopt.Budget(max_disagreement=float("inf")),
            cache=source / "cache",
        )
        assert made.report.steps[0].edits == LAYERS
        names.append(f"{large}/o.onnx")
        (source / names[-1]).parent.mkdir()
        made.write(source / names[-1], external=True)
    assert (source / "cache" / "weights").is_dir()
    assert both(source, names[0]) == both(source, names[1])


def test_small_models_keep_nothing(source):
    cache = source / "cache"
    graphopt.optimize(source / "m.onnx", "weight_only", measure=False, cache=cache)
    assert finished.LARGE == 1 << 30
    assert not Path(cache, "weights").exists()
