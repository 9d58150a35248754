"""What is said before and during a run: the plan, the log, completion, configuration."""

import json
import re
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from graphopt.cli import cli

ARGS = ("optimize", "model.onnx", "--samples", "calib.npz", "-o", "o.onnx", "--no-measure")


def test_a_dry_run_prints_the_plan_and_writes_nothing(folder, graphopt):
    before = sorted(folder.iterdir())
    more = ("-p", "fuse,int8", "--report", "r.json", "--max-size", "0.5x", "--dry-run")
    code, out, err = graphopt(*ARGS, *more)
    assert (code, err) == (0, "")
    assert sorted(folder.iterdir()) == before
    lines = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines()]
    assert ["samples", "calib.npz"] in lines
    assert ["--max-size", "0.5x"] in lines
    assert lines.index(["step", "fuse: outputs stay equal"]) + 1 == lines.index(
        ["step", "int8: outputs may change"]
    )
    assert ["writes", "o.onnx, o.session.json, r.json"] in lines
    code, out, _ = graphopt(*ARGS, *more, "--json")
    plan = json.loads(out)
    assert plan["model"] == {
        "path": "model.onnx", "bytes": Path("model.onnx").stat().st_size, "nodes": 4,
    }  # fmt: skip
    assert [s["spec"] for s in plan["steps"]] == ["fuse", "int8"]
    assert plan["limits"] == {"max_size": "0.5x"}


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("-p", "fusee"), 2, "no pass is called 'fusee'"),
        (("-p", "fuse", "--samples", "none.npz"), 3, "no such file"),
        (("-p", "fuse", "-o", "model.onnx"), 2, "is the input"),
        (("-p", "fuse", "-o", "no/where.onnx"), 2, "no folder"),
        (("-p", "fuse", "--max-latency", "5ms"), 2, "is judged by timing"),
        (("-p", "fuse", "--shape", "x=2x3"), 2, "the model takes float32[batch, 16]"),
    ],
)
def test_a_dry_run_finds_what_is_wrong(folder, graphopt, more, code, says):
    got, out, err = graphopt(*ARGS, *more, "--dry-run")
    assert (got, out) == (code, ""), err
    assert says in err


def test_the_log_tells_every_step_on_stderr(folder, graphopt):
    code, out, err = graphopt(*ARGS, "-p", "fuse,clean", "--json", "--log-level", "info")
    assert code == 0
    json.loads(out)
    told = [line.partition("INFO graphopt: ")[2] for line in err.splitlines()]
    first, second = (told.index(f"step {k} of 2, {p}") for k, p in ((1, "fuse"), (2, "clean")))
    assert first < second < told.index("measuring the result")
    assert graphopt(*ARGS, "-p", "fuse,clean")[2] == ""


@pytest.mark.parametrize(
    ("typed", "begun", "found"),
    [
        (["optimize", "-p"], "clean,f", {"clean,fold", "clean,fp16", "clean,fuse"}),
        (["optimize", "-p"], "we", {"weight_only"}),
        (["optimize", "--target"], "au", {"auto"}),
        (["inspect", "--target"], "onn", {"onnx"}),
        (["bench", "--targets"], "cpu,onn", {"cpu,onnx"}),
    ],
)
def test_names_are_completed(typed, begun, found):
    complete = BashComplete(cli, {}, "graphopt", "_GRAPHOPT_COMPLETE")
    assert {item.value for item in complete.get_completions(typed, begun)} == found


def test_a_project_file_holds_options_too(folder, graphopt):
    Path("pyproject.toml").write_text(
        '[project]\nname = "x"\n[tool.graphopt]\npasses = "fuse"\nseed = 7\nmeasure = false\n'
    )
    code, out, err = graphopt("optimize", "model.onnx", "--json", "-o", "o.onnx")
    assert code == 0, err
    assert json.loads(out)["seed"] == 7
    Path("graphopt.toml").write_text('passes = "fuse"\nseed = 8\nmeasure = false\n')
    for more, seed in (((), 8), (("--config", "pyproject.toml"), 7)):
        out = graphopt("optimize", "model.onnx", "--json", "-o", "o.onnx", *more)[1]
        assert json.loads(out)["seed"] == seed


def test_a_project_file_that_nobody_named_runs_no_code(folder, graphopt):
    Path("trap.py").write_text("raise SystemExit('ran')\n")
    for line in ('passes = "./trap.py:P"', 'eval = "trap.py:f"'):
        Path("pyproject.toml").write_text(
            f'[tool.graphopt]\npasses = "fuse"\n{line}\n'
            if "eval" in line
            else f"[tool.graphopt]\n{line}\n"
        )
        code, _, err = graphopt("optimize", "model.onnx", "-o", "o.onnx", "--no-measure")
        assert code == 2
        assert "add --config pyproject.toml" in err


def test_a_project_file_of_others_is_nobodys_concern(folder, graphopt):
    Path("pyproject.toml").write_text("[tool.ruff]\nline-length = 100\n")
    assert graphopt(*ARGS, "-p", "fuse")[0] == 0
