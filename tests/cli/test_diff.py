import json
from pathlib import Path

import onnx


def test_diff_says_equal_with_its_exit_code(folder, graphopt):
    code, out, _ = graphopt("diff", "model.onnx", "model.onnx")
    assert code == 0
    assert out.endswith("the models are equal\n")
    assert "4 nodes -> 4: 4 same" in out


def test_diff_shows_what_changed(folder, graphopt):
    graphopt("optimize", "model.onnx", "-p", "fuse", "--no-measure", "-o", "o.onnx")
    code, out, _ = graphopt("diff", "model.onnx", "o.onnx")
    assert code == 1
    assert "FusedMatMul" in out or "Gemm" in out
    assert "graphopt.recipe" in out
    code, out, _ = graphopt("diff", "model.onnx", "o.onnx", "--json")
    data = json.loads(out)
    assert (code, data["equal"], data["a"]) == (1, False, "model.onnx")
    assert [n["operator"] for n in data["before"]] == ["MatMul", "Add", "Relu", "MatMul"]
    assert all(n["fate"] == "same" or n["reason"] for n in data["before"] + data["after"])


def test_diff_of_what_is_no_model(folder, graphopt):
    Path("bad.onnx").write_text("no model")
    code, out, err = graphopt("diff", "model.onnx", "bad.onnx")
    assert (code, out) == (3, "")
    assert err.startswith("graphopt: bad.onnx: ")
    assert graphopt("diff", "model.onnx", "none.onnx")[0] == 3


def test_diff_names_weights(folder, graphopt):
    proto = onnx.load("model.onnx")
    array = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[0, 0] += 1
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w1"))
    onnx.save(proto, "other.onnx")
    code, out, _ = graphopt("diff", "model.onnx", "other.onnx")
    assert code == 1
    assert "2 weights are the same, 1 changed, 0 gone, 0 new" in out
