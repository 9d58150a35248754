"""A backend of the user's, named by its file: wherever a target is taken, and nowhere else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import graphopt as package
from graphopt.backend import backend_of, named_target
from graphopt.cache import versions_of
from graphopt.errors import UsageError
from graphopt.measuring.session_options import tune

PAGE = Path(__file__).parents[2] / "docs" / "write-a-backend.md"
QUICK = ("--measure-seconds", "0.2")
#: The page's backend, but for a name that says which file was loaded.
TEXT = re.search(r"^```python file=my_backend.py\n(.*?)^```", PAGE.read_text(), re.M | re.S)[1]
MARK = """
with open(__file__ + ".ran", "a") as file:
    file.write("x")
"""
#: ONNX Runtime under another name, with a manifest beside the model.
MANIFEST = """
import dataclasses
from graphopt.backends.cpu import BACKEND as CPU
from graphopt.deploy.manifest import Manifest, write_manifest

class Own:
    name = "own"
    def targets(self): return ["own"]
    def target(self, name): return dataclasses.replace(CPU.target("cpu"), name=name, backend="own")
    def lower(self, model, target, path):
        made = CPU.lower(model, CPU.target("cpu"), path)
        write_manifest(made, Manifest("own"))
        return made
    session, measure, profile = CPU.session, CPU.measure, CPU.profile

OWN = Own()
"""


@pytest.fixture
def backend(folder):
    """`my.py:BACKEND` in the working folder."""
    Path("my.py").write_text(TEXT + MARK)
    return "./my.py:BACKEND"


def test_every_command_takes_it(backend, graphopt):
    code, _, err = graphopt(
        "optimize", "model.onnx", "-p", "fuse", "--target", backend, "-o", "o.onnx",
        "--report", "r.json", *QUICK,
    )  # fmt: skip
    assert (code, err) == (0, "")
    report = json.loads(Path("r.json").read_text())
    assert report["target"] == "reference"
    assert report["steps"][0]["latency_ms"] > 0, "it was timed, in processes of its own"
    assert len(Path("my.py.ran").read_text()) >= 3
    code, out, _ = graphopt("bench", "model.onnx", "--targets", f"cpu,{backend}", "--seconds", ".1")
    assert code == 0
    assert re.search(r"model\.onnx +reference +1 ", out), out
    code, out, _ = graphopt("inspect", "model.onnx", "--target", backend, "--profile", "--json")
    assert code == 0
    assert [row["node"] for row in json.loads(out)["profile"]] == ["whole model"]
    code, out, _ = graphopt(
        "compare", "model.onnx", "o.onnx", "--target", backend, "--json", *QUICK
    )
    assert code == 0
    assert json.loads(out)["timing"]["pairs"] >= 5
    code, _, _ = graphopt(
        "view", "model.onnx", "--target", backend, "--profile", "-o", "v.html", "--json"
    )
    assert code == 0
    assert (
        graphopt("optimize", "model.onnx", "-p", "fuse", "--target", backend, "--dry-run")[0] == 0
    )


def test_python_takes_it(backend):
    result = package.optimize("model.onnx", "fuse", target=backend, measure_seconds=0.1)
    assert (result.target.name, result.report.target) == ("reference", "reference")
    assert result.target.backend == f"{Path('my.py').resolve()}:BACKEND"
    assert backend_of(result.target).name == "reference"


def test_session_options_are_tried_for_it(folder, graphopt):
    Path("own.py").write_text(MANIFEST)
    code, out, err = graphopt(
        "optimize", "model.onnx", "-p", "fuse", "--target", "own.py:OWN", "-o", "o.onnx",
        "--report", "r.json", *QUICK,
    )  # fmt: skip
    assert (code, err) == (0, ""), out
    assert json.loads(Path("o.session.json").read_text())["target"] == "own"
    assert "not tried" not in out
    with pytest.raises(UsageError, match="no target is called 'own'"):
        tune("o.onnx", seconds=0.1)
    assert tune("o.onnx", target=named_target("own.py:OWN"), seconds=0.1)


def test_a_recipe_and_a_manifest_hold_a_name_and_no_path(backend, graphopt):
    assert graphopt("optimize", "model.onnx", "-p", "fuse", "--target", backend, "-o", "o.onnx",
                    "--no-measure")[0] == 0  # fmt: skip
    (held,) = [p for p in onnx.load("o.onnx").metadata_props if p.key == "graphopt.recipe"]
    assert json.loads(held.value)["target"] == "reference"
    assert b"my.py" not in Path("o.onnx").read_bytes()


def test_files_from_anywhere_name_no_backend(backend, graphopt):
    assert graphopt("optimize", "model.onnx", "-p", "fuse", "-o", "o.onnx", "--no-measure")[0] == 0
    (held,) = [p for p in onnx.load("o.onnx").metadata_props if p.key == "graphopt.recipe"]
    recipe = {**json.loads(held.value), "target": backend}
    Path("r.json").write_text(json.dumps(recipe))
    replay = ("optimize", "model.onnx", "--replay", "r.json", "-o", "x.onnx")
    code, _, err = graphopt(*replay, "--target", "auto")
    assert (code, err.count("\n")) == (2, 1)
    assert "no target is called './my.py:BACKEND'" in err
    code, _, err = graphopt(*replay)
    assert (code, err.count("\n")) == (3, 1)
    assert "made with another target" in err
    Path("o.session.json").write_text(
        json.dumps({"schema": 1, "target": backend, "provider": "CPUExecutionProvider"})
    )
    package.session("o.onnx")
    with pytest.raises(UsageError, match="no target is called"):
        tune("o.onnx", seconds=0.1)
    assert graphopt("bench", "o.onnx", "--seconds", "0.1")[0] == 0
    Path("graphopt.toml").write_text(f'target = "{backend}"\n')
    argv = ("optimize", "model.onnx", "-p", "fuse", "-o", "y.onnx", "--no-measure")
    code, _, err = graphopt(*argv)
    assert (code, err.count("\n")) == (2, 1)
    assert "names code" in err
    assert not Path("my.py.ran").exists()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "graphopt", *argv, "--config", "graphopt.toml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path("my.py.ran").exists(), "named, it runs"


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (TEXT, "BACKEN", "my.py has no backend 'BACKEN' (did you mean 'BACKEND'?)"),
        (TEXT, "Reference", "my.py:Reference is a class: name an object, Reference()"),
        ("X = 1", "X", "my.py:X is no backend: it has no name, targets, target, lower, session"),
        ("1 / 0", "X", "my.py cannot be loaded: ZeroDivisionError: division by zero (my.py:1)"),
        (None, "X", "my.py: no such file"),
        (TEXT.replace('["reference"]', "[]"), "BACKEND", "its targets() names none"),
    ],
)
def test_what_is_no_backend_is_told(folder, graphopt, text, name, said):
    if text is not None:
        Path("my.py").write_text(text)
    code, _, err = graphopt("bench", "model.onnx", "--targets", f"./my.py:{name}")
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("return Target(name, backend=self.name, opset=20, int8=None, measured=True)", "target"),
        ("save(model, path)", "lower"),
        ("session = self.session(path, target)", "profile"),
    ],
)
def test_what_it_raises_names_its_line(folder, graphopt, line, says):
    text = TEXT.replace(line, "raise KeyError('q')")
    Path("my.py").write_text(text)
    number = 1 + text[: text.index("raise KeyError('q')")].count("\n")
    code, _, err = graphopt("inspect", "model.onnx", "--target", "my.py:BACKEND", "--profile")
    assert (code, err.count("\n")) == (1, 1)
    assert f"my.py:BACKEND: {says}() raised KeyError: 'q' (my.py:{number})" in err


def test_what_it_raises_in_the_process_that_times_names_its_line(folder, graphopt):
    Path("my.py").write_text(
        TEXT.replace("return lambda feeds: dict(", "return lambda feeds: 1 / 0 or dict(")
    )
    code, out, err = graphopt(
        "bench", "model.onnx", "--targets", "my.py:BACKEND", "--seconds", ".1"
    )
    assert code == 0
    assert re.search(r"ZeroDivisionError: division by zero \(my\.py:\d+\)", out), out + err


def test_it_is_not_overwritten(backend, graphopt):
    for argv in (
        ("optimize", "model.onnx", "-p", "fuse", "--target", backend, "-o", "my.py"),
        ("bench", "model.onnx", "--targets", f"cpu,{backend}", "--plot", "p.svg"),
    ):
        Path("p.svg").unlink(missing_ok=True)
        Path("p.svg").symlink_to("my.py")
        code, _, err = graphopt(*argv)
        assert (code, err.count("\n")) == (2, 1)
        assert "is the input, or belongs to it" in err
    assert Path("my.py").read_text() == TEXT + MARK


def test_timings_of_another_version_of_the_file_are_not_read(backend):
    before = versions_of(named_target(backend), "x")
    Path("my.py").write_text(TEXT + "# changed\n")
    assert versions_of(named_target(backend), "x") != before
