"""A whole search of a small model: the result, its recipe, its study, what may go wrong."""

import json
import re
import tempfile

import numpy as np
import pytest

from graphopt import Budget, load, optimize, search
from graphopt.errors import PassError, UsageError
from graphopt.pipeline.recipe import read

pytest.importorskip("optuna")
QUICK = {"passes": "prune, int8", "trials": 3, "measure_seconds": 0.1, "samples": "samples.npz"}
MORE = {**QUICK, "trials": 8}
CUT = {**QUICK, "passes": "prune", "trials": 5}


def test_finds_a_smaller_model_within_the_budget_that_its_recipe_repeats(folder):
    budget = Budget(max_drop=2.0, evaluate="score.py:accuracy")
    seen = []
    found = search("model.onnx", budget=budget, minimize="size", watch=seen.append, **MORE)
    assert found.met
    report = found.result.report
    assert report.before.metric == 100.0
    assert report.after.metric >= 98.0
    assert report.after.bytes < 0.5 * report.before.bytes
    assert 1 <= len(found.report.trials) <= 8
    assert found.report.layers
    assert all(b.saved >= 0 for b in found.report.layers[:1])
    assert seen[-1].best is not None
    found.result.write("out.onnx")
    again = optimize(
        load("model.onnx"), found.report.spec, samples="samples.npz", replay=read("out.onnx")
    )
    again.write("again.onnx")
    assert (folder / "out.onnx").read_bytes() == (folder / "again.onnx").read_bytes()


def test_without_labels_the_outputs_judge(folder):
    found = search("model.onnx", budget=Budget(max_error=0.1), minimize="macs", **QUICK)
    assert found.met
    assert found.report.loss == "error"
    assert found.report.best["loss"] <= 0.1
    assert found.result.report.after.macs < found.result.report.before.macs


def test_a_limit_of_size_is_kept_while_something_else_is_minimized(folder):
    free = search("model.onnx", budget=Budget(max_error=0.3), minimize="macs", **QUICK)
    limit = int(0.8 * free.result.report.after.bytes)
    budget = Budget(max_error=0.5, max_size=f"{limit}B")
    found = search("model.onnx", budget=budget, minimize="macs", **MORE)
    assert found.met
    assert found.result.report.after.bytes <= limit
    assert found.report.best["loss"] <= 0.5
    found.result.write("out.onnx")
    assert (folder / "out.onnx").stat().st_size <= limit


def test_what_is_over_the_size_once_it_is_whole_gives_way(folder):
    first = search("model.onnx", budget=Budget(max_error=0.3), minimize="size", **CUT)
    tried = first.report.best["size"]
    assert tried < first.result.report.after.bytes, "the certificate is part of the file"
    budget = Budget(max_error=0.3, max_size=f"{tried}B")
    found = search("model.onnx", budget=budget, minimize="macs", **CUT)
    assert found.met == (found.result.report.after.bytes <= tried)
    assert found.met or found.result.missed


def test_latency_is_predicted_and_measured(folder):
    given = {**QUICK, "trials": 2, "passes": "prune"}
    found = search("model.onnx", budget=Budget(max_error=0.5), **given)
    assert found.report.minimize == "latency"
    assert all(0 < row["latency_ms"] < 1000 for row in found.report.trials)
    assert found.result.report.after.latency_ms > 0


def test_a_budget_that_nothing_keeps_gives_the_nearest_and_says_so(folder):
    budget = Budget(max_error=0.01, max_size="100B")
    found = search("model.onnx", budget=budget, minimize="size", **QUICK)
    assert not found.met
    assert any("no candidate keeps the limits" in note for note in found.report.notes)


def test_the_front_is_the_same_for_any_number_of_workers(folder, monkeypatch):
    fronts = []
    for workers in (1, 2):
        (temporary := folder / f"of {workers}").mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        monkeypatch.setattr(tempfile, "tempdir", None)
        found = search(
            "model.onnx", budget=Budget(max_error=0.2), minimize="size", workers=workers, **QUICK
        )
        fronts.append([(r["spec"], r["loss"], r["size"]) for r in found.report.front])
    assert fronts[0] == fronts[1]
    assert not list(temporary.iterdir())  # workers are killed: their files go too


def test_a_study_goes_on_and_evaluates_nothing_twice(folder):
    budget = Budget(max_error=0.2)
    first = search("model.onnx", budget=budget, minimize="size", study="st.journal", **QUICK)
    seen = []
    again = search(
        "model.onnx", budget=budget, minimize="size", study="st.journal", watch=seen.append, **QUICK
    )
    assert [r["spec"] for r in again.report.trials] == [r["spec"] for r in first.report.trials]
    assert seen == []  # there was nothing left to do
    specs = [r["spec"] for r in again.report.trials]
    assert len(set(specs)) == len(specs)


def test_a_study_of_another_question_is_refused(folder):
    search("model.onnx", budget=Budget(max_error=0.2), minimize="size", study="s", **QUICK)
    with pytest.raises(UsageError, match=r"another search \(other minimize\)"):
        search("model.onnx", budget=Budget(max_error=0.2), minimize="macs", study="s", **QUICK)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("constant", "never called predict"),
        ("random", "is not a function of the model: it returned"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_an_evaluation_that_is_no_function_of_the_model_is_refused(folder, name, said):
    with pytest.raises(UsageError, match=said):
        search("model.onnx", budget=Budget(max_drop=1.0, evaluate=f"score.py:{name}"), **QUICK)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nan", "the evaluation returned nan"),
        ("raises", "no such class"),
        ("hangs", "took longer than --trial-timeout"),
        ("kills", "its process ended .signal 9."),
    ],
)
def test_an_evaluation_that_fails_costs_its_trials(folder, name, said):
    budget = Budget(max_drop=50.0, evaluate=f"score.py:{name}")
    given = {**QUICK, "trials": 2, "minimize": "size", "passes": "prune", "trial_timeout": 600.0}
    if name == "hangs":
        given |= {"trials": 1, "trial_timeout": 3.0}
    try:
        notes = search("model.onnx", budget=budget, **given).report.notes
    except PassError as error:
        notes = (str(error),)
    assert any(re.search(said, note) for note in notes)


def test_functions_and_arrays_are_searched_in_this_process(folder):
    labels, x = np.load("labels.npy"), np.load("samples.npz")["x"]

    def accuracy(predict):
        return float((predict({"x": x})["y"].argmax(1) == labels).mean())

    given = {**QUICK, "samples": {"x": x}, "trials": 2, "minimize": "macs"}
    found = search(load("model.onnx"), budget=Budget(max_drop=0.05, evaluate=accuracy), **given)
    assert found.result.report.after.metric >= 0.95
    with pytest.raises(UsageError, match="several workers open"):
        search(load("model.onnx"), workers=2, **given)


def test_what_cannot_be_searched_is_told(folder):
    with pytest.raises(UsageError, match="leaves nothing to choose"):
        search("model.onnx", **{**QUICK, "passes": "clean, fuse"})
    with pytest.raises(UsageError, match="how far the metric may fall"):
        search("model.onnx", budget=Budget(evaluate="score.py:accuracy"), **QUICK)
    with pytest.raises(UsageError, match="cannot be measured here"):
        search("model.onnx", target="onnx", **QUICK)


def test_the_report_is_plain_data(folder):
    found = search("model.onnx", budget=Budget(max_error=0.3), minimize="size", front=True, **QUICK)
    data = json.loads(json.dumps(found.report.to_json()))
    assert data["schema"] == 1
    assert {"layer", "option", "saved", "loss"} == data["layers"][0].keys()
    assert len(found.front) == len(data["front"])


def test_ctrl_c_ends_with_the_best_so_far(folder):
    def watch(standing):
        if standing.trials:
            raise KeyboardInterrupt

    given = {**QUICK, "trials": 20, "minimize": "size"}
    found = search("model.onnx", budget=Budget(max_error=0.5), watch=watch, study="st", **given)
    assert found.report.interrupted
    assert found.met
    assert len(found.report.trials) < 20
