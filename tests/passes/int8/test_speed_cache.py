import dataclasses
import json

import numpy as np
import pytest
from graphopt.passes.int8 import Int8
from graphopt.passes.int8 import speed as trials
from graphopt.passes.int8.speed_cache import Gains

from graphopt.backend import Timing, find_target
from graphopt.context import Context
from graphopt.samples import Samples
from graphopt.testing import parse_model

TARGET = dataclasses.replace(find_target("cpu"), measured=True)


class Slow:
    """A backend on which integers take twice the time; counts what it is asked to time."""

    calls = 0

    def lower(self, model, target, path):
        integer = any(n.op_type != "MatMul" for n in model.graph)
        path.write_text("2" if integer else "1")
        return path

    def measure(self, a, b, feeds, target, seconds):
        self.calls += 1
        ratio = float(b.read_text()) / float(a.read_text())
        return Timing(1, ratio, ratio, (ratio - 0.001, ratio + 0.001), 0.0, 30)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def backend(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    slow = Slow()
    monkeypatch.setattr(trials, "backend_of", lambda target: slow)
    return slow


def quantize():
    x = normal(4, 16)
    model = parse_model("y = MatMul(x, w)", inputs={"x": x}, constants={"w": normal(16, 16)})
    return Int8().run(model, Context(model, target=TARGET, samples=Samples([{"x": x}])))


def test_a_product_is_timed_once_on_a_machine(backend):
    assert quantize() == 0
    asked = backend.calls
    assert asked > 0
    assert quantize() == 0
    assert backend.calls == asked


def test_whoever_knows_better_edits_the_file(backend):
    quantize()
    path = Gains(TARGET).path
    stored = json.loads(path.read_text())
    ((machine, ratios),) = stored.items()
    assert machine == Gains(TARGET).machine
    ((key, ratio),) = ratios.items()
    assert ratio == 2.0
    path.write_text(json.dumps({machine: {key: 0.5}}))
    backend.lower = lambda model, target, path: path.write_text("1") and path  # no more objection
    assert quantize() == 1


def test_a_broken_file_is_measured_again(backend):
    path = Gains(TARGET).path
    path.parent.mkdir()
    path.write_text("{")
    assert quantize() == 0
    assert json.loads(path.read_text())


def test_another_instruction_set_is_another_entry(backend):
    gains = Gains(TARGET)
    gains.put("MatMul", 2.0)
    gains.save()
    assert Gains(dataclasses.replace(TARGET, isa=("avx2",))).get("MatMul") is None
    assert Gains(TARGET).get("MatMul") == 2.0
