"""The graph check: what the ONNX checker insists on beside the standard is not asked for."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt.errors import ModelError
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
