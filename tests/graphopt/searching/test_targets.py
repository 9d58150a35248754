"""One search over several targets: a result and a front for each, from the same candidates."""

import json
import re
from pathlib import Path

import pytest

from graphopt import Budget, load, optimize, search
from graphopt.cli import main
from graphopt.errors import UsageError

#: ONNX Runtime under another name, which prefers units by 24.
BACKEND = """
import dataclasses
from graphopt.backends.cpu import BACKEND as CPU

class Own:
    name = "own"
    def targets(self): return ["own"]
    def target(self, name):
        return dataclasses.replace(CPU.target("cpu"), name=name, backend="own", channel_multiple=24)
    def lower(self, model, target, path): return CPU.lower(model, CPU.target("cpu"), path)
    session, measure, profile = CPU.session, CPU.measure, CPU.profile

OWN = Own()
"""
GIVEN = {"samples": "samples.npz", "passes": "prune", "trials": 4, "measure_seconds": 0.1}
BUDGET = Budget(max_error=0.2)


@pytest.fixture
def own(folder):
    Path("own.py").write_text(BACKEND)
    return "own.py:OWN"


def test_each_target_has_its_result_from_the_same_candidates(own):
    found = search(
        "model.onnx", budget=BUDGET, target=["cpu", own], minimize="macs", front=True, **GIVEN
    )
    (name,) = found.others
    assert name == "own"
    second = found.others[name]
    assert found.met
    assert [r["spec"] for r in second.report.trials] == [r["spec"] for r in found.report.trials]
    assert len(found.report.trials) <= 4
    for one, target in ((found, "cpu"), (second, "own")):
        assert one.result.report.target == target
        assert one.report.best["loss"] <= 0.2
        assert one.result.report.after.latency_ms > 0
        assert len(one.front) == len(one.report.front) > 0
        assert one.result.report.after.macs < one.result.report.before.macs
    specs = " ".join(r["spec"] for r in found.report.trials)
    shares = set(re.findall(r"', ([\d.]+)\)", specs))
    # 48 of 64 units, and 24 where this processor likes steps of 8
    assert "0.25" in shares <= {"0.25", "0.625"}
    again = optimize(
        load("model.onnx"), second.report.spec, samples="samples.npz", target=own,
        replay=second.result.recipe,
    )  # fmt: skip
    assert again.report.after.macs == second.result.report.after.macs


def test_the_command_writes_a_model_a_front_and_a_report_for_each(own, capsys):
    argv = (
        "search model.onnx --samples samples.npz -p prune --trials 2 "
        f"--max-error 0.3 --targets cpu,{own} --measure-seconds 0.1 -o small.onnx "
        "--front front --report report.json"
    )
    with pytest.raises(SystemExit) as ended:
        main(argv.split())
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "target cpu\n" in said
    assert "target own\n" in said
    for name in ("cpu", "own"):
        load(f"small.{name}.onnx")
        assert Path("front", name, "front.md").exists()
        assert f"wrote small.{name}.onnx" in said
    assert not Path("small.onnx").exists()
    data = json.loads(Path("report.json").read_text())
    assert data["target"] == "cpu"
    assert data["others"]["own"]["target"] == "own"
    assert data["others"]["own"]["search"]["front"]


def test_a_target_that_is_not_here_is_refused_for_latency(own):
    with pytest.raises(UsageError, match="latency on onnx cannot be measured here"):
        search("model.onnx", budget=BUDGET, target=["cpu", "onnx"], **GIVEN)
