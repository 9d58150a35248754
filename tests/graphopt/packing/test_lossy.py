"""Lossy packs: within the budget, as decoded; the same every time; refused where nothing fits."""

import json

import numpy as np
import pytest

import graphopt
from graphopt.cli import main
from graphopt.cli.demo import DATA, digits
from graphopt.packing import judging, layers, lossy, recovery

pytest.importorskip("constriction")
pytest.importorskip("torch")

FUNCTIONS = """
from graphopt.cli.demo import digits

def calibration():
    yield {"image": digits()["calibration"]}

def accuracy(predict):
    held = digits()
    answers = predict({"image": held["images"]})["logits"].argmax(1)
    return 100 * float((answers == held["labels"]).mean())
"""


def run(argv):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    return ended.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("lossy")
    (made / "f.py").write_text(FUNCTIONS)
    return made


def pack(folder, name, *limits):
    file = folder / "f.py"
    argv = ["pack", str(DATA / "digits.onnx"), "--samples", f"{file}:calibration"]
    return run([*argv, *limits, "-o", str(folder / name), "--json"])


@pytest.fixture(scope="module")
def packed(folder):
    capture = pytest.MonkeyPatch()
    assert pack(folder, "d.gopt", "--eval", f"{folder}/f.py:accuracy", "--max-drop", "0.5") == 0
    capture.undo()
    return folder / "d.gopt"


def test_it_is_small_and_as_accurate_as_asked_when_decoded(packed):
    held = digits()
    assert packed.stat().st_size < (DATA / "digits.onnx").stat().st_size / 15
    answers = graphopt.session(packed)({"image": held["images"]})["logits"].argmax(1)
    source = graphopt.session(DATA / "digits.onnx")({"image": held["images"]})["logits"].argmax(1)
    accuracy, before = ((a == held["labels"]).mean() for a in (answers, source))
    assert before - accuracy <= 0.005 + 1e-9


def test_the_same_bytes_again_and_a_report_of_every_tensor(folder, packed, capsys):
    limits = ["--eval", f"{folder}/f.py:accuracy", "--max-drop", "0.5"]
    assert pack(folder, "again.gopt", *limits) == 0
    assert (folder / "again.gopt").read_bytes() == packed.read_bytes()
    said = json.loads(capsys.readouterr().out)
    assert said["after"] == packed.stat().st_size
    assert sum(t["after"] for t in said["tensors"]) + said["graph"] == said["after"]
    assert said["metric"][0] - said["metric"][1] <= 0.5
    within = {metric for *_, metric, why in said["trials"] if not why}
    assert said["metric"][1] in within
    assert all(said["metric"][0] - metric <= 0.5 for metric in within)
    large = [t for t in said["tensors"] if t["before"] > 20_000]
    assert large
    weights = [t["before"] / 32 for t in large]
    assert np.dot(weights, [t["bits"] for t in large]) < np.dot(
        weights, [t["entropy"] for t in large]
    )


def test_without_limits_few_decisions_change(folder):
    assert pack(folder, "guarded.gopt") == 0
    held = digits()["calibration"]
    one, two = (
        graphopt.session(p)({"image": held})["logits"].argmax(1)
        for p in (folder / "guarded.gopt", DATA / "digits.onnx")
    )
    assert (one != two).mean() <= 0.02


@pytest.mark.parametrize(("runs", "shared"), [(8, 0), (3, 3)])
def test_without_a_metric_what_was_rounded_for_does_not_judge(runs, shared, tmp_path, monkeypatch):
    seen = {}

    def layers_of(model, samples, *given):
        seen["learned"] = [f["image"].tobytes() for f in samples]
        return layers.layers_of(model, samples, *given)

    def judged(setting, *given, **options):
        seen["judged"] = [f["image"].tobytes() for f in setting.judge.probe]
        return judging.judged(setting, *given, **options)

    monkeypatch.setattr(lossy, "layers_of", layers_of)
    monkeypatch.setattr(lossy, "judged", judged)
    samples = np.split(digits()["calibration"][: 20 * runs], runs)
    lossy.pack_rounded(
        graphopt.load(DATA / "digits.onnx"),
        tmp_path / "d.gopt",
        samples=graphopt.Samples([{"image": x} for x in samples]),
        budget=graphopt.Budget(max_error=0.3),
        before=1,
    )
    learned, probe = set(seen["learned"]), set(seen["judged"])
    assert len(learned & probe) == shared
    assert len(learned | probe) == runs


def test_a_budget_that_nothing_meets_writes_nothing(folder, capsys):
    assert pack(folder, "none.gopt", "--max-error", "1e-9") == 4
    assert "no rounding is within the budget" in capsys.readouterr().err
    assert not (folder / "none.gopt").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "say --lossless"),
        (["--lossless", "--max-drop", "1"], "neither samples, passes nor limits"),
    ],
)
def test_what_is_asked_for_must_be_said(argv, said, capsys):
    assert run(["pack", str(DATA / "digits.onnx"), *argv]) == 2
    assert said in capsys.readouterr().err


def test_float_weights_are_near_their_steps(packed):
    model, source = graphopt.load(packed), graphopt.load(DATA / "digits.onnx")
    name = "4.body.3.weight"
    a, b = (m.graph.initializers[name].const_value.numpy() for m in (model, source))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.7


def test_what_no_runtime_reads_is_not_packed(folder):
    model = graphopt.load(DATA / "digits.onnx")
    noted = (model.graph, *model.graph.initializers.values(), *model.graph)
    for one in noted:
        one.metadata_props["exporter"] = "what it said of this"
    graphopt.save(model, folder / "noted.onnx")
    argv = ["pack", str(folder / "noted.onnx"), "--samples", f"{folder}/f.py:calibration"]
    assert run([*argv, "--max-error", "0.5", "-o", str(folder / "noted.gopt")]) == 0
    made = graphopt.load(folder / "noted.gopt")
    noted = (made.graph, *made.graph.initializers.values(), *made.graph)
    assert not any(one.metadata_props for one in noted)


def test_recovery_makes_it_smaller_than_rounding_alone(folder, packed, capsys, monkeypatch):
    """Pruned as far as the budget allows, and trained in every trial, without a label."""
    monkeypatch.setattr(recovery, "UPDATES", recovery.UPDATES // 4)  # a tenth is gained even so
    limits = ["--eval", f"{folder}/f.py:accuracy", "--max-drop", "0.5", "--recover"]
    assert pack(folder, "recovered.gopt", *limits) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["passes"].startswith("prune(ratio=")
    assert (folder / "recovered.gopt").stat().st_size < 0.9 * packed.stat().st_size
    assert said["metric"][0] - said["metric"][1] <= 0.5


def test_passes_come_before_rounding(folder, capsys):
    limits = ["--eval", f"{folder}/f.py:accuracy", "--max-drop", "2", "-p", "prune(ratio=0.4)"]
    assert pack(folder, "pruned.gopt", *limits) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["passes"] == "prune(ratio=0.4)"
    source = graphopt.load(DATA / "digits.onnx")
    sizes = {v.name: v.const_value.size for v in source.graph.initializers.values()}
    assert sum(t["before"] for t in said["tensors"]) < 0.8 * 4 * sum(sizes.values())
