"""Which Q/DQ forms OpenVINO computes in integers: the target's data, beside the runtime."""

import importlib.util

import numpy as np
import pytest
from graphopt.backends.openvino import BACKEND, FORMS, INT8

from graphopt.backend import find_target
from graphopt.deploy import sessions
from graphopt.deploy.opened import OpenVinoSession
from graphopt.errors import ModelError
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the openvino extra"
)
RNG = np.random.default_rng(0)
X = {"x": RNG.standard_normal((1, 8, 10, 10)).astype(np.float32)}
TEXT = """
xq = QuantizeLinear(x, s, z)
xd = DequantizeLinear(xq, s, z)
wd = DequantizeLinear <axis = 0> (w, ws, wz)
a = Conv <pads = [1, 1, 1, 1]> (xd, wd)
b = Relu(a)
bq = QuantizeLinear(b, t, z)
y = DequantizeLinear(bq, t, z)
"""


def convolution(activation, weight):
    """A convolution between Q/DQ pairs, weights per channel, symmetric, and of 7 bits: pairs of
    products of more saturate on x86 without VNNI."""
    middle = 0 if weight == "int8" else 128
    weights = RNG.integers(-63, 64, (16, 8, 3, 3)) + middle
    constants = {
        "s": np.float32(0.02),
        "z": np.array(0 if activation == "int8" else 128, activation),
        "w": weights.astype(weight),
        "ws": np.full(16, 0.01, np.float32),
        "wz": np.full(16, middle, weight),
        "t": np.float32(0.3),
    }
    return parse_model(TEXT, inputs={"x": (1, 8, 10, 10)}, constants=constants)


def test_the_scheme_is_one_that_runs_in_integers_everywhere():
    assert FORMS[INT8.activation, INT8.weight] == "integer"


def opened_or_refused(path, target, *, may_refuse):
    """The session, or None where the runtime refuses a form that it may refuse."""
    try:
        return BACKEND.session(path, target)
    except ModelError:
        if may_refuse:
            return None
        raise


@needs_openvino
def test_a_refusal_names_the_file_and_the_target(tmp_path, monkeypatch):
    """What Intel's processors with AMX say to signed data, without being on one."""

    def refuse(path, manifest, profile):
        raise RuntimeError("Exception from src/x.cpp:1:\nNo suitable implementations for: conv1")

    monkeypatch.setattr(sessions, "plugin_devices", lambda manifest: [])
    monkeypatch.setattr(sessions, "_open_native", refuse)
    target = find_target("openvino-f32")
    path = BACKEND.lower(convolution("int8", "int8"), target, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m.onnx does not open.*openvino-f32.*conv1"):
        BACKEND.session(path, target)


@needs_openvino
@pytest.mark.parametrize(("activation", "weight"), list(FORMS))
def test_forms_compute_as_the_data_says(activation, weight, tmp_path, monkeypatch):
    """Outputs differ by at most one rounding step; what is refused names the file and target."""
    monkeypatch.setattr(sessions, "plugin_devices", lambda manifest: [])
    model = convolution(activation, weight)
    target = find_target("openvino-f32")
    path = BACKEND.lower(model, target, tmp_path / "m.onnx")
    opened = opened_or_refused(path, target, may_refuse=FORMS[activation, weight] == "refused")
    if opened is None:
        return
    np.testing.assert_allclose(opened(X)["y"], run(model, X)["y"], atol=0.3 + 1e-4)
    assert isinstance(opened, OpenVinoSession)
    ran = {
        n.get_rt_info()["runtimePrecision"].astype(str)
        for n in opened.raw.get_runtime_model().get_ordered_ops()
        if n.get_rt_info()["layerType"].astype(str) == "Convolution"
    }
    integer = ran <= {"u8", "i8"}
    assert integer == (FORMS[activation, weight] != "float")
