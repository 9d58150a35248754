import json

import numpy as np
import pytest

from graphopt.deploy.manifest import Manifest, manifest_path, read_manifest, write_manifest
from graphopt.deploy.sessions import open_manifest, session
from graphopt.errors import InputError, MissingExtra, ModelError
from graphopt.formats import save
from graphopt.testing import parse_model

X = np.array([[-1, 2, -3], [4, -5, 6]], np.float32)


@pytest.fixture
def path(tmp_path):
    save(parse_model("y = Relu(x)"), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_without_a_manifest_a_model_runs_on_the_cpu(path):
    opened = session(path)
    assert (opened.inputs, opened.outputs) == (["x"], ["y"])
    assert np.array_equal(opened({"x": X})["y"], np.maximum(X, 0))
    assert opened.raw.get_providers() == ["CPUExecutionProvider"]


def test_a_folder_is_opened_by_the_model_in_it(path):
    assert session(path.parent).outputs == ["y"]


def test_the_manifest_says_how_and_the_caller_may_say_otherwise(path):
    config = {"session.set_denormal_as_zero": "1"}
    given = Manifest("cpu", threads=1, config=config, arena=False, pattern=False)
    write_manifest(path, given)
    options = session(path).raw.get_session_options()
    assert options.intra_op_num_threads == 1
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert session(path, threads=2).raw.get_session_options().intra_op_num_threads == 2


def test_a_manifest_comes_back_as_it_was_written_without_what_is_usual(path):
    given = Manifest("cuda", provider="CUDAExecutionProvider", fallbacks=("A", "B"), threads=2)
    file = write_manifest(path, given)
    assert read_manifest(path) == given
    assert set(json.loads(file.read_text())) == {
        *("schema", "target", "provider", "fallbacks", "threads"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a session manifest"),
        ('{"schema": 2, "target": "cpu"}', "of schema 2; this graphopt reads schema 1"),
        ('{"schema": 1, "target": "cpu", "thread": 1}', "is not a session manifest"),
        ('{"target": "cpu"}', "is not a session manifest"),
    ],
)
def test_a_file_that_is_no_manifest_is_told(path, text, message):
    manifest_path(path).write_text(text)
    with pytest.raises(InputError, match=message):
        session(path)


def test_a_missing_model_and_a_missing_provider_are_told(path):
    with pytest.raises(InputError, match="there is no model at"):
        session(path.with_name("absent.onnx"))
    with pytest.raises(MissingExtra, match="target 'moon'"):
        open_manifest(path, Manifest("moon", provider="MoonExecutionProvider", extra="moon"))


def test_what_the_runtime_refuses_is_one_line(path):
    save(parse_model("y = NoSuchOperator(x)"), path)
    with pytest.raises(ModelError, match=r"model.onnx does not open for 'cpu': .*NoSuchOp") as told:
        session(path)
    assert "\n" not in str(told.value)
