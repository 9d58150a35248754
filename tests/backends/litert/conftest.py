import importlib.util

import pytest
from litert_graphs import drawn, operators

from graphopt.testing import parse_model


@pytest.fixture
def lowered(tmp_path):
    """A function that writes a graph for LiteRT, runs it there and gives (outputs, operators).

    Its outputs were compared with ONNX Runtime's before it was written.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        pytest.skip("needs the litert extra")
    from graphopt.backends.litert import BACKEND

    from graphopt.backend import find_target

    def run(text, inputs, constants=None, feeds=None, **given):
        model = parse_model(text, inputs=inputs, constants=constants or {}, **given)
        target = find_target("litert")
        path = BACKEND.lower(model, target, tmp_path / "m.tflite")
        session = BACKEND.session(path, target)
        feeds = feeds or {n: drawn(*s) for n, s in inputs.items()}
        return session(feeds), operators(path)

    return run
