"""Session options: tried against the best so far, written where they help beyond noise."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from graphopt import tune
from graphopt.backend import backend_of, find_target
from graphopt.deploy.manifest import Manifest, manifest_path, read_manifest, write_manifest
from graphopt.deploy.sessions import session
from graphopt.errors import InputError, ModelError
from graphopt.measuring import session_options as tuning
from graphopt.measuring.worker import all_served, alternate, served
from graphopt.testing import parse_model

FEEDS = {"x": np.ones((2, 3), np.float32)}


@pytest.fixture
def lowered(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "processors", lambda: 4)
    cpu = find_target("cpu")
    return backend_of(cpu).lower(parse_model("y = Relu(x)"), cpu, tmp_path / "m.onnx")


def pretend(monkeypatch, milliseconds, noise=0.005):
    """`milliseconds(manifest)` stands for the clock; the first model's second turn is off."""

    @contextmanager
    def opened(path, target, file, manifest):
        yield manifest

    def alternate(both, seconds):
        rng = np.random.default_rng(0)
        times = np.array([milliseconds(m) for m in [*both, both[0]]], float)
        return times * np.exp(rng.normal(0, noise, (30, 3))), []

    monkeypatch.setattr(tuning, "served", opened)
    monkeypatch.setattr(tuning, "alternate", alternate)


def test_what_helps_is_written_and_opens_the_model_so(lowered, monkeypatch):
    pretend(monkeypatch, lambda m: {0: 1.0, 2: 0.8, 1: 0.6}[m.threads])
    tried = tune(lowered)
    assert [t.option for t in tried if t.kept] == ["threads=2", "threads=1"]
    assert read_manifest(lowered).threads == 1
    opened = session(lowered)
    assert opened.raw.get_session_options().intra_op_num_threads == 1


def test_one_thread_is_not_asked_whether_it_should_spin(lowered, monkeypatch):
    pretend(monkeypatch, lambda m: 0.5 if m.threads == 1 else 1.0)
    assert "no spinning" not in [t.option for t in tune(lowered)]
    write_manifest(lowered, Manifest("cpu"))
    pretend(monkeypatch, lambda m: 1.0)
    assert "no spinning" in [t.option for t in tune(lowered)]


@pytest.mark.parametrize(("rows", "tried"), [("n", 256), (3, 3)])
def test_trees_are_tried_on_many_rows(rows, tried, tmp_path, monkeypatch, forest):
    """For few ONNX Runtime takes one thread, whatever it is told."""
    path = forest(tmp_path / "trees.onnx", rows)
    shapes = []
    monkeypatch.setattr(tuning, "keep_feeds", lambda feeds, _: shapes.append(feeds["x"].shape))
    monkeypatch.setattr(tuning, "best_batch", lambda opened, seconds: None)
    pretend(monkeypatch, lambda m: 1.0)
    tune(path)
    assert shapes[0] == (tried, 4)


@pytest.mark.parametrize("ratio", [1.0, 0.985, 1.5])
def test_what_does_not_help_beyond_noise_leaves_the_manifest_as_it_was(lowered, monkeypatch, ratio):
    before = manifest_path(lowered).read_bytes()
    pretend(monkeypatch, lambda m: 1.0 if m == Manifest("cpu") else ratio)
    assert not any(t.kept for t in tune(lowered))
    assert manifest_path(lowered).read_bytes() == before


def test_a_machine_too_noisy_decides_nothing(lowered, monkeypatch):
    pretend(monkeypatch, lambda m: 1.0 if m == Manifest("cpu") else 0.7, noise=1.5)
    assert not any(t.kept for t in tune(lowered))


def test_memory_options_round_trip_and_are_written_only_when_off(lowered):
    write_manifest(lowered, Manifest("cpu", pattern=False))
    data = json.loads(manifest_path(lowered).read_text())
    assert data == {
        "schema": 1, "target": "cpu", "provider": "CPUExecutionProvider", "pattern": False
    }  # fmt: skip
    assert read_manifest(lowered) == Manifest("cpu", pattern=False)
    assert session(lowered).raw.get_session_options().enable_mem_pattern is False


def test_sizes_that_never_change_are_an_option(lowered, monkeypatch):
    pretend(monkeypatch, lambda m: 0.7 if m.free_dimensions else 1.0)
    tried = tune(lowered, fixed={"batch": 1})
    assert "batch=1 fixed" in [t.option for t in tried if t.kept]
    assert read_manifest(lowered).free_dimensions == {"batch": 1}


def test_a_served_model_takes_turns_and_says_what_it_weighs(lowered, tmp_path):
    cpu = find_target("cpu")
    with all_served([(lowered, cpu, Manifest("cpu", threads=1))], FEEDS, tmp_path) as models:
        times, singles = alternate(models, 0.05)
        assert models[0].weight.load_ms > 0
        state = Path(f"/proc/{models[0].process.pid}/stat")
        assert not state.is_file() or state.read_text().split()[2] == "T", "it spins meanwhile"
    assert times.shape[1] == 2
    assert len(times) >= 5
    assert (times > 0).all()
    assert len(singles[0]) >= 30
    assert models[0].process.returncode is not None


def test_what_cannot_be_served_is_refused(lowered, tmp_path):
    (tmp_path / "broken.onnx").write_text("no model")
    np.savez(tmp_path / "feeds.npz", **FEEDS)
    with (
        pytest.raises(ModelError, match=r"broken\.onnx"),
        served(tmp_path / "broken.onnx", find_target("cpu"), tmp_path / "feeds.npz"),
    ):
        pass


def test_a_model_that_does_not_run_is_an_error_and_not_a_quiet_nothing(lowered):
    lowered.write_bytes(b"no model")
    with pytest.raises(ModelError, match=lowered.name):
        tune(lowered, feeds=FEEDS)


def test_a_missing_model_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no model"):
        tune(tmp_path / "none.onnx")
