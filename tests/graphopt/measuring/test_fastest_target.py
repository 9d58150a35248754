import dataclasses
import time
from contextlib import contextmanager

import numpy as np
import pytest

from graphopt import backend
from graphopt.errors import MissingExtra, ModelError, UsageError
from graphopt.measuring import fastest_target as auto
from graphopt.measuring.fastest_target import fastest, runnable
from graphopt.measuring.statistics import interleave
from graphopt.target import Target
from graphopt.testing import parse_model

FEEDS = {"x": np.ones((2, 3), np.float32)}


@dataclasses.dataclass
class Stopped:
    """A backend whose runs are said to take the milliseconds in their target's opset."""

    name: str = "stopped"

    def lower(self, model, target, path):
        if target.isa == ("refuses",):
            raise ModelError("operator Foo is not known")
        path.write_bytes(b"")
        return path

    def session(self, path, target, *, beside=False):
        assert beside
        return lambda feeds: {"y": feeds["x"]}


@pytest.fixture(autouse=True)
def stopped(monkeypatch):
    """No clock is read: the times are what the targets say, with 2 % noise."""

    def clock(candidates, feeds, folder, seconds, seed):
        rng = np.random.default_rng(seed)
        times = np.array([c.target.opset for c in [*candidates, candidates[0]]], float)
        return times * np.exp(rng.normal(0, 0.02, (40, len(times))))

    @contextmanager
    def served(path, target, file):
        if target.isa == ("dies",):
            raise ModelError("its process ended with exit code -9")
        yield None

    monkeypatch.setattr(auto, "backend_of", lambda target: Stopped())
    monkeypatch.setattr(auto, "served", served)
    monkeypatch.setattr(auto, "clock", clock)


def targets(*milliseconds, **changes):
    model = parse_model("y = Relu(x)")
    made = [Target(f"t{k}", opset=ms, measured=True) for k, ms in enumerate(milliseconds)]
    return [(dataclasses.replace(t, **changes), model) for t in made]


def test_the_fastest_is_chosen_and_the_sentence_says_by_how_much(tmp_path):
    choice = fastest(targets(24, 8, 16), FEEDS, tmp_path)
    assert choice.best.target.name == "t1"
    assert choice.best.path is not None
    assert choice.best.path.is_file()
    assert "t1 was chosen" in str(choice)
    assert "t0 is" in str(choice)
    assert "times slower" in str(choice)


def test_the_source_is_timed_beside_them_and_never_chosen(tmp_path):
    (source,) = targets(4)
    choice = fastest(targets(24, 8), FEEDS, tmp_path, source=source)
    assert choice.best.target.name == "t1"
    assert "t1 was chosen, 0.5" in str(choice)
    assert "times as fast as the source on t0" in str(choice)


def test_a_single_target_is_compared_with_the_source_alone(tmp_path):
    (source,) = targets(12)
    choice = fastest(targets(4), FEEDS, tmp_path, source=source)
    assert choice.rounds > 0
    assert choice.source.latency_ms > 2 * choice.best.latency_ms


def test_among_equals_the_first_stays():
    rng = np.random.default_rng(0)
    times = np.exp(rng.normal(0, 0.05, (40, 3)))
    assert auto._pick(times) == 0
    times[:, 2] *= 0.7
    assert auto._pick(times) == 2


def test_what_does_not_open_or_is_not_accepted_is_out_with_its_reason(tmp_path):
    models = [*targets(4), *targets(1, name="cannot", isa=("refuses",)), *targets(1, name="wrong")]
    choice = fastest(
        models,
        FEEDS,
        tmp_path,
        accept=lambda target, session: "its error is 0.4" if target.name == "wrong" else "",
    )
    assert choice.best.target.name == "t0"
    assert [c.refused for c in choice.candidates] == [
        "",
        "operator Foo is not known",
        "its error is 0.4",
    ]
    assert "cannot is out: operator Foo is not known" in str(choice)


def test_one_that_dies_in_a_process_of_its_own_is_out(tmp_path):
    choice = fastest([*targets(4), *targets(1, name="dies", isa=("dies",))], FEEDS, tmp_path)
    assert choice.best.target.name == "t0"
    assert "dies is out: its process ended with exit code -9" in str(choice)


def test_none_left_is_an_error_with_every_reason(tmp_path):
    with pytest.raises(UsageError, match="Foo is not known"):
        fastest(targets(1, isa=("refuses",)), FEEDS, tmp_path)
    with pytest.raises(UsageError, match="cannot be measured"):
        fastest(targets(1, measured=False), FEEDS, tmp_path)


def test_runnable_has_this_machine_first_and_says_what_is_absent(monkeypatch):
    class Entry:
        def __init__(self, backend):
            self.load = lambda: backend

    class One:
        def targets(self):
            return ["one", "other"]

        def target(self, name):
            return Target(name, measured=name == "one")

    class Absent:
        def targets(self):
            return ["absent"]

        def target(self, name):
            raise MissingExtra("absent", f"target '{name}'")

    table = {"a": Entry(Absent()), "cpu": Entry(One()), "b": Entry(One())}
    monkeypatch.setattr(backend.plugins, "find", lambda group: table)
    found, absent = runnable()
    assert [t.name for t in found] == ["one", "one"]
    assert "pip install" in absent["absent"]


def test_interleave_times_what_it_runs():
    """A run of 20 ms beside one of 1 ms: sleeping never ends early, so the order is certain."""
    times = interleave([lambda: time.sleep(0.02), lambda: time.sleep(0.001)], 0.0)
    assert (times[:, 0] >= 20).all()
    assert (times[:, 1] >= 1).all()
