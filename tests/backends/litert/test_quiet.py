"""LiteRT's interpreter: its announcement stays away from stderr, all else comes through."""

import subprocess
import sys

import pytest

pytest.importorskip("ai_edge_litert")

SCRIPT = """
import os, sys
from pathlib import Path
import graphopt
from graphopt.backend import find_target
from graphopt.backends.litert import BACKEND, quiet
from graphopt.errors import ModelError
from graphopt.testing import parse_model

model = parse_model("y = Relu(x)", inputs={"x": (1, 3)})
target, path = find_target("litert"), Path(sys.argv[1], "m.tflite")
writer = quiet.Writer

class Saying(writer):
    def run(self):
        os.write(2, b"before\\n")
        return super().run()

quiet.Writer = Saying
BACKEND.lower(model, target, path)
BACKEND.session(path, target)
os.write(2, b"after\\n")
path.write_bytes(path.read_bytes()[:100])
try:
    BACKEND.session(path, target)
except ModelError as error:
    os.write(2, f"{error}\\n".encode())
"""


def test_the_announcement_alone_is_kept_from_stderr(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    before, after, refused = done.stderr.splitlines()
    assert (before, after) == ("before", "after")
    assert "does not open for 'litert'" in refused
    assert done.stdout == ""
