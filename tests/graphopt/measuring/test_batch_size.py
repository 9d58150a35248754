"""Batch size of trees: the fewest rows of a run that give the most rows a second."""

import dataclasses
import time
from contextlib import contextmanager

import numpy as np
import pytest

from graphopt import optimize, tune
from graphopt.deploy.manifest import read_manifest
from graphopt.formats import load
from graphopt.measuring import batch_size
from graphopt.measuring import session_options as tuning
from graphopt.measuring.batch_size import best_batch, reads_rows
from graphopt.measuring.worker import serve
from graphopt.pipeline import result as results


def pretend(monkeypatch, milliseconds, noise=0.005):
    """`milliseconds(rows)` stands for the clock; returns what opens a model of so many rows."""

    class Opened:
        def __init__(self, rows):
            self.rows = rows

        def burst(self):
            return [milliseconds(self.rows)]

    @contextmanager
    def opened(rows):
        yield Opened(rows)

    def alternate(models, seconds):
        rng = np.random.default_rng(0)
        times = np.array([milliseconds(m.rows) for m in [*models, models[0]]])
        return times * np.exp(rng.normal(0, noise, (30, len(times)))), []

    monkeypatch.setattr(batch_size, "alternate", alternate)
    return opened


@pytest.mark.parametrize(
    ("milliseconds", "rows"),
    [
        (lambda n: 0.01 + 0.001 * n, 4096),  # 2 %: 1024 rows still cost 1 % more each
        (lambda n: 0.001 * max(n, 64), 64),  # no more to be gained
        (lambda n: 0.010 * n if n < 256 else 0.006 * n, 256),  # a second thread
        (lambda n: 0.010 * n if n < 4096 else 0.020 * n, None),  # each row the same
        (lambda n: 0.01 + 5.0 * n, None),  # a row alone is most of a run
    ],
)
def test_the_fewest_rows_that_give_the_most_are_found(milliseconds, rows, monkeypatch):
    found = best_batch(pretend(monkeypatch, milliseconds), 1.0)
    assert (found and found[0]) in ((1024, 4096) if rows == 4096 else (rows,))
    if found is not None:
        _, timing = found
        assert timing.a_ms == pytest.approx(milliseconds(1), rel=0.02)
        assert timing.b_ms == pytest.approx(milliseconds(found[0]) / found[0], rel=0.02)


def test_a_noisy_machine_says_nothing(monkeypatch):
    assert best_batch(pretend(monkeypatch, lambda n: 0.01 + 0.001 * n, noise=1.5), 1.0) is None


def test_runs_that_would_take_long_are_not_tried(monkeypatch):
    tried = []

    def milliseconds(rows):
        tried.append(rows)
        return 1.0 + rows

    best_batch(pretend(monkeypatch, milliseconds), 1.0)
    assert max(tried) == 64


@pytest.mark.parametrize(("rows", "many"), [("n", True), (3, False)])
def test_only_trees_with_a_free_number_of_rows_are_asked(rows, many, tmp_path, forest):
    assert reads_rows(load(forest(tmp_path / "m.onnx", rows))) is many


def test_rows_differ_from_run_to_run():
    seen = []
    runs = [{"x": np.full(1, k)} for k in range(3)]
    list(serve(lambda feeds: seen.append(feeds["x"][0]), runs, iter(["0", "0"])))
    assert seen == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_runs_that_take_long_are_few():
    slow = list(serve(lambda feeds: time.sleep(0.11), [{}], iter(["0.02"])))
    quick = list(serve(lambda feeds: None, [{}], iter(["0"])))
    assert len(slow[0]) == 1
    assert len(quick[0]) == 3


def test_the_manifest_and_the_report_say_how_many(tmp_path, monkeypatch, forest):
    opened = pretend(monkeypatch, lambda n: 0.001 * max(n, 64), noise=0.001)

    @contextmanager
    def served(path, target, file, manifest, rows=0):
        with opened(rows or 256) as made:
            yield made

    monkeypatch.setattr(tuning, "served", served)
    monkeypatch.setattr(tuning, "alternate", batch_size.alternate)
    path = forest(tmp_path / "m.onnx")
    tried = tune(path)
    assert [t.option for t in tried if t.kept] == ["rows=64"]
    assert read_manifest(path).rows == 64
    monkeypatch.setattr(results, "tune", lambda *_, **__: tried)
    monkeypatch.setattr(results, "processors", lambda: 2)
    made = optimize(path, "trees", target="cpu", measure=False)
    there = dataclasses.replace(made.target, measured=True)
    made = dataclasses.replace(made, target=there, tuned=(1.0, {}))
    notes = made.write(tmp_path / "out.onnx").report.notes
    (said,) = [n for n in notes if n.startswith("trees: ")]
    assert "rows a second, 64 at once on 2 threads (one by one 15," in said
    assert said.endswith("; out.session.json")
    assert not any("session options that help" in n for n in notes)
