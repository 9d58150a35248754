"""The pipeline on models of every kind: subgraphs, functions, old opsets, odd inputs."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import optimize
from graphopt.execution.runtime import run

W = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)


def model(text, **constants):
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


SUBGRAPHS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2, 4] x, bool flag) => (float[2, 4] y) {
    h = Relu(x)
    y = If (flag) <
        then_branch = a () => (float[2, 4] p) { q = MatMul(h, w)  p = Relu(q) },
        else_branch = b () => (float[2, 4] r) { r = Neg(h) }
    >
}
"""
FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
net (float[2, 4] x) => (float[2, 4] y) { h = my.Twice(x)  y = MatMul(h, w) }
<domain: "my", opset_import: ["" : 17]>
Twice (a) => (b) { b = Add(a, a) }
"""
LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2, 4] x, int64 n, bool go) => (float[2, 4] y) {
    y = Loop (n, go, x) <
        body = b (int64 i, bool c, float[2, 4] s) => (bool d, float[2, 4] t) {
            d = Identity(c)
            m = MatMul(s, w)
            t = Tanh(m)
        }
    >
}
"""
OPSET_7 = """
<ir_version: 3, opset_import: ["" : 7]>
net (float[2, 4] x, float[4, 4] w) => (float[2, 4] y) {
    m = MatMul(x, w)
    y = Dropout(m)
}
"""
TEXT = """
<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
net (string[2] x) => (int64[2] y) {
    y = ai.onnx.ml.LabelEncoder <keys_strings=["a","b"], values_int64s=[1, 2]> (x)
}
"""
X = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
CASES = {
    "subgraphs": (SUBGRAPHS, {"x": X, "flag": np.array(True)}, {"w": W}),
    "function": (FUNCTION, {"x": X}, {"w": W}),
    "loop": (LOOP, {"x": X, "n": np.array(3), "go": np.array(True)}, {"w": W}),
    "opset 7": (OPSET_7, {"x": X}, {"w": W}),
    "text": (TEXT, {"x": np.array(["a", "b"])}, {}),
}


@pytest.mark.parametrize("passes", ["fuse", "fuse,int8"])
@pytest.mark.parametrize("case", CASES)
def test_comes_out_as_it_went_in(case, passes):
    text, feeds, constants = CASES[case]
    source = model(text, **constants)
    result = optimize(source, passes, measure=False)
    grown = [s for s in result.report.steps if s.reason.startswith("no smaller")]  # tiny ones do
    sound = [s for s in result.report.steps if s not in grown]
    assert all(s.status in ("kept", "unchanged", "refused") for s in sound)
    expected, got = run(source, feeds), run(result.model, feeds)
    for name, array in expected.items():
        if array.dtype.kind == "f":
            limit = 0.1 if "int8" in passes else 1e-5
            assert np.linalg.norm(array - got[name]) <= limit * np.linalg.norm(array)
        else:
            assert np.array_equal(array, got[name])
