import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

import graphopt
from graphopt import cache as module
from graphopt.backend import Timing, find_target
from graphopt.cache import Cache, default_folder, open_cache
from graphopt.context import Context
from graphopt.testing import parse_model

TARGET = find_target("cpu")


class Clock:
    def __init__(self, *ratios):
        self.ratios, self.calls = list(ratios), 0

    def __call__(self, a, b, feeds, seconds):
        self.calls += 1
        ratio = self.ratios.pop(0)
        return Timing(1, ratio, ratio, (ratio - 0.01, ratio + 0.01), 0.0, 30)


def asked(clock, cache, facts=None, **options):
    model = parse_model("y = Relu(x)", inputs={"x": (2,)})
    ctx = Context(model, target=TARGET, timer=clock, cache=cache, facts=facts)
    pair = (model, model, {"x": np.zeros(2, np.float32)})
    return ctx.faster("Relu [2]", lambda: pair, **options), ctx


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [([0.5], 0.5), ([1.005], 1.0), ([1.5, 1.4], 1.4), ([1.5, 1.0], 1.0), ([1.5, 0.9], 0.9)],
)
def test_slower_must_be_seen_twice(ratios, expected):
    clock = Clock(*ratios)
    assert asked(clock, None)[0] == expected
    assert clock.calls == len(ratios)


def test_an_answer_is_a_fact_and_a_fact_is_an_answer():
    _, ctx = asked(Clock(0.5), None)
    assert ctx.facts == {"faster": {"Relu [2]": 0.5}}
    assert asked(None, None, ctx.facts)[0] == 0.5


def test_without_a_timer_there_is_no_answer_and_no_fact(tmp_path):
    ratio, ctx = asked(None, Cache(tmp_path))
    assert (ratio, ctx.facts) == (None, {})


def test_it_is_timed_once_on_a_machine_and_said(tmp_path):
    assert not asked(Clock(0.5), Cache(tmp_path))[1].notes
    ratio, ctx = asked(Clock(), Cache(tmp_path))
    assert (ratio, ctx.facts) == (0.5, {"faster": {"Relu [2]": 0.5}})
    assert str(tmp_path) in ctx.notes[0]


def test_what_depends_on_more_than_its_name_is_not_kept(tmp_path):
    asked(Clock(0.5), Cache(tmp_path), remembered=False)
    assert list(tmp_path.iterdir()) == []


def test_off_writes_nothing():
    assert open_cache("off") is None
    asked(Clock(0.5), open_cache("off"))
    assert not default_folder().exists()
    asked(Clock(0.5), open_cache())
    assert default_folder().exists()


def test_whoever_knows_better_edits_the_file(tmp_path):
    asked(Clock(0.5), Cache(tmp_path))
    (path,) = (tmp_path / "timings").iterdir()
    entry = json.loads(path.read_text())
    assert (entry["what"], entry["graphopt"]) == ("Relu [2]", graphopt.__version__)
    path.write_text(json.dumps({**entry, "ratio": 2.0}))
    assert asked(Clock(), Cache(tmp_path))[0] == 2.0


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"ratio": 0.1}', "\udcff"])
def test_a_broken_file_is_measured_again(tmp_path, text):
    asked(Clock(0.5), Cache(tmp_path))
    (path,) = (tmp_path / "timings").iterdir()
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert asked(Clock(0.7), Cache(tmp_path))[0] == 0.7
    assert json.loads(path.read_text())["ratio"] == 0.7


@pytest.mark.parametrize("what", ["graphopt", "runtime", "processor", "isa", "threads"])
def test_another_version_is_not_read(tmp_path, monkeypatch, what):
    target = TARGET
    Cache(tmp_path).keep_timing(target, "MatMul", 2.0)
    if what == "graphopt":
        monkeypatch.setattr(module, "__version__", "9")
    elif what == "runtime":
        monkeypatch.setattr(module, "_runtimes", lambda: "onnxruntime 9")
    elif what == "processor":
        monkeypatch.setattr(module, "processor", lambda: "another")
    else:
        changed = {"isa": ("another",), "threads": target.threads + 1}[what]
        target = dataclasses.replace(target, **{what: changed})
    assert Cache(tmp_path).timing(target, "MatMul") is None
    Cache(tmp_path).keep_timing(target, "MatMul", 3.0)
    monkeypatch.undo()
    assert Cache(tmp_path).timing(TARGET, "MatMul") == 2.0


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert asked(Clock(0.5), Cache(tmp_path / "file"))[0] == 0.5


WORK = """
import sys
from pathlib import Path
from graphopt.backend import find_target
from graphopt.cache import Cache

target, cache = find_target("cpu"), Cache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for k in range(40):
    cache.keep_timing(target, f"{sys.argv[2]} {k}", k / 8)
    cache.keep_timing(target, "both", 0.5)
    assert cache.timing(target, "both") == 0.5
"""


def test_two_processes_lose_nothing_of_each_other(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", WORK, str(tmp_path)]
    workers = [subprocess.Popen([*command, own], **pipes) for own in "ab"]
    assert [w.stdout.readline() for w in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=600)
    assert [w.returncode for w in workers] == [0, 0]
    cache = Cache(tmp_path)
    found = {f"{o} {k}": cache.timing(TARGET, f"{o} {k}") for o in "ab" for k in range(40)}
    assert found == {f"{o} {k}": k / 8 for o in "ab" for k in range(40)}
    assert all(p.suffix == ".json" for p in (tmp_path / "timings").iterdir())
