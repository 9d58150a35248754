"""Every backend keeps the promises; check_backend notices those that don't; plugins are found."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphopt.backends.cpu import BACKEND as CPU
from graphopt.backends.cpu import Cpu

from graphopt import plugins
from graphopt.conformance import check_backend

ROOT = Path(__file__).parents[2]
#: bfloat16 keeps 8 bits: 2^-8 an operand, doubled by the product (`openvino` may compute in it).
TOLERANCE = {"openvino": 0.02, "tensorrt": 0.01, "cuda": 0.01, "mnn": 1e-3, "ncnn": 1e-3}
NAMES = sorted(plugins.find(plugins.BACKENDS))


@pytest.mark.parametrize("name", NAMES)
def test_built_in_backends_conform(name):
    backend = plugins.find(plugins.BACKENDS)[name].load()
    check_backend(backend, tolerance=TOLERANCE.get(name, 1e-5))


class Renamed(Cpu):
    def target(self, name):
        return dataclasses.replace(CPU.target(name), name="other")


class Unwritten(Cpu):
    def lower(self, model, target, path):
        return path


class Meddling(Cpu):
    def lower(self, model, target, path):
        model.graph.name = "meddled"
        return CPU.lower(model, target, path)


class Wrong(Cpu):
    def session(self, path, target, *, beside=False):
        inner = CPU.session(path, target)
        return lambda feeds: {k: v * 1.01 for k, v in inner(feeds).items()}


class Sharing(Cpu):
    def session(self, path, target, *, beside=False):
        inner = CPU.session(path, target)
        held = {}

        def call(feeds):
            for name, array in inner(feeds).items():
                held.setdefault(name, np.empty_like(array))[...] = array
            return dict(held)

        return call


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (Renamed(), "is called 'other'"),
        (Unwritten(), "did not write"),
        (Meddling(), "changed the model"),
        (Wrong(), "off by 0.01"),
        (Sharing(), "overwrote"),
        (object(), "is missing"),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else "",
)
def test_a_broken_promise_is_named(backend, said):
    with pytest.raises(AssertionError, match=said):
        check_backend(backend)


def test_an_installed_package_adds_a_target_to_the_command_line(tmp_path):
    """The page's backend, with the metadata that installing it would write."""
    page = (ROOT / "docs" / "write-a-backend.md").read_text()
    (tmp_path / "my_backend.py").write_text(
        re.search(r"^```python file=my_backend.py\n(.*?)^```", page, re.M | re.S)[1]
    )
    entry = re.search(r'graphopt.backends"\]\n    (reference = .*)\n', page)[1].replace('"', "")
    info = tmp_path / "my_backend-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-backend\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[graphopt.backends]\n{entry}\n")
    script = (
        "import sys, onnx_ir as ir, graphopt\n"
        "from graphopt.testing import parse_model\n"
        "graphopt.save(parse_model('a = Relu(x)  y = Relu(a)'), 'model.onnx')\n"
        "from graphopt.cli import main\n"
        "main(['bench', 'model.onnx', '--targets', 'cpu,reference', '--seconds', '0.05'])\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"model\.onnx +reference ", done.stdout), done.stdout
