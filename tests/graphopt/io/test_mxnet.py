"""Old files of MXNet's exporter: opset 7 and 8, faults of its own."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.execution.runtime import run

RNG = np.random.default_rng(0)


def exported(listed, opset=8):
    """Convolution, normalization, PRelu, Dropout, as that exporter wrote them."""
    weights = {
        "k": RNG.standard_normal((6, 3, 3, 3)), "gamma": RNG.random(6) + 0.5,
        "beta": RNG.standard_normal(6), "mean": RNG.standard_normal(6), "var": RNG.random(6) + 0.5,
        "slope": RNG.random(6), "w": RNG.standard_normal((4, 6 * 64)), "b": np.zeros(4),
    }  # fmt: skip
    weights = {n: x.astype(np.float32) for n, x in weights.items()}
    nodes = [
        helper.make_node("Conv", ["data", "k"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], "bn", spatial=0
        ),
        helper.make_node("PRelu", ["n", "slope"], ["r"], "prelu"),
        helper.make_node("Dropout", ["r"], ["d"], "drop", ratio=0.4),
        helper.make_node("Flatten", ["d"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w", "b"], ["fc"], "fc", transB=1),
    ]
    inputs = [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 8, 8])]
    if listed:
        inputs += [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in weights.items()
        ]
    outputs = [helper.make_tensor_value_info("fc", TensorProto.FLOAT, [1, 4])]
    tensors = [numpy_helper.from_array(x, n) for n, x in weights.items()]
    graph = helper.make_graph(nodes, "mxnet", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)
    return model, weights


def expected(x, w):
    torch = pytest.importorskip("torch")
    t = {n: torch.from_numpy(v) for n, v in w.items()}
    y = torch.nn.functional.conv2d(torch.from_numpy(x), t["k"], padding=1)
    y = torch.nn.functional.batch_norm(y, t["mean"], t["var"], t["gamma"], t["beta"])
    y = torch.nn.functional.prelu(y, t["slope"])
    return (y.flatten(1) @ t["w"].T + t["b"]).numpy()


@pytest.mark.parametrize("listed", [True, False])
def test_its_faults_are_set_right(listed, tmp_path):
    """Initializers among the inputs or not; no runtime takes the file as it is."""
    proto, weights = exported(listed)
    with pytest.raises(Exception, match=r"spatial|broadcast|slope|shape"):
        ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"data": np.zeros((1, 3, 8, 8), np.float32)}
        )
    onnx.save(proto, tmp_path / "m.onnx")
    model = graphopt.load(tmp_path / "m.onnx")
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    assert np.allclose(run(model, {"data": x})["fc"], expected(x, weights), atol=1e-4)
    result = graphopt.optimize(tmp_path / "m.onnx", "clean,fold,fuse", measure=False)
    assert any("spatial=0" in n for n in result.report.notes)
    assert any("slopes of PRelu" in n for n in result.report.notes)
    assert np.allclose(run(result.model, {"data": x})["fc"], expected(x, weights), atol=1e-4)


def test_files_without_its_mark_are_not_touched(tmp_path):
    """A slope for each column may be meant."""
    proto, _ = exported(False)
    del proto.graph.node[1].attribute[:]
    onnx.save(proto, tmp_path / "m.onnx")
    model = graphopt.load(tmp_path / "m.onnx")
    assert list(model.graph.initializers["slope"].shape) == [6]
