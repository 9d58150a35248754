import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

SCORE = """
import numpy as np
X = np.load("calib.npz")["x"]

def score(predict):
    return float(predict({"x": X})["y"].sum())

def broken(predict):
    raise KeyError("oh")
"""


def optimize(graphopt, *more, passes="fuse", measure=False):
    timing = () if measure else ("--no-measure",)
    return graphopt(
        "optimize", "model.onnx", "-p", passes, "--samples", "calib.npz", *timing, *more
    )


def test_writes_the_model_its_manifest_the_report_and_nothing_else(folder, graphopt):
    before = Path("model.onnx").read_bytes()
    code, out, _ = optimize(graphopt, "-o", "o.onnx", "--report", "r.json")
    assert code == 0
    assert "wrote o.onnx" in out
    assert sorted(p.name for p in folder.iterdir()) == [
        "calib.npz",
        "model.onnx",
        "o.onnx",
        "o.session.json",
        "r.json",
    ]
    assert Path("model.onnx").read_bytes() == before
    ort.InferenceSession("o.onnx")


def test_the_report_is_what_an_independent_count_finds(folder, graphopt):
    Path("score.py").write_text(SCORE)
    args = ("-o", "o.onnx", "--report", "r.json", "--json", "--eval", "score.py:score")
    code, out, _ = optimize(graphopt, *args, passes="fuse,int8")
    assert code == 0
    report = json.loads(Path("r.json").read_text())
    assert json.loads(out) == report
    for key, path in (("before", "model.onnx"), ("after", "o.onnx")):
        proto = onnx.load(path)
        x = np.load("calib.npz")["x"]
        y = ort.InferenceSession(path).run(None, {"x": x})[0]
        figures = report[key]
        assert figures["bytes"] == Path(path).stat().st_size
        assert figures["nodes"] == len(proto.graph.node)
        params = sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
        assert figures["params"] == params
        assert figures["metric"] == pytest.approx(float(y.sum()), rel=1e-5)
    assert report["before"]["macs"] == 16 * 32 + 32 * 4
    assert report["input"] == "model.onnx"
    assert report["output"] == "o.onnx"
    assert report["unvalidated"] is False
    assert {s["status"] for s in report["steps"]} <= {"kept", "unchanged", "undone", "refused"}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    batches = np.split(x, 2)
    y, z = (
        np.concatenate([ort.InferenceSession(p, options).run(None, {"x": b})[0] for b in batches])
        for p in ("model.onnx", "o.onnx")
    )
    # ranges that the runtime finds on the fly depend on the batch: compare on the same ones
    last = [s for s in report["steps"] if s["status"] == "kept"][-1]
    error = last["error_vs_source"]["y"]["rel_l2"]
    assert error == pytest.approx(np.linalg.norm(y - z) / np.linalg.norm(y), rel=1e-3)


def test_two_runs_without_timing_give_the_same_bytes(folder, graphopt):
    for name in ("a.onnx", "b.onnx"):
        assert optimize(graphopt, "-o", name, passes="fuse,int8")[0] == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_a_replay_of_a_measured_run_gives_the_same_bytes(folder, graphopt):
    quick = ("--measure-seconds", "0.1")
    args = ("-o", "a.onnx", "--report", "r.json", *quick)
    assert optimize(graphopt, *args, passes="fuse,int8", measure=True)[0] == 0
    assert json.loads(Path("r.json").read_text())["before"]["latency_ms"] > 0
    for recipe, name in (("a.onnx", "b.onnx"), ("r.json", "c.onnx")):
        code, _, err = graphopt(
            "optimize", "model.onnx", "--samples", "calib.npz", "--replay", recipe, "-o", name
        )
        assert code == 0, err
        assert Path(name).read_bytes() == Path("a.onnx").read_bytes()


def test_one_file_whatever_the_source_had_and_the_same_bytes_by_any_name(folder, graphopt):
    proto = onnx.load("model.onnx")
    location = {"location": "model.bin", "size_threshold": 0}
    onnx.save(proto, "model.onnx", save_as_external_data=True, **location)
    before = {p.name for p in folder.iterdir()}
    code, out, err = optimize(graphopt, "-o", "a.onnx", passes="fuse,int8")
    assert code == 0, err
    assert {p.name for p in folder.iterdir()} - before == {"a.onnx", "a.session.json"}
    assert "wrote a.onnx, a.session.json" in out
    assert optimize(graphopt, "-o", "other.onnx", "--replay", "a.onnx", passes="fuse,int8")[0] == 0
    assert Path("other.onnx").read_bytes() == Path("a.onnx").read_bytes()


def test_external_data_on_request(folder, graphopt):
    args = ("-o", "a.onnx", "--external-data", "--report", "r.json")
    code, out, err = optimize(graphopt, *args)
    assert code == 0, err
    assert "wrote a.onnx, a.onnx.data, a.session.json" in out
    sizes = [Path(n).stat().st_size for n in ("a.onnx", "a.onnx.data")]
    assert json.loads(Path("r.json").read_text())["after"]["bytes"] == sum(sizes)
    assert sizes[1] == 4 * 16 * 32  # w1; what is small stays inside
    code, _, err = optimize(graphopt, "-o", "a.pt2", "--external-data")
    assert code == 2
    assert "--external-data is for .onnx files" in err


def test_a_replay_on_another_model_is_refused(folder, graphopt):
    assert optimize(graphopt, "-o", "a.onnx")[0] == 0
    proto = onnx.load("model.onnx")
    proto.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(np.zeros(32, np.float32), "b1")
    )
    onnx.save(proto, "model.onnx")
    code, _, err = optimize(graphopt, "--replay", "a.onnx", "-o", "b.onnx")
    assert code == 3
    assert "made with another source" in err
    assert not Path("b.onnx").exists()


def test_a_missed_budget_exits_with_4_and_still_reports(folder, graphopt):
    code, out, _ = optimize(graphopt, "-o", "o.onnx", "--max-size", "10B", "--report", "r.json")
    assert code == 4
    assert "over --max-size" in out
    assert not Path("o.onnx").exists()
    report = json.loads(Path("r.json").read_text())
    assert report["budget"] == {
        "limits": {
            "max_error": None,
            "max_disagreement": None,
            "max_drop": None,
            "max_size": "10",
            "max_latency": None,
            "require_verdict": False,
        },
        "met": False,
    }
    assert report["output"] is None
    code, _, _ = optimize(graphopt, "-o", "o.onnx", "--max-size", "10B", "--keep-best")
    assert code == 4
    assert Path("o.onnx").exists()


def test_a_lossy_step_over_budget_is_undone(folder, graphopt):
    args = ("-o", "o.onnx", "--json", "--max-error", "1e-9")
    code, out, _ = optimize(graphopt, *args, passes="prune(ratio=0.5),fuse")
    report = json.loads(out)
    assert report["steps"][0]["status"] == "undone"
    assert "over --max-error" in report["steps"][0]["reason"]
    assert code in (0, 4)


def test_strip_leaves_no_trace(folder, graphopt):
    assert optimize(graphopt, "-o", "o.onnx", "--strip")[0] == 0
    assert b"graphopt" not in Path("o.onnx").read_bytes()


def test_default_output_lies_beside_the_model_and_replaces_only_our_own(folder, graphopt):
    for _ in range(2):
        assert optimize(graphopt)[0] == 0
    Path("model.opt.onnx").write_bytes(Path("model.onnx").read_bytes())
    code, _, err = optimize(graphopt)
    assert code == 2
    assert "is not graphopt's" in err


def test_the_input_is_never_the_output(folder, graphopt):
    Path("link.onnx").symlink_to("model.onnx")
    for name in ("model.onnx", "./model.onnx", "link.onnx"):
        code, _, err = optimize(graphopt, "-o", name)
        assert code == 2
        assert "is the input" in err


def test_the_fastest_target_here_is_chosen_and_said_to_be(folder, graphopt):
    quick = ("--measure-seconds", "0.2", "--target", "auto", "-o", "o.onnx", "--json")
    code, out, _ = optimize(graphopt, *quick, measure=True)
    report = json.loads(out)
    assert code == 0
    chosen = [n for n in report["notes"] if n.startswith(f"target {report['target']}")]
    assert any("was chosen" in note for note in chosen)
    assert any("on cpu the outputs are" in note for note in report["notes"])
    code, _, err = optimize(graphopt, "--target", "auto", "-o", "x.onnx")
    assert code == 2
    assert "chooses by measuring" in err


def test_a_configuration_file_holds_the_same_options(folder, graphopt):
    Path("graphopt.toml").write_text(
        'passes = "fuse"\nsamples = "calib.npz"\nmeasure = false\noutput = "t.onnx"\n'
        "[shape]\nx = [3, 16]\n"
    )
    assert graphopt("optimize", "model.onnx")[0] == 0
    assert Path("t.onnx").exists()
    assert graphopt("optimize", "model.onnx", "-o", "cli.onnx")[0] == 0
    assert Path("cli.onnx").exists()
    Path("graphopt.toml").write_text("pases = 1")
    code, _, err = graphopt("optimize", "model.onnx", "-p", "fuse")
    assert code == 2
    assert "did you mean 'passes'?" in err


def test_a_configuration_beside_the_model_is_not_read(folder, graphopt, monkeypatch):
    Path("graphopt.toml").write_text("nonsense = 1")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    args = ("optimize", "../model.onnx", "-p", "fuse", "--no-measure", "-o", "o.onnx")
    assert graphopt(*args)[0] == 0


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["optimize"], 2, "Missing argument 'MODEL'"),
        (["optimize", "model.onnx"], 2, "no passes given"),
        (["optimize", "model.onnx", "-p", "fuze"], 2, "did you mean 'fuse'?"),
        (["optimize", "model.onnx", "-p", "fuse", "--target", "cpuu"], 2, "did you mean 'cpu'?"),
        (["optimize", "model.onnx", "-p", "fuse", "--shape", "x=axb"], 2, "write NAME=1x3x224x224"),
        (["optimize", "model.onnx", "-p", "fuse", "--max-drop", "1"], 2, "--eval"),
        (["optimize", "model.onnx", "-p", "fuse", "--max-size", "ten"], 2, "10MB or 0.3x"),
        (["optimize", "model.onnx", "-p", "fuse", "--eval", "none.py:f"], 2, "no such file"),
        (["optimize", "model.onnx", "-p", "fuse", "-o", "no/such/o.onnx"], 2, "is no folder"),
        (["optimize", "none.onnx", "-p", "fuse"], 3, "none.onnx"),
        (["optimize", "model.onnx", "-p", "fuse", "--samples", "none.npz"], 3, "none.npz"),
        (["optimize", "model.onnx", "-p", "fuse", "--replay", "model.onnx"], 3, "holds no recipe"),
        (["optimise", "model.onnx"], 2, "Did you mean 'optimize'?"),
        (["inspect", "none.onnx"], 3, "none.onnx"),
        (["show", "model.onnx"], 3, "holds no recipe"),
    ],
)
def test_a_users_mistake_is_one_line_with_the_next_step(folder, graphopt, argv, code, says):
    got, out, err = graphopt(*argv)
    assert (got, says in err, err.count("\n")) == (code, True, 1), err
    assert out == ""
    assert sorted(p.name for p in folder.iterdir()) == ["calib.npz", "model.onnx"]


def test_an_evaluation_that_raises_is_named(folder, graphopt):
    Path("score.py").write_text(SCORE)
    code, _, err = optimize(graphopt, "--eval", "score.py:broken", "-o", "o.onnx")
    assert code == 1
    assert "the evaluation function raised KeyError: 'oh' (score.py:9)" in err
    assert not Path("o.onnx").exists()


def test_a_pass_that_raises_is_named_and_writes_nothing(folder, graphopt):
    Path("bad.py").write_text(
        "from dataclasses import dataclass\nfrom graphopt import Pass\n"
        "@dataclass(frozen=True)\nclass Bad(Pass):\n    def run(self, model, ctx):\n        1 / 0\n"
    )
    code, _, err = optimize(graphopt, "-o", "o.onnx", passes="./bad.py:Bad")
    assert code == 1
    assert "pass bad.py:Bad raised ZeroDivisionError: division by zero (bad.py:6)" in err
    assert err.count("\n") == 1
    assert not Path("o.onnx").exists()


def test_samples_that_raise_name_their_line(folder, graphopt):
    Path("feed.py").write_text(
        "import json\ndef inner():\n    return json.loads('{')\ndef feed():\n    yield inner()\n"
    )
    code, _, err = graphopt(
        "optimize", "model.onnx", "-p", "fuse", "--samples", "feed.py:feed", "-o", "o.onnx"
    )
    assert code == 3
    assert "samples feed.py:feed: JSONDecodeError: " in err
    assert "(feed.py:3)" in err


def test_code_that_cannot_be_loaded_names_its_line(folder, graphopt):
    Path("score.py").write_text("import json\n\njson.loads(3)\n")
    code, _, err = optimize(graphopt, "--eval", "score.py:score", "-o", "o.onnx")
    assert code == 2
    assert "score.py cannot be loaded: TypeError: " in err
    assert "(score.py:3)" in err


def test_an_interrupt_exits_with_130(folder, graphopt):
    Path("slow.py").write_text(
        "from dataclasses import dataclass\nfrom graphopt import Pass\n"
        "@dataclass(frozen=True)\nclass Slow(Pass):\n"
        "    def run(self, model, ctx):\n        raise KeyboardInterrupt\n"
    )
    code, _, err = optimize(graphopt, "-o", "o.onnx", passes="./slow.py:Slow")
    assert code == 130
    assert "interrupted" in err
    assert not Path("o.onnx").exists()


def test_the_report_holds_the_command_that_was_typed(folder, graphopt):
    assert optimize(graphopt, "-o", "o.onnx", "--json", passes="fuse, clean")[0] == 0
    code, out, _ = optimize(graphopt, "-o", "o.onnx", "--json", passes="fuse, clean")
    assert code == 0
    assert json.loads(out)["command"] == (
        "graphopt optimize model.onnx -p 'fuse, clean' --samples calib.npz --no-measure "
        "-o o.onnx --json"
    )


@pytest.mark.parametrize("option", [("--max-latency", "5ms"), ("--require-verdict",)])
def test_a_limit_on_time_without_timing_is_a_wrong_request(folder, graphopt, option):
    code, _, err = optimize(graphopt, "-o", "o.onnx", *option)
    assert code == 2
    assert f"{option[0]} is judged by timing" in err
    assert not Path("o.onnx").exists()
