"""The layers: graphopt knows neither passes nor backends, passes no backend, torch stays lazy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {"torch", "onnxsim", "openvino", "onnxruntime_ep_openvino", "sklearn", "PIL"}


def modules(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", modules("graphopt"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_framework_imports_neither_passes_nor_backends(path):
    wrong = [m for m in imports(path) if m.startswith(("graphopt.passes", "graphopt.backends"))]
    assert wrong == []


@pytest.mark.parametrize("path", modules("passes"), ids=lambda p: str(p.relative_to(ROOT)))
def test_passes_import_no_backend(path):
    assert [m for m in imports(path) if m.startswith("graphopt.backends")] == []


@pytest.mark.parametrize(
    "path",
    [p for f in ("graphopt", "passes", "backends") for p in modules(f)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_extras_are_imported_where_they_are_used(path):
    wrong = [m for m in imports(path, top_level_only=True) if m.split(".")[0] in EXTRAS]
    if "torch_fx" not in path.parts:
        assert wrong == []


HEAVY = "'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'numpy'"


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"]])
def test_start_up_loads_nothing_heavy(argv):
    code = "import sys, graphopt, graphopt.cli\n"
    if argv:
        code += f"try: graphopt.cli.main({argv!r})\nexcept SystemExit: pass\n"
    code += f"print('loaded:', [m for m in ({HEAVY}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_every_module_is_packaged():
    import tomllib

    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    found = set()
    for folder, package in (("graphopt", ""), ("passes", "graphopt."), ("backends", "graphopt.")):
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(package + ".".join(init.parent.relative_to(ROOT).parts))
    assert found == listed
