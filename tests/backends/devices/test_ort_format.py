"""`--target ort`: the command typed, the file, onnxruntime's outputs of it, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from graphopt.backends.ort_format import BACKEND

from graphopt.backend import find_target
from graphopt.cli import main
from graphopt.deploy.manifest import read_manifest
from graphopt.deploy.sessions import session
from graphopt.errors import InputError, ModelError, UsageError
from graphopt.testing import parse_model

X = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)


@pytest.fixture
def model():
    return parse_model("a = MatMul(x, w)  y = Relu(a)", inputs={"x": (2, 8)}, constants={"w": W})


@pytest.fixture
def source(model, tmp_path, monkeypatch):
    from graphopt import save

    monkeypatch.chdir(tmp_path)
    save(model, "model.onnx")
    return tmp_path


def optimize(*more):
    with pytest.raises(SystemExit) as ended:
        main(["optimize", "model.onnx", "-p", "clean", "--no-measure", "--target", "ort", *more])
    return ended.value.code


def test_the_command_writes_the_file_its_operators_and_its_manifest(source, capsys):
    assert optimize("-o", "m.ort") == 0
    assert "wrote m.ort, m.required_operators.config, m.ort.session.json" in capsys.readouterr().out
    written = {p.name for p in source.iterdir()} - {"model.onnx"}
    assert written == {"m.ort", "m.required_operators.config", "m.ort.session.json"}
    assert Path("m.ort").read_bytes()[4:8] == b"ORTM"
    config = Path("m.required_operators.config").read_text()
    assert 'Relu{"inputs": {"0": ["float"]}}' in config
    (got,) = ort.InferenceSession("m.ort").run(None, {"x": X})
    np.testing.assert_allclose(got, np.maximum(X @ W, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(session("m.ort")({"x": X})["y"], got)


def test_its_own_file_is_replaced_and_another_is_not(source, capsys):
    assert optimize("-o", "m.ort") == 0
    assert optimize("-o", "m.ort") == 0
    Path("m.ort").write_bytes(b"somebody's")
    assert optimize("-o", "m.ort") == 2
    assert "m.ort exists and is not graphopt's" in capsys.readouterr().err
    assert Path("m.ort").read_bytes() == b"somebody's"


def test_a_file_of_somebody_else_s_beside_it_is_not_replaced(model, tmp_path):
    mine = tmp_path / "m.required_operators.config"
    mine.write_text("somebody's")
    with pytest.raises(UsageError, match=r"m\.required_operators\.config is not graphopt's"):
        BACKEND.lower(model, find_target("ort"), tmp_path / "m.ort")
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(mine, "somebody's")]


def test_the_name_ends_as_the_target_writes(source, capsys):
    assert optimize("-o", "m.onnx") == 2
    assert "target 'ort' writes *.ort: name it so after -o" in capsys.readouterr().err
    assert optimize() == 0
    assert Path("model.opt.ort").exists()


def test_signed_integers_stay_signed(tmp_path):
    """onnxruntime's conversion makes them unsigned for x86, and fails where their type is named."""
    text = "q = QuantizeLinear<output_dtype=3>(x, s, z)  y = DequantizeLinear(q, s, z)"
    constants = {"s": np.float32(0.1), "z": np.int8(3)}
    model = parse_model(text, inputs={"x": (2, 8)}, constants=constants, opset=21)
    path = BACKEND.lower(model, find_target("ort"), tmp_path / "m.ort")
    config = (tmp_path / "m.required_operators.config").read_text()
    assert '"int8_t"' in config
    assert "uint8_t" not in config
    assert BACKEND.session(path, find_target("ort"))({"x": X})["y"].dtype == np.float32


class Miscompiled:
    """A runtime that computes something else than the model."""

    def __call__(self, feeds):
        return {"y": np.maximum(feeds["x"] @ W, 0) + np.float32(0.01)}


def test_a_file_that_computes_something_else_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(type(BACKEND), "open", lambda self, path, target: Miscompiled())
    with pytest.raises(ModelError, match=r"the \.ort file computes something else: relative L2"):
        BACKEND.lower(model, find_target("ort"), tmp_path / "m.ort")
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_names_files_beside_the_model_only(model, tmp_path):
    path = BACKEND.lower(model, find_target("ort"), tmp_path / "m.ort")
    assert read_manifest(path).files == ("m.required_operators.config",)
    file = tmp_path / "m.ort.session.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "files": ["../secret"]}))
    with pytest.raises(InputError, match=r"names '\.\./secret', which is not beside the model"):
        read_manifest(path)
