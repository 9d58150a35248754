"""prepare, run, write: three steps, each doing its work once."""

import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import Budget, Limit, load, optimize, save
from graphopt.cli import main
from graphopt.errors import BudgetMissed, UsageError
from graphopt.io import skeleton
from graphopt.pipeline.candidate import Candidate
from graphopt.pipeline.prepare import prepare
from graphopt.pipeline.run import run
from graphopt.testing import parse_model

SPEC = "clean, fold, fuse"


def net():
    """Something for each exact pass: an Identity, a constant sum, a product with its bias."""
    rng = np.random.default_rng(0)
    return parse_model(
        "c = Add(one, one)  i = Identity(x)  m = MatMul(i, w)  a = Add(m, b)  y = Mul(a, c)",
        inputs={"x": ("batch", 16)},
        constants={
            "one": np.ones(16, np.float32),
            "w": rng.normal(size=(16, 16)).astype(np.float32),
            "b": rng.normal(size=16).astype(np.float32),
        },
    )


@pytest.fixture
def path(tmp_path):
    save(net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def serialized(monkeypatch):
    """How many times a model was turned into protobuf."""
    calls = []
    original = ir.to_proto
    monkeypatch.setattr(
        skeleton.ir, "to_proto", lambda model: calls.append(type(model)) or original(model)
    )
    return calls


def test_one_setting_serves_many_runs(path):
    setting = prepare(path, measure=False)
    ran = len(setting.judge.source)
    both = [run(setting, SPEC), run(setting, "fuse"), run(setting, SPEC)]
    alone = optimize(path, SPEC, measure=False)
    assert both[0].recipe == both[2].recipe == alone.recipe
    assert both[1].recipe != alone.recipe
    assert len(setting.judge.source) == ran
    assert setting.source.model.graph.num_nodes() == 5


def test_a_state_is_serialized_once(path, serialized, tmp_path):
    result = optimize(path, SPEC, measure=False)
    kept = sum(step.status == "kept" for step in result.report.steps)
    assert kept >= 2
    assert serialized.count(ir.Model) <= 1 + kept + 1  # the source, each state; once trimmed
    before = len(serialized)
    result.write(tmp_path / "out.onnx")
    assert len(serialized) == before + 1


def test_steps_that_claim_no_speed_are_not_timed(path, monkeypatch):
    timed = []
    monkeypatch.setattr("graphopt.measuring.gauge.Gauge.ratio", lambda self, *a: timed.append(a))
    optimize(path, "clean, fold")
    assert len(timed) == 1  # the result beside the source
    timed.clear()
    optimize(path, "clean, fuse")
    assert len(timed) == 2
    timed.clear()
    optimize(parse_model("y = Relu(x)", inputs={"x": (2, 2)}), SPEC)
    assert timed == []  # nothing changed


def test_python_and_the_command_line_write_the_same_files(path, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    written = optimize(path, SPEC, measure=False).write(one / "m.onnx")
    with pytest.raises(SystemExit) as ended:
        main(["optimize", str(path), "-p", SPEC, "--no-measure", "-o", str(other / "m.onnx")])
    assert not ended.value.code
    names = sorted(f.name for f in other.iterdir())
    assert names == sorted(f.name for f in written.files) == ["m.onnx", "m.session.json"]
    assert all((one / n).read_bytes() == (other / n).read_bytes() for n in names)
    assert written.report.after.bytes == (one / "m.onnx").stat().st_size


def test_predicted_bytes_are_those_that_are_written(path, tmp_path):
    result = optimize(path, SPEC, measure=False)
    assert result.report.after.bytes == result.write(tmp_path / "o.onnx").report.after.bytes


def test_a_result_that_misses_its_budget_is_not_written_unless_asked(path, tmp_path):
    result = optimize(path, "clean", measure=False, budget=Budget(max_size=Limit(10)))
    with pytest.raises(BudgetMissed, match=r"^size [\d,]+ bytes is over --max-size \(10\)$"):
        result.write(tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()
    assert result.write(tmp_path / "o.onnx", closest=True).files[0].is_file()


USER = """
import numpy as np

def samples():
    rng = np.random.default_rng(1)
    for _ in range(4):
        yield {"x": rng.normal(size=(1, 16)).astype(np.float32)}

def score(predict):
    return -float(abs(predict({"x": np.ones((1, 16), np.float32)})["y"]).sum())
"""


def test_a_candidate_runs_in_another_process(path):
    user = path.with_name("user.py")
    user.write_text(USER)
    named = {"samples": f"{user}:samples", "evaluate": f"{user}:score"}
    candidate = Candidate(str(path), SPEC, **named, shapes=(("x", "1x16"),))
    assert pickle.loads(pickle.dumps(candidate)) == candidate
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(Candidate.report, candidate).result()
    here = candidate.report()
    assert json.loads(json.dumps(there))["steps"][0]["spec"] == "clean"
    seconds = [[step.pop("seconds") for step in r["steps"]] for r in (there, here)]
    assert len(seconds[0]) == 3
    assert there == here
    assert there["before"]["metric"] < 0
    assert not there["unvalidated"]


def test_an_evaluation_by_name_survives_pickling(path):
    user = path.with_name("user.py")
    user.write_text(USER)
    budget = pickle.loads(pickle.dumps(Budget(max_drop=0.1, evaluate=f"{user}:score")))
    assert budget.evaluation(lambda feeds: {"y": feeds["x"]}) == -16
    with pytest.raises(UsageError, match=r"FILE\.py:function"):
        Budget(evaluate="score").evaluation  # noqa: B018
    with pytest.raises(UsageError, match="did you mean 'score'"):
        Budget(evaluate=f"{user}:scor").evaluation  # noqa: B018


def test_the_source_is_not_changed(path):
    model = load(path)
    before = [(n.name, n.op_type) for n in model.graph]
    result = optimize(model, SPEC, measure=False)
    assert [(n.name, n.op_type) for n in model.graph] == before
    assert result.model is not model
    unchanged = optimize(parse_model("y = Relu(x)", inputs={"x": (2, 2)}), "fuse", measure=False)
    assert "graphopt.recipe" in unchanged.model.metadata_props
