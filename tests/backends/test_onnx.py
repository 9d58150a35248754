"""The plain target: standard operators alone, and no file beside the model."""

import numpy as np
import pytest
from graphopt.backends.onnx import BACKEND, foreign_operators

from graphopt.backend import backend_of, find_target
from graphopt.deploy.sessions import session
from graphopt.errors import ModelError
from graphopt.testing import parse_model

X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_the_target_is_standard_and_not_measured():
    target = find_target("onnx")
    assert backend_of(target) is BACKEND
    assert not target.measured
    assert target.operators == frozenset()


def test_only_the_model_is_written_and_anything_opens_it(tmp_path):
    path = BACKEND.lower(parse_model("y = Relu(x)"), find_target("onnx"), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(session(path)(X)["y"], X["x"])


def test_operators_outside_the_standard_are_named(tmp_path):
    model = parse_model("y = Relu(x)")
    model.graph[0].domain, model.graph[0].op_type = "com.microsoft", "Gelu"
    model.graph[0].name = "gelu"
    with pytest.raises(ModelError, match=r"com.microsoft:Gelu \(node 'gelu'\)"):
        BACKEND.lower(model, find_target("onnx"), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    assert foreign_operators(parse_model("y = Relu(x)")) == []
