"""A model that kills the runtime: the tool lives on and says which division it was."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import ModelError
from graphopt.execution.guard import fatal_division
from graphopt.execution.runtime import opened, run

SMALLEST = {np.int64: -(2**63), np.int32: -(2**31)}


def division(dtype=np.int64, *, divisor=None, nodes=(), inputs=("a", "b"), op="Div"):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    made = [*nodes, helper.make_node(op, ["a", "b"], ["y"], name="quotient")]
    inits = [] if divisor is None else [numpy_helper.from_array(np.array(divisor, dtype), "b")]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(n, kind, [None]) for n in inputs if n != "b" or not inits],
        [helper.make_tensor_value_info("y", kind, [None])],
        inits,
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    )


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_the_smallest_number_by_minus_one(dtype):
    model = division(dtype)
    fine = {"a": np.array([-7, 9], dtype), "b": np.array([2, -1], dtype)}
    assert run(model, fine)["y"].tolist() == [-3, -9]
    bad = {"a": np.array([SMALLEST[dtype]], dtype), "b": np.array([-1], dtype)}
    with pytest.raises(ModelError, match=r"ONNX Runtime died \(SIGFPE\).*Div 'quotient'"):
        run(model, bad)
    with opened(model) as predict:
        assert predict(fine)["y"].tolist() == [-3, -9]
        with pytest.raises(ModelError, match="died"):
            predict(bad)


def test_what_the_runtime_says_comes_back():
    with pytest.raises(ModelError, match="division by zero"):
        run(division(), {"a": np.array([1]), "b": np.array([0])})


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (division(), "Div 'quotient'"),
        (division(np.float32), ""),
        (division(np.uint8), ""),
        (division(divisor=[2]), ""),
        (division(divisor=[-1]), "Div 'quotient'"),
        (division(op="Mul"), ""),
        (division(nodes=[helper.make_node("Shape", ["a"], ["b"])], inputs=("a",)), ""),
        (division(nodes=[helper.make_node("Neg", ["a"], ["b"])], inputs=("a",)), "Div 'quotient'"),
    ],
)
def test_only_divisions_that_may_kill_are_guarded(model, found):
    assert fatal_division(model) == found


@pytest.mark.parametrize("spec", ["clean, fold, fuse", "fold"])
def test_optimizing_survives_it(tmp_path, spec):
    smallest, minus_one = np.array([SMALLEST[np.int64]]), np.array([-1])
    graph = helper.make_graph(
        [
            helper.make_node("Div", ["s", "m"], ["q"], name="quotient"),
            helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "f"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(smallest, "s"), numpy_helper.from_array(minus_one, "m")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    result = graphopt.optimize(ir.from_proto(proto), spec, measure=False)
    assert any("died (SIGFPE)" in n and "quotient" in n for n in result.report.notes)
