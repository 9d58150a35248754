"""What a loop reads from outside stays float: the runtime aborts on a DequantizeLinear there."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import Budget, optimize
from graphopt.execution.runtime import opened

MODEL = """<ir_version: 10, opset_import: ["": 20]>
net (float[n,64,6,6] x) => (float[n,6,6,64] y)
    <int64 turns = {{3}}, bool yes = {{1}}, float[1] zero = {{0}}> {{
    a = Conv(x, w)
    b = Relu(a)
    c = Conv(b, v)
    d = {moved}
    e = Conv(c, w)
    g = Relu(e)
    m = ReduceMean<keepdims=0>(g)
    s = Mul(m, zero)
    t = Loop(turns, yes, s) <body = body (int64 i, bool c0, float[1] h) => (bool c1, float[1] k) {{
        c1 = Identity(c0)  r = ReduceMax<keepdims=0>(d)  k = Add(h, r) }}>
    f = Transpose<perm=[0,2,3,1]>(c)
    y = Add(f, t)
}}"""


@pytest.mark.parametrize("moved", ["Identity(c)", "Transpose<perm=[0,2,3,1]>(c)", "Relu(c)"])
def test_a_loop_reads_floats(moved):
    proto = onnx.parser.parse_model(MODEL.format(moved=moved))
    rng = np.random.default_rng(0)
    for name in ("w", "v"):
        array = rng.standard_normal((64, 64, 1, 1)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    samples = [{"x": rng.standard_normal((4, 64, 6, 6)).astype(np.float32)} for _ in range(4)]
    lifted = Budget(max_disagreement=np.inf)
    result = optimize(ir.from_proto(proto), "int8", samples=samples, budget=lifted, measure=False)
    assert any(n.op_type == "QuantizeLinear" for n in result.model.graph)
    with opened(result.model) as predict:  # as users run it, with the runtime's optimizations
        made = predict(samples[0])
    assert np.isfinite(made["y"]).all()
