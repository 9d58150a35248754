"""`graphopt search` on the command line: exit codes, files, what is refused."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("optuna")
QUICK = (
    "model.onnx", "--samples", "calib.npz", "-p", "prune", "--minimize", "size", "--trials", "2",
    "--measure-seconds", "0.1",
)  # fmt: skip
IMPOSSIBLE = ("--max-error", "0.01", "--max-size", "100B", "-o", "out.onnx")


def test_writes_the_model_the_front_and_the_report(folder, graphopt):
    code, out, _ = graphopt(
        "search", *QUICK, "--max-error", "0.5", "-o", "out.onnx", "--front", "front",
        "--report", "report.json",
    )  # fmt: skip
    assert code == 0
    assert "size saved" in out
    assert "wrote out.onnx" in out
    data = json.loads(Path("report.json").read_text())
    assert data["budget"]["met"] is True
    assert data["recipe"]["steps"]
    assert data["search"]["layers"][0]["option"].startswith("prune ")
    models = sorted(p.name for p in Path("front").glob("*.onnx"))
    assert len(models) == len(data["search"]["front"])
    assert Path("front/front.md").read_text().count("\n") == 2 + len(models)
    assert Path("front/front.svg").read_text().startswith("<svg")
    code, out, _ = graphopt("search", *QUICK, "--max-error", "0.5", "-o", "out.onnx", "--json")
    assert code == 0
    assert json.loads(out)["after"]["bytes"] == data["after"]["bytes"]


def test_the_figures_of_every_trial_go_where_they_are_wanted(folder, graphopt):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = ("search", *QUICK, "--max-error", "0.5", "-o", "out.onnx", "--json")
    code, out, _ = graphopt(*argv, "--track", "tensorboard:runs")
    assert code == 0
    read = EventAccumulator("runs")
    read.Reload()
    trials = json.loads(out)["search"]["trials"]
    losses = [s.value for s in read.Scalars("search/loss")]
    assert sorted(losses) == pytest.approx(sorted(t["loss"] for t in trials))
    assert [s.step for s in read.Scalars("search/size")] == list(range(1, len(trials) + 1))
    assert {s.step for s in read.Scalars("search/best_size")} <= set(range(1, len(trials) + 1))


def test_a_budget_that_is_missed_ends_with_4_and_writes_nothing(folder, graphopt):
    code, out, _ = graphopt("search", *QUICK, *IMPOSSIBLE)
    assert code == 4
    assert "no candidate keeps the limits: the nearest loses" in out
    assert not Path("out.onnx").exists()
    code, out, _ = graphopt("search", *QUICK, *IMPOSSIBLE, "--keep-best")
    assert code == 4
    assert Path("out.onnx").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--time", "soon"), "--time 'soon': write for example 90s, 30m or 2h"),
        (("--max-drop", "1"), "say how it is computed with --eval"),
        (("--trials", "0"), "numbers from 1 on"),
        (("-o", "model.onnx"), "model.onnx is the input"),
        (("--minimize", "latency", "--target", "onnx"), "cannot be measured here"),
        (("--front", "calib.npz"), "--front calib.npz is not a folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(folder, graphopt, options, said):
    code, _, err = graphopt("search", *QUICK, *options)
    assert code == 2
    assert re.search(re.escape(said), err)
