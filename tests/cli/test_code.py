"""Code runs only where a user names it: traps of every kind, of which none may spring."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.errors import InputError

SPRUNG = Path("sprung")
TRAP = "open(__file__ + '.sprung', 'w').close()\n"
PASS = f"""{TRAP}
from dataclasses import dataclass
from graphopt import Pass

@dataclass(frozen=True)
class P(Pass):
    def run(self, model, ctx):
        return 0

def score(predict):
    return 1.0

def samples():
    yield {{}}
"""
QUICK = ("--measure-seconds", "0.2")


def sprung():
    return sorted(p.name for p in Path().rglob("*.sprung"))


def run(*argv, **options):
    script = Path(sys.executable).with_name("graphopt")
    command = [script] if script.exists() else [sys.executable, "-P", "-m", "graphopt"]
    return subprocess.run([*command, *argv], capture_output=True, text=True, **options)


@pytest.fixture
def command(graphopt):
    """The command line in this process, where a test needs the package under its name."""
    return graphopt


@pytest.fixture
def downloaded(folder):
    """A folder from anywhere: modules under the names of what graphopt imports, and metadata."""
    for name in (
        "json",
        "onnx",
        "numpy",
        "tempfile",
        "onnxruntime",
        "rich",
        "click",
        "sitecustomize",
    ):
        Path(f"{name}.py").write_text(TRAP)
    for name in ("graphopt", "onnx_ir"):
        Path(name).mkdir()
        Path(name, "__init__.py").write_text(TRAP)
    Path("evil-1.dist-info").mkdir()
    Path("evil-1.dist-info/METADATA").write_text("Name: evil\nVersion: 1\n")
    Path("evil-1.dist-info/entry_points.txt").write_text(
        "[graphopt.passes]\nfuse = json:x\n[graphopt.backends]\ncpu = json:x\n"
    )
    return folder


COMMANDS = (
    ("optimize", "model.onnx", "-p", "fuse", "-o", "o.onnx", "--no-measure"),
    ("bench", "model.onnx", "--seconds", "0.2"),
    ("inspect", "model.onnx", "--profile"),
    ("compare", "model.onnx", "o.onnx", *QUICK),
    ("show", "o.onnx"),
)


@pytest.mark.parametrize(
    ("path", "commands"),
    [
        (None, COMMANDS),
        (":", COMMANDS),
        ("", COMMANDS[1:2]),  # what comes to the same path: with one command that starts others
        (".", COMMANDS[1:2]),
        ("/nonexistent:", COMMANDS[1:2]),
    ],
)
def test_nothing_is_imported_from_the_working_folder(downloaded, path, commands, monkeypatch):
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
        # python itself imports from there before graphopt's first line: what it takes is not here
        for name in ("sitecustomize", "json", "tempfile", "click", "numpy", "rich"):
            Path(f"{name}.py").unlink()
        Path("graphopt/__init__.py").unlink()
        Path("graphopt").rmdir()
    for argv in commands:
        done = run(*argv)
        assert done.returncode == 0, done.stderr
    assert sprung() == []


def test_a_recipe_runs_no_code_that_is_not_named(folder, graphopt):
    Path("evil.py").write_text(PASS)
    done = run("optimize", "model.onnx", "-p", "evil.py:P", "-o", "o.onnx", "--no-measure")
    assert done.returncode == 0  # in another process: in this one it is loaded for the first time
    assert sprung() == ["evil.py.sprung"], "what is named runs"
    Path("evil.py.sprung").unlink()
    assert graphopt("optimize", "model.onnx", "-p", "fuse", "-o", "n.onnx", "--no-measure")[0] == 0
    (recipe,) = [p for p in onnx.load("n.onnx").metadata_props if p.key == "graphopt.recipe"]
    for spec in ("./evil.py:P", f"{folder}/evil.py:P", "evil.py:P(a=1)", "clean, evil.py:P",
                 "distill(data='evil.py:samples')", "evil.so:P"):  # fmt: skip
        data = json.loads(recipe.value)
        data["steps"] = [{"spec": spec}]
        Path("r.json").write_text(json.dumps(data))
        model = onnx.load("n.onnx")
        (held,) = [p for p in model.metadata_props if p.key == "graphopt.recipe"]
        held.value = json.dumps(data)
        onnx.save(model, "r.onnx")
        for file in ("r.json", "r.onnx"):
            code, _, err = graphopt("optimize", "model.onnx", "--replay", file, "-o", "x.onnx")
            assert code == 2
            assert "names code" in err
        assert graphopt("show", "r.onnx")[0] == 0
        assert sprung() == []
    assert run("optimize", "model.onnx", "--replay", "r.onnx", "-o", "x.onnx").returncode == 2
    assert run("show", "r.onnx").returncode == 0
    assert sprung() == []


@pytest.mark.parametrize(
    "line",
    [
        'passes = "./evil.py:P"',
        'passes = "clean, evil.py:P"',
        'passes = "evil.so:P"',
        'eval = "evil.py:score"',
        'samples = "evil.py:samples"',
    ],
)
def test_a_configuration_that_nobody_named_runs_no_code(folder, graphopt, line):
    Path("evil.py").write_text(PASS)
    Path("graphopt.toml").write_text(line)
    passes = () if "passes" in line else ("-p", "clean")
    argv = ("optimize", "model.onnx", *passes, "-o", "x.onnx", "--no-measure")
    code, _, err = graphopt(*argv)
    assert (code, err.count("\n")) == (2, 1)
    assert "--config graphopt.toml" in err
    assert sprung() == []
    assert not Path("x.onnx").exists()
    if "evil.so" not in line:
        run(*argv, "--config", "graphopt.toml")
        assert sprung() == ["evil.py.sprung"], "named, it runs"


def test_a_configuration_without_code_is_read_where_it_lies(folder, graphopt):
    Path("graphopt.toml").write_text('passes = "clean, fold(limit=1000)"\nmax_size = "1MB"\n')
    code, _, err = graphopt("optimize", "model.onnx", "-o", "x.onnx", "--no-measure")
    assert code in (0, 2), err
    assert "names code" not in err


def test_a_configuration_that_nobody_named_sends_figures_nowhere(folder, graphopt):
    Path("graphopt.toml").write_text('track = "tensorboard:runs"\n')
    argv = ("optimize", "model.onnx", "-p", "clean", "-o", "x.onnx", "--no-measure")
    code, _, err = graphopt(*argv)
    assert (code, err.count("\n")) == (2, 1)
    assert "track names where figures are sent" in err


HOSTILE = [
    {"plugin": "evil"},
    {"native": "evil"},
    {"plugin": "os"},
    {"provider_options": {"backend_path": "evil.so"}},
    {"provider_options": {"trt_extra_plugin_lib_paths": "evil.so"}},
    {"provider_options": {"trt_engine_cache_path": "/elsewhere"}},
    {"provider_options": {"trt_engine_cache_path": "../elsewhere"}},
    {"properties": {"CACHE_DIR": "/elsewhere"}},
    {"config": {"session.model_external_initializers_file_folder_path": "/etc"}},
    {"config": {"ep.context_file_path": "x"}},
    {"threads": "2"},
    {"threads": True},
    {"arena": "no"},
    {"config": {"session.intra_op.allow_spinning": 1}},
    {"free_dimensions": {"batch": "1"}},
    {"fallbacks": [1]},
    {"unknown": 1},
]


@pytest.mark.parametrize("fields", HOSTILE, ids=lambda f: json.dumps(f)[:60])
def test_a_manifest_names_neither_code_nor_files_elsewhere(folder, command, fields):
    Path("evil.py").write_text(TRAP)
    told = {"schema": 1, "target": "cpu", "provider": "CPUExecutionProvider", **fields}
    Path("model.session.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"model\.session\.json"):
        graphopt.session("model.onnx")
    code, _, err = command("bench", "model.onnx", "--seconds", "0.1")
    assert (code, err.count("\n")) == (3, 1)
    assert sprung() == []


@pytest.mark.parametrize("text", ["", "[]", "{", "1", "[" * 9000, '{"schema": 2}', "\x00"])
def test_what_is_no_manifest_is_told(folder, text):
    Path("model.session.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.session\.json"):
        graphopt.session("model.onnx")


class Trap:
    def __reduce__(self):
        return open, ("x.sprung", "w")


@pytest.mark.parametrize("name", ["p.npz", "p.npy", "folder"])
def test_samples_are_arrays_and_no_pickles(folder, graphopt, name):
    array = np.array([Trap()], object)
    Path("folder").mkdir()
    np.savez("p.npz", x=array)
    np.save("p.npy", array)
    np.save("folder/x.npy", array)
    code, _, err = graphopt(
        "optimize", "model.onnx", "-p", "clean", "--no-measure", "--samples", name, "-o", "o.onnx"
    )
    assert (code, err.count("\n")) == (3, 1)
    assert sprung() == []
