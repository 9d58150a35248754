import json
import os

import numpy as np
import pytest
from graphopt.backends.cpu import BACKEND

from graphopt.deploy import prepared
from graphopt.deploy.manifest import Manifest, manifest_path, read_manifest, write_manifest
from graphopt.deploy.prepared import prepare, prepared_for
from graphopt.deploy.sessions import session
from graphopt.errors import InputError, UsageError
from graphopt.testing import parse_model

X = {"x": np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)}


@pytest.fixture
def path(tmp_path):
    weights = np.random.default_rng(1).standard_normal((8, 4, 3, 3)).astype(np.float32)
    text = "a = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Relu(a)"
    model = parse_model(text, inputs={"x": (1, 4, 8, 8)}, constants={"w": weights})
    return BACKEND.lower(model, BACKEND.target("cpu"), tmp_path / "model.opt.onnx")


def test_a_prepared_model_is_opened_and_computes_the_same(path):
    expected = session(path)(X)["y"]
    file = prepare(path)
    assert file.name == "model.opt.prepared.onnx"
    assert prepared_for(path, read_manifest(path)) == file
    opened = session(path)
    assert opened.raw._model_path == str(file)
    np.testing.assert_array_equal(opened(X)["y"], expected)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "model.opt.onnx",
        "model.opt.prepared.onnx",
        "model.opt.session.json",
    ]


def test_a_model_that_changed_since_is_opened_itself(path):
    prepare(path)
    os.utime(path, (0, 0))
    assert prepared_for(path, read_manifest(path)) is None
    assert session(path).raw._model_path == str(path)


@pytest.mark.parametrize("change", [{"runtime": "0.1"}, {"processor": ["other"]}, {"file": "no"}])
def test_another_runtime_or_processor_opens_the_model_itself(path, change):
    prepare(path)
    data = json.loads(manifest_path(path).read_text())
    data["prepared"].update(change)
    manifest_path(path).write_text(json.dumps(data))
    assert session(path).raw._model_path == str(path)


def test_lowering_again_forgets_the_prepared_form(path):
    prepare(path)
    model = parse_model("y = Neg(x)", inputs={"x": (1, 4, 8, 8)})
    BACKEND.lower(model, BACKEND.target("cpu"), path)
    np.testing.assert_array_equal(session(path)(X)["y"], -X["x"])


def test_weights_of_large_models_go_to_a_file_of_their_own(path, monkeypatch):
    expected = session(path)(X)["y"]
    monkeypatch.setattr(prepared, "LARGE", 0)
    prepare(path)
    np.testing.assert_array_equal(session(path)(X)["y"], expected)


def test_what_cannot_be_prepared_is_said(path, tmp_path):
    with pytest.raises(InputError, match="no model"):
        prepare(tmp_path / "none.onnx")
    write_manifest(path, Manifest("cuda", provider="CUDAExecutionProvider"))
    with pytest.raises(UsageError, match="'cuda'"):
        prepare(path)
