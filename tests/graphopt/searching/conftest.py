"""A small model that can be pruned, factorized and made integer, its samples, its score."""

from contextlib import ExitStack

import numpy as np
import pytest

from graphopt import save
from graphopt.searching.trial import Bench
from graphopt.searching.workers import Here, Processes
from graphopt.testing import parse_model

SCORE = """
import os
import numpy as np
X = np.load(os.path.join(os.path.dirname(os.path.abspath(__file__)), "samples.npz"))["x"]
Y = np.load(os.path.join(os.path.dirname(os.path.abspath(__file__)), "labels.npy"))

def accuracy(predict):
    return 100 * float((predict({"x": X})["y"].argmax(1) == Y).mean())

def hangs(predict):
    import time
    metric = accuracy(predict)
    time.sleep(0 if metric == 100 else 60)
    return metric

def kills(predict):
    import signal
    metric = accuracy(predict)
    if metric < 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return metric

def nan(predict):
    metric = accuracy(predict)
    return metric if metric == 100 else float("nan")

def raises(predict):
    if accuracy(predict) < 100:
        raise ValueError("no such class")
    return 100.0

def constant(predict):
    return 1.0

def random(predict):
    predict({"x": X})
    return float(np.random.random())
"""


def network():
    rng = np.random.default_rng(0)
    # 64 hidden units of which 48 are nearly copies: they can go
    wide = rng.standard_normal((32, 16))
    first = np.concatenate([wide, wide, wide, wide], 1) + 0.02 * rng.standard_normal((32, 64))
    second = rng.standard_normal((64, 64)) / 8
    third = rng.standard_normal((64, 8)) / 8
    weights = {"w1": first / 6, "w2": second, "w3": third}
    return parse_model(
        "a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Relu(c)  y = MatMul(d, w3)",
        inputs={"x": ("N", 32)},
        constants={k: v.astype(np.float32) for k, v in weights.items()},
    )


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """The cache folder of all searches here: what one has measured, the others read."""
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(autouse=True)
def workers(monkeypatch):
    """One worker without a time limit is this process, which need not be started."""

    with ExitStack() as benches:

        def start(task, count, timeout):
            if timeout or count > 1:
                return Processes(task, count, timeout)
            return Here(benches.enter_context(Bench(task)))

        monkeypatch.setattr("graphopt.searching.search.Processes", start)
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch, measured):
    """A working folder with model.onnx, samples.npz and score.py."""
    from graphopt.execution.runtime import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(measured))
    model = network()
    save(model, "model.onnx")
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    np.savez("samples.npz", x=x)
    np.save("labels.npy", run(model, {"x": x})["y"].argmax(1))
    (tmp_path / "score.py").write_text(SCORE)
    return tmp_path
