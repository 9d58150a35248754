"""The graph check: what the ONNX checker insists on beside the standard is not asked for."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt.errors import GraphOptError, ModelError
from graphopt.execution.runtime import run
from graphopt.rewriting.opset import raise_opset
from graphopt.verification.graph import check_graph


def relu(shape_in, shape_out, op_type="Relu"):
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("shape_in", [[2, 3], None])
@pytest.mark.parametrize("shape_out", [[2, 3], None])
def test_inputs_and_outputs_without_a_shape(tmp_path, shape_in, shape_out):
    proto = relu(shape_in, shape_out)
    check_graph(ir.from_proto(proto))
    with pytest.raises(ModelError, match="Rellu"):
        check_graph(ir.from_proto(relu(shape_in, shape_out, "Rellu")))
    onnx.save(proto, tmp_path / "m.onnx")
    result = graphopt.optimize(tmp_path / "m.onnx", "clean, fold, fuse", measure=False)
    assert not any("not compared" in n for n in result.report.notes)
    assert np.dtype(result.model.graph.outputs[0].dtype.numpy()) == np.float32


@pytest.mark.parametrize(("opset", "groups"), [(18, 4), (21, 8)])
def test_group_normalization_of_every_opset(tmp_path, opset, groups):
    """Opsets 18 to 20 give scale and bias by group; opset 21 deprecates that, runtimes have it."""
    shape = [2, 8, 3]
    nodes = [
        helper.make_node("GroupNormalization", ["x", "s", "s"], ["n"], num_groups=4),
        helper.make_node("Identity", ["n"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy")
    held = [onnx.numpy_helper.from_array(np.ones(groups, np.float32), "s")]
    imports = [helper.make_opsetid("", opset)]
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    proto = helper.make_model(graph, opset_imports=imports, ir_version=9)
    result = graphopt.optimize(proto, "clean, fold, fuse", measure=False)
    assert result.report.steps[0].edits == 1


@pytest.mark.parametrize("within", ["graph", "branch"])
def test_operators_that_the_runtime_adds_to_the_standard_domain(within):
    """Builders of language models write norms that only ONNX Runtime knows."""
    made = "n = SimplifiedLayerNormalization<axis = -1, epsilon = 0.00001>(x, s)"
    branch = (
        f"n = If(c) <then_branch = a () => (float[2, 8] t) {{ {made.replace('n =', 't =')} }}, "
    )
    branch += "else_branch = b () => (float[2, 8] e) { e = Neg(x) }>"
    text = f"""<ir_version: 9, opset_import: ["": 18]>
    g (float[2, 8] x, bool c) => (float[2, 8] y) <float[8] s = {{1, 2, 3, 4, 5, 6, 7, 8}}>
    {{ {made if within == "graph" else branch} y = Identity(n) }}"""
    proto = onnx.parser.parse_model(text)
    result = graphopt.optimize(proto, "clean, fold, fuse", measure=False)
    assert result.model.graph.node(0).op_type in ("SimplifiedLayerNormalization", "If")
    assert result.report.steps[0].edits == 1


def test_what_the_runtimes_own_optimizer_wrote_before_the_standard_had_it():
    """Opset 12 as `onnxruntime.transformers` leaves it: fused norms, domains not imported."""
    text = """<ir_version: 7, opset_import: ["": 12]>
    g (float[B, 4, 8] x) => (float[B, 4, 8] y)
    <float[8] s = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] b = {1, 0, 1, 0, 1, 0, 1, 0}>
    { n = LayerNormalization<axis = -1>(x, s, b) g = com.microsoft.Gelu(n)
      k = com.microsoft.SkipLayerNormalization(g, n, s, b) p = Softmax<axis = 2>(k)
      y = Identity(p) }"""
    proto = onnx.parser.parse_model(text)
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    want = run(ir.from_proto(proto), {"x": x})["y"]
    result = graphopt.optimize(proto, "clean, fold, fuse", measure=False)
    assert any("'com.microsoft'" in note for note in result.report.notes)
    np.testing.assert_allclose(run(result.model, {"x": x})["y"], want, rtol=1e-5)
    raise_opset(result.model, 17)
    assert [n.op_type for n in result.model.graph][-1] == "Softmax"  # over the last axis still
    np.testing.assert_allclose(run(result.model, {"x": x})["y"], want, rtol=1e-5)


def test_an_operator_that_nobody_knows_is_still_refused():
    text = """<ir_version: 9, opset_import: ["": 18]>
    g (float[2, 8] x) => (float[2, 8] y) { y = SimplifyLayerNormalization(x) }"""
    with pytest.raises(GraphOptError, match="SimplifyLayerNormalization"):
        graphopt.optimize(onnx.parser.parse_model(text), "clean", measure=False)
