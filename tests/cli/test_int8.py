"""INT8 from the command line: a poisonous layer is named, and budgets are met."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

# The residual sum has one channel a thousand times the others, which the last convolution hardly
# reads. No scaling per channel can help: the sum is read by two.
NET = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[batch, 8, 6, 6] x) => (float[batch, 5] y) {
    e = Conv <pads = [2, 2, 2, 2]> (x, k)
    f = Relu(e)
    a = Conv(f, u)
    c = Relu(a)
    s = Add(c, f)
    b = Conv(s, v)
    r = Relu(b)
    t = Add(r, s)
    d = Conv(t, w)
    g = Relu(d)
    h = Conv(g, z, o)
    p = GlobalAveragePool(h)
    y = Flatten(p)
}
"""

SCORE = """
import numpy as np
data = np.load("calib.npz")
labels = np.load("labels.npy")

def accuracy(predict):
    return float((predict({"x": data["x"]})["y"].argmax(1) == labels).mean())
"""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    u, v, w = (normal(8, 8, 1, 1, seed=s) for s in (1, 2, 3))
    k = normal(8, 8, 5, 5, seed=5) / 5  # large enough for integers to save bytes
    z = normal(5, 8, 1, 1, seed=4)
    u[0] *= 1000
    v[:, 0] /= 1000
    w[:, 0] /= 1000
    proto = onnx.parser.parse_model(NET)
    for name, array in (("k", k), ("u", u), ("v", v), ("w", w), ("z", z)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    x = normal(64, 8, 6, 6)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(5, np.float32), "o"))
    onnx.save(proto, "model.onnx")
    mean = predict("model.onnx", x).mean(axis=0)  # so that no class wins everywhere
    proto.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(-mean, "o"))
    onnx.save(proto, "model.onnx")
    np.savez("calib.npz", x=x)
    np.save("labels.npy", predict("model.onnx", x).argmax(1))
    Path("score.py").write_text(SCORE)
    return tmp_path


def predict(path, x):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def optimize(graphopt, *more):
    code, _, err = graphopt(
        *("optimize", "model.onnx", "-p", "int8", "-o", "o.onnx", "--no-measure"),
        *("--samples", "calib.npz", "--eval", "score.py:accuracy", "--report", "r.json", *more),
    )
    return code, json.loads(Path("r.json").read_text()), err


def test_the_poison_spoils_the_model_where_nothing_judges(poisoned, graphopt):
    code, report, _ = optimize(graphopt, "--max-error", "none")
    assert code == 0
    assert report["after"]["metric"] < 0.9


def test_without_a_budget_the_guard_keeps_the_task(poisoned, graphopt):
    """The labels are the source's own decisions: one of 64 is more than may change of others."""
    code, report, _ = optimize(graphopt)
    assert code == 0
    assert report["after"]["metric"] == 1
    code, report, _ = optimize(graphopt, "--max-disagreement", "0.1")
    (step,) = report["steps"]
    assert (code, step["status"]) == (0, "kept")
    assert report["after"]["metric"] >= 0.9
    (agreement,) = step["agreement"].values()
    assert (agreement["disagreements"] or 0) <= 6
    kinds = [n.op_type for n in onnx.load("o.onnx").graph.node]
    assert "QuantizeLinear" in kinds


@pytest.mark.parametrize("drop", ["0.05", "0.02"])
def test_the_poisonous_layer_is_named_and_the_budget_met(poisoned, graphopt, drop):
    code, report, err = optimize(graphopt, "--max-drop", drop)
    assert code == 0, err
    (step,) = report["steps"]
    assert step["status"] == "kept"
    assert report["before"]["metric"] - report["after"]["metric"] <= float(drop)
    named = [n for n in step["notes"] if "most sensitive" in n]
    assert named, step["notes"]
    assert any(f"Conv_{end} " in named[0] for end in "bd")  # they read the sum
    assert report["budget"]["met"]
    kinds = [n.op_type for n in onnx.load("o.onnx").graph.node]
    assert "QuantizeLinear" in kinds, "what does not hurt stays integer"


def test_an_error_budget_is_met(poisoned, graphopt):
    code, _, err = optimize(graphopt, "--max-error", "0.05")
    assert code == 0, err
    x = np.load("calib.npz")["x"]
    expected, got = predict("model.onnx", x), predict("o.onnx", x)
    # the budget is judged with the runtime's optimizations off; fused kernels round once less
    assert np.linalg.norm(got - expected) <= 0.055 * np.linalg.norm(expected)
