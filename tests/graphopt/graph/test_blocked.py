"""What ONNX Runtime saves in its blocked layout is said to be so."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import graphopt
from graphopt.testing import parse_model


@pytest.fixture
def saved(tmp_path):
    """A convolution as a session saves it with every optimization on."""
    weight = np.random.default_rng(0).standard_normal((16, 3, 3, 3), np.float32)
    model = parse_model(
        """
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        y = Relu(c)
        """,
        inputs={"x": (1, 3, 8, 8)},
        constants={"w": weight},
    )
    plain, path = tmp_path / "plain.onnx", tmp_path / "saved.onnx"
    onnx.save(ir.to_proto(model), plain)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
    return path


def test_blocked_convolutions_are_named_with_the_way_out(saved):
    if not any(n.domain == "com.microsoft.nchwc" for n in onnx.load(saved).graph.node):
        pytest.skip("the runtime knows no blocked layout for this processor")
    result = graphopt.optimize(saved, ["clean", "fuse"], measure=False)
    said = [n for n in result.report.notes if "com.microsoft.nchwc" in n]
    assert len(said) == 1
    assert "Optimize the model that this one was made from" in said[0]


def test_an_ordinary_model_is_not():
    model = parse_model("y = Relu(x)")
    result = graphopt.optimize(model, ["clean"], measure=False)
    assert not [n for n in result.report.notes if "nchwc" in n]
