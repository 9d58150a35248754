import numpy as np
import pytest

from graphopt.deploy.drift import drift
from graphopt.deploy.sessions import session
from graphopt.errors import ModelError
from graphopt.formats import save
from graphopt.testing import parse_model

SCALE = np.float32(0.5)


def quantized(zero, text=""):
    return parse_model(
        text
        or """h = Relu(x)  q = QuantizeLinear(h, s, z)  d = DequantizeLinear(q, s, z)
        p = QuantizeLinear(x, s, z)  e = DequantizeLinear(p, s, z)  y = Add(d, e)""",
        inputs={"x": ("N", 4)},
        constants={"s": SCALE, "z": zero},
        opset=21,
    )


@pytest.fixture
def path(tmp_path):
    save(quantized(np.int8(8)), tmp_path / "q.onnx")  # from -68 to 59.5
    return tmp_path / "q.onnx"


def test_values_outside_are_counted_where_they_are(path):
    runs = [{"x": np.float32([[1, -68.2, -70, 59.7]])}, {"x": np.float32([[0, 80, 2, -90]])}]
    x, h = drift(path, runs)
    assert (x.name, x.low, x.high) == ("x", -68, 59.5)
    assert (x.count, x.of, x.least, x.greatest) == (3, 8, -90, 80)  # half a step is rounding
    assert (h.name, h.count, h.of, h.least, h.greatest) == ("h", 1, 8, 0, 80)
    assert x.share == 3 / 8


def test_unsigned_wide_and_without_a_zero_point(tmp_path):
    save(quantized(np.uint8(0)), tmp_path / "u.onnx")
    assert {(o.low, o.high) for o in drift(tmp_path / "u.onnx", [])} == {(0, 127.5)}
    save(quantized(np.int16(0)), tmp_path / "w.onnx")
    assert {(o.low, o.high) for o in drift(tmp_path / "w.onnx", [])} == {(-16384, 16383.5)}
    text = "q = QuantizeLinear(x, s)  y = DequantizeLinear(q, s)"
    save(quantized(np.uint8(0), text), tmp_path / "n.onnx")
    (one,) = drift(tmp_path / "n.onnx", [{"x": np.float32([[-1, 0, 1, 200]])}])
    assert (one.low, one.high, one.count) == (0, 127.5, 2)


def test_nothing_that_is_calibrated(tmp_path):
    save(parse_model("y = Relu(x)"), tmp_path / "plain.onnx")
    assert drift(tmp_path / "plain.onnx", [{"x": np.ones((2, 3), np.float32)}]) == []


def test_a_run_that_fails_is_told(path):
    with pytest.raises(ModelError, match="does not run on ONNX Runtime"):
        drift(path, [{"x": np.ones((2, 2, 2), np.float32)}])


def test_a_session_watches(path):
    run = session(path, watch=True)
    plain = session(path)
    for k in (1, 100):
        feeds = {"x": np.full((2, 4), k, np.float32)}
        assert np.array_equal(run(feeds)["y"], plain(feeds)["y"])
    assert (run.inputs, run.outputs) == (["x"], ["y"])
    assert [(o.name, o.count, o.of) for o in run.drift()] == [("h", 8, 16), ("x", 8, 16)]
