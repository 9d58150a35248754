"""The layers: floors without circles, graphopt knows neither passes nor backends, torch is lazy."""

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {
    "torch",
    "onnxsim",
    "openvino",
    "onnxruntime_ep_openvino",
    "optuna",
    "ray",
    "sklearn",
    "PIL",
    "pyarrow",
    "constriction",
    "zstandard",
    "tensorboard",
    "mlflow",
    "netron",
    "MNN",
    "ai_edge_litert",
    "flatbuffers",
    "ncnn",
    "executorch",
    "jax",
    "torchax",
}


def modules(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def statements(path):
    """The import statements of a file: those of the module itself, and all of them."""
    tree = ast.parse(path.read_text())
    every = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    return [n for n in every if n in tree.body], every


def imports(path, *, top_level_only=False):
    own, every = statements(path)
    for node in own if top_level_only else every:
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


#: The rooms of graphopt/, from the top: a lower floor imports no higher one.
FLOORS = (
    {"__main__", "cli", "conformance", "testing"},
    {"packing", "page", "searching"},
    {"pipeline"},
    {"calibration", "converting", "proving", "tracing", "training", "verification"},
    {"drawing", "formats", "measuring", "pass_", "rewriting", "spec"},
    {"analyses", "backend", "context", "differing"},
    {"budget", "cache", "execution", "io", "samples"},
    {
        "deferred",
        "deploy",
        "entropy",
        "graph",
        "knapsack",
        "layers",
        "plugins",
        "reporting",
        "target",
    },
    {"blame", "blas", "children", "replacing", "user_code", "varint", "wire"},
    {"errors"},
)


@cache
def graph_of_imports():
    """Every module and the modules it imports, at any level: functions, TYPE_CHECKING."""
    found = {}
    for folder, above in (("graphopt", ()), ("passes", ("graphopt",)), ("backends", ("graphopt",))):
        for path in modules(folder):
            parts = (*above, *path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    edges = {}
    for name, path in found.items():
        edges[name] = set()
        for node in statements(path)[1]:
            if isinstance(node, ast.Import):
                edges[name] |= {a.name for a in node.names} & found.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{a.name}" for a in node.names}
                edges[name] |= (inner & found.keys()) or ({node.module} & found.keys())
        edges[name] -= {name, "graphopt"}  # whose names are lazy
    del edges["graphopt"]
    return edges


def test_no_import_circle():
    edges = graph_of_imports()
    assert len(edges) > 250
    graphlib.TopologicalSorter(edges).prepare()


def test_no_room_of_graphopt_is_in_a_circle_and_no_floor_imports_a_higher_one():
    rooms = {}
    for name, used in graph_of_imports().items():
        room = name.split(".")[1]
        if room not in ("passes", "backends"):
            rooms.setdefault(room, set()).update(u.split(".")[1] for u in used)
            rooms[room].discard(room)
    floor = {room: k for k, rooms in enumerate(FLOORS) for room in rooms}
    assert {r for r in rooms if r not in floor} == set()
    assert [(a, b) for a, used in rooms.items() for b in used if floor[b] < floor[a]] == []
    graphlib.TopologicalSorter(rooms).prepare()


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
