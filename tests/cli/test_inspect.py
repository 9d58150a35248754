"""`graphopt inspect --dims`: what may shrink, and how much of the work that is."""

import json

import numpy as np
import onnx
import pytest

SIDE = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[1, 16] x) => (float[1, 4] y, float[1, 10] z) {
    h = MatMul(x, w1)
    r = Relu(h)
    y = MatMul(r, w2)
    z = MatMul(x, w3)
}
"""


@pytest.fixture
def side(tmp_path, monkeypatch):
    """640 of 800 MACs are in a dimension of 32 units; the other 160 lead to an output."""
    monkeypatch.chdir(tmp_path)
    proto = onnx.parser.parse_model(SIDE)
    for name, shape in (("w1", (16, 32)), ("w2", (32, 4)), ("w3", (16, 10))):
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        )
    onnx.save(proto, "side.onnx")


def test_the_share_of_the_work_that_may_shrink_is_told(side, graphopt):
    code, out, _ = graphopt("inspect", "side.onnx", "--dims", "--json")
    found = json.loads(out)["dims"]
    assert code == 0
    assert found["macs"] == pytest.approx({"inner": 0.8, "all": 0.8})
    assert found["params"] == pytest.approx({"inner": 0.8, "all": 0.8})
    assert [(d["size"], d["macs"], d["params"]) for d in found["dims"]] == [
        (32, pytest.approx(0.8), pytest.approx(0.8))
    ]
    code, out, _ = graphopt("inspect", "side.onnx", "--dims")
    assert code == 0
    assert "prunable: 80% of the MACs (scope all: 80%), 80% of the parameters" in out
    assert "model output 'z'" in out
