"""action.yml, its steps run as GitHub's runner does: `bash -eo pipefail`, inputs by expression."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
INPUTS = {"model": "o.onnx", "baseline": "model.onnx", "token": "secret", "comment": "true"}

#: What `gh` answers: the comments there are when they are listed, and whether it may write.
GH = """#!/bin/bash
echo "gh $*" >>asked.txt
case "$*" in
  *--paginate*) cat comments.txt ;;
  *) test ! -f readonly ;;
esac
"""


def valued(text, event):
    """An expression of the runner's, for what the action uses."""

    def value(match):
        name = match[1].strip()
        if name.startswith("inputs."):
            key = name.removeprefix("inputs.")
            return event["inputs"].get(key, ACTION["inputs"][key].get("default", ""))
        return str(event[name])

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


@pytest.fixture
def runner(folder, graphopt, brief, tmp_path):
    """Runs every step; gives exit codes, and what python3, pip and gh were asked."""
    graphopt("optimize", "model.onnx", "-p", "fuse", "--no-measure", "-o", "o.onnx")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    # venv and pip are taken for granted; the environment's Python is this one
    (bin_ / "python3").write_text(
        '#!/bin/bash\necho "python3 $*" >>asked.txt\nmkdir -p "$3/bin"\n'
        f'printf \'#!/bin/bash\\n[ "$2" = pip ] && echo "pip $*" >>asked.txt && exit 0\\n'
        f'exec {sys.executable} "$@"\\n\' >"$3/bin/python"\nchmod +x "$3/bin/python"\n'
    )
    (bin_ / "gh").write_text(GH)
    for program in bin_.iterdir():
        program.chmod(0o755)

    def run(number=7, comments=(), **inputs):
        Path("comments.txt").write_text("".join(f"{url}\n" for url in comments))
        Path("asked.txt").write_text("")
        event = {
            "inputs": INPUTS | {k.replace("_", "-"): v for k, v in inputs.items()},
            "github.event.pull_request.number": number or "",
        }
        codes = {}
        for step in ACTION["runs"]["steps"]:
            condition = step.get("if", "success()")
            asked_for = event["inputs"]["comment"] == "true" and number
            if codes and any(codes.values()) and "always()" not in condition:
                continue
            if "inputs.comment" in condition and not asked_for:
                continue
            assert step["shell"] == "bash"
            given = {k: valued(v, event) for k, v in step.get("env", {}).items()}
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                env=os.environ
                | {
                    "PATH": f"{bin_}:{os.environ['PATH']}",
                    "GITHUB_ACTION_PATH": str(ROOT),
                    "GITHUB_REPOSITORY": "us/model",
                    "RUNNER_TEMP": str(tmp_path / "runner"),
                    "GITHUB_STEP_SUMMARY": "summary.md",
                }
                | given,
                capture_output=True,
                text=True,
            )
            codes[step["name"]] = done.returncode
        return codes, Path("asked.txt").read_text().splitlines()

    return run


LIST, WRITE = "repos/us/model/issues/7/comments", "--field body=@graphopt-gate.md"


def test_a_model_within_its_budget_passes_and_is_commented_on(runner):
    codes, asked = runner(max_size="1MB")
    assert codes == {"Install graphopt": 0, "Compare": 0, "Comment": 0}
    assert [line.split()[0] for line in asked] == ["python3", "pip", "gh", "gh"]
    assert asked[1].endswith(str(ROOT))
    assert asked[2].startswith(f"gh api --paginate {LIST} --jq ")
    assert asked[3] == f"gh api --silent {LIST} {WRITE}"
    assert Path("summary.md").read_text().startswith("### The model keeps its budget")
    assert Path("graphopt.html").is_file()


def test_a_model_that_misses_it_fails_and_the_comment_that_is_there_is_written_anew(runner):
    codes, asked = runner(max_size="10B", comments=["https://one", "https://two"])
    assert codes == {"Install graphopt": 0, "Compare": 4, "Comment": 0}
    assert asked[3] == f"gh api --silent --method PATCH https://two {WRITE}"
    assert "over --max-size" in Path("graphopt-gate.md").read_text()


def test_a_token_that_may_not_comment_fails_nothing(runner):
    Path("readonly").touch()
    codes, asked = runner(max_size="1MB")
    assert (codes["Comment"], len(asked)) == (0, 4)


def test_a_push_and_a_comparison_that_failed_comment_nothing(runner):
    codes, asked = runner(number=None)
    assert (codes, len(asked)) == ({"Install graphopt": 0, "Compare": 0}, 2)
    Path("graphopt-gate.md").unlink()
    codes, asked = runner(model="none.onnx")
    assert (codes["Compare"], codes["Comment"], len(asked)) == (3, 0, 2)


def test_a_hostile_name_is_a_name(runner):
    """What a pull request names is handed over as a variable, never put into the script."""
    name = "$(touch sprung)`touch sprung`;touch sprung.onnx"
    shutil.copy("o.onnx", name)
    codes, _ = runner(model=name)
    assert codes["Compare"] == 0
    assert not Path("sprung").exists()


def test_it_is_what_github_reads():
    assert set(ACTION) == {"name", "description", "inputs", "runs"}
    assert ACTION["runs"]["using"] == "composite"
    for name, given in ACTION["inputs"].items():
        assert set(given) <= {"description", "required", "default"}, name
        assert given.get("required") or "default" in given, name
    for step in ACTION["runs"]["steps"]:
        assert set(step) <= {"name", "id", "if", "shell", "env", "run"}
        assert "${{" not in step["run"]
