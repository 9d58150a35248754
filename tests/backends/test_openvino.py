import importlib.util
import sys

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.backends import openvino
from graphopt.backends.cpu import BACKEND as CPU
from graphopt.backends.openvino import BACKEND, manifest
from graphopt.backends.openvino_forms import in_its_forms

from graphopt.backend import find_target
from graphopt.deploy import sessions
from graphopt.deploy.manifest import Manifest, read_manifest, write_manifest
from graphopt.deploy.opened import OpenVinoSession
from graphopt.deploy.sessions import session
from graphopt.errors import MissingExtra, ModelError
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the openvino extra"
)
X = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)


@pytest.fixture
def model():
    text = "a = MatMul(x, w)  y = Relu(a)"
    return parse_model(text, inputs={"x": (2, 8)}, constants={"w": W})


def test_without_its_packages_the_target_is_one_plain_sentence(monkeypatch):
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'graphopt\[openvino\]'"):
        find_target("openvino")


def test_without_its_packages_a_lowered_model_says_what_to_install(model, tmp_path, monkeypatch):
    path = CPU.lower(model, find_target("cpu"), tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)  # not installed
    plugin = Manifest("openvino", plugin="onnxruntime_ep_openvino", extra="openvino")
    write_manifest(path, plugin)
    with pytest.raises(MissingExtra, match=r"graphopt\[openvino\]"):
        session(path)


@needs_openvino
@pytest.mark.parametrize(("name", "tolerance"), [("openvino", 0.02), ("openvino-f32", 1e-5)])
def test_lowered_models_run(model, tmp_path, name, tolerance):
    """bfloat16 has 8 bits of mantissa: 2^-8 per operand, at most doubled by the product."""
    target = find_target(name)
    path = BACKEND.lower(model, target, tmp_path / "m.onnx")
    expected = np.maximum(X @ W, 0)
    for opened in (BACKEND.session(path, target), session(path)):
        got = opened({"x": X})["y"]
        assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)
    timing = BACKEND.measure(path, path, {"x": X}, target, seconds=0.05)
    assert timing.pairs >= 5
    assert BACKEND.profile(path, {"x": X}, target)


@needs_openvino
def test_results_of_two_runs_do_not_share_memory(model, tmp_path):
    target = find_target("openvino-f32")
    opened = BACKEND.session(BACKEND.lower(model, target, tmp_path / "m.onnx"), target)
    first = opened({"x": X})["y"]
    kept = first.copy()
    opened({"x": -X})
    np.testing.assert_array_equal(first, kept)


WINDOW = "y = AveragePool <kernel_shape = [9, 9], strides = [9, 9], ceil_mode = 1, {}> (x)"


@needs_openvino
@pytest.mark.parametrize("count", [0, 1])
def test_a_window_larger_than_the_image_becomes_a_global_pool(tmp_path, count):
    """As exported EfficientNets have it; OpenVINO, unlike ONNX Runtime, refuses the window."""
    text = WINDOW.format(f"count_include_pad = {count}")
    model = parse_model(text, inputs={"x": (1, 2, 3, 4)})
    model.graph.outputs[0].shape = ir.Shape([1, 2, 1, 1])
    image = np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
    expected = run(model, {"x": image})["y"]
    target = find_target("openvino-f32")
    path = BACKEND.lower(model, target, tmp_path / "m.onnx")
    assert [n.op_type for n in model.graph] == ["AveragePool"]
    got = BACKEND.session(path, target)({"x": image})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_windows_that_fit_are_left_alone():
    text = "y = AveragePool <kernel_shape = [2, 2]> (x)"
    for size in ((2, 2), (4, 4)):
        model = in_its_forms(parse_model(text, inputs={"x": (1, 2, *size)}))
        assert [n.op_type for n in model.graph] == ["AveragePool"]


@needs_openvino
def test_what_it_cannot_take_is_refused_with_the_operator(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "plugin_devices", lambda manifest: [])
    text = WINDOW.format("pads = [1, 1, 1, 1]")
    model = parse_model(text, inputs={"x": (1, 2, 3, 3)})
    target = find_target("openvino")
    path = BACKEND.lower(model, target, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="AveragePool"):
        BACKEND.session(path, target)


@needs_openvino
def test_named_dimensions_are_fixed_natively_too(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "plugin_devices", lambda manifest: [])
    model.graph.inputs[0].shape = type(model.graph.inputs[0].shape)(["batch", 8])
    path = BACKEND.lower(model, find_target("openvino"), tmp_path / "m.onnx")
    given = read_manifest(path)
    assert given == manifest(find_target("openvino"))
    write_manifest(path, Manifest(**{**vars(given), "free_dimensions": {"batch": 2}}))
    opened = session(path)
    assert isinstance(opened, OpenVinoSession)
    assert list(opened.raw.inputs[0].shape) == [2, 8]


def test_the_plugin_is_opened_with_the_same_properties(model, tmp_path, monkeypatch):
    """What ONNX Runtime is asked for where the plugin finds a device, without one being here."""
    asked = {}

    class Options:
        def add_provider_for_devices(self, devices, given):
            asked.update(devices=devices, given=given)

        def add_session_config_entry(self, key, value):
            asked[key] = value

    import onnxruntime as ort

    monkeypatch.setattr(sessions, "plugin_devices", lambda manifest: ["device"])
    monkeypatch.setattr(ort, "SessionOptions", Options)
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options: _Raw())
    sessions.open_manifest(
        tmp_path / "m.onnx",
        Manifest(
            "openvino-f32", plugin="p", properties={"INFERENCE_PRECISION_HINT": "f32"}, threads=3
        ),
    )
    assert asked["devices"] == ["device"]
    assert asked["given"]["load_config"] == (
        '{"CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "3"}}'
    )


class _Raw:
    def get_inputs(self):
        return []

    get_outputs = get_inputs


def test_the_plugin_finds_devices_by_metadata_and_registers_once(monkeypatch):
    import types

    import onnxruntime as ort

    registered = []
    device = types.SimpleNamespace(ep_name="OV", ep_metadata={"ov_device": "CPU", "x": "1"})
    other = types.SimpleNamespace(ep_name="OV", ep_metadata={"ov_device": "GPU"})
    package = types.SimpleNamespace(get_ep_names=lambda: ["OV"], get_library_path=lambda: "lib")
    monkeypatch.setitem(sys.modules, "fake_plugin", package)
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *a: registered.append(a))
    monkeypatch.setattr(ort, "get_ep_devices", lambda: [other, device])
    asked = Manifest("t", provider="OV", plugin="fake_plugin", device={"ov_device": "CPU"})
    assert sessions.plugin_devices(asked) == [device]
    assert sessions.plugin_devices(asked) == [device]
    assert registered == [("OV", "lib")]
