"""Raising the opset: outputs stay, nothing is lost, what cannot be done is said."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.context import Context
from graphopt.errors import InputError, ModelError
from graphopt.execution.runtime import run
from graphopt.rewriting.opset import limit_opset, raise_for, raise_opset
from graphopt.testing import parse_model

F = np.float32


def model(
    op: str,
    opset: int,
    shape: tuple[int, ...] = (2, 6, 4),
    constants: dict[str, np.ndarray] | None = None,
    **attributes: object,
) -> ir.Model:
    """y = Relu(op(x, *constants))"""
    constants = constants or {}
    outputs = ["h", "indices"] if op == "TopK" else ["h"]
    graph = helper.make_graph(
        [
            helper.make_node(op, ["x", *constants], outputs, name="it", **attributes),
            helper.make_node("Relu", ["h"], ["y"], name="relu"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 3)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.from_proto(proto)


CHANGED = {
    "Softmax over the rest": ("Softmax", 11, {"axis": 1}, {}),
    "Softmax last": ("Softmax", 9, {"axis": 2}, {}),
    "LogSoftmax": ("LogSoftmax", 12, {"axis": 1}, {}),
    "Squeeze": ("Squeeze", 11, {"axes": [1]}, {}),
    "Unsqueeze": ("Unsqueeze", 11, {"axes": [0, 2]}, {}),
    "ReduceSum": ("ReduceSum", 11, {"axes": [1], "keepdims": 0}, {}),
    "ReduceMean": ("ReduceMean", 13, {"axes": [-1]}, {}),
    "ReduceMax": ("ReduceMax", 11, {"axes": [1, 2]}, {}),
    "Pad": ("Pad", 9, {"pads": [0, 1, 0, 0, 0, 2], "value": 2.0}, {}),
    "Clip": ("Clip", 9, {"min": -0.5, "max": 0.5}, {}),
    "Slice": ("Slice", 9, {"axes": [1], "starts": [1], "ends": [4]}, {}),
    "Upsample": ("Upsample", 9, {"mode": "nearest"}, {"s": np.array([1, 2, 2], F)}),
    "Resize": ("Resize", 10, {"mode": "nearest"}, {"s": np.array([1, 1.5, 2], F)}),
    "Resize linear": ("Resize", 10, {"mode": "linear"}, {"s": np.array([1, 1.5, 2], F)}),
    "Upsample linear": ("Upsample", 9, {"mode": "linear"}, {"s": np.array([1, 3, 2], F)}),
    "TopK": ("TopK", 10, {"axis": 1}, {"k": np.array([3])}),
    "BatchNormalization": ("BatchNormalization", 8, {}, dict.fromkeys("sbmv", np.ones(6, F))),
    "Split": ("Split", 13, {"axis": 1}, {}),
    "AveragePool": ("AveragePool", 7, {"kernel_shape": [2], "pads": [1, 0]}, {}),
    "MaxPool": ("MaxPool", 7, {"kernel_shape": [2]}, {}),
    "PRelu": ("PRelu", 7, {}, {"a": np.full((6, 1), 0.1, F)}),
    "ReduceLogSumExp": ("ReduceLogSumExp", 11, {"axes": [1]}, {}),
    "Dropout": ("Dropout", 9, {"ratio": 0.5}, {}),
    "Flatten": ("Flatten", 9, {"axis": 2}, {}),
    "Gemm": ("MatMul", 9, {}, {"w": np.ones((4, 3), F)}),
    "Reshape": ("Reshape", 7, {}, {"s": np.array([6, -1])}),
    "Cast": ("Cast", 9, {"to": TensorProto.FLOAT}, {}),
    "Split by sizes": ("Split", 11, {"axis": 1, "split": [6]}, {}),
}


@pytest.mark.parametrize("case", CHANGED)
@pytest.mark.parametrize("version", [13, 18, 23])
def test_outputs_stay(case, version):
    op, opset, attributes, constants = CHANGED[case]
    shape = (2, 1, 4) if op == "Squeeze" else (2, 6, 4)
    one = model(op, opset, shape, constants, **attributes)
    x = {"x": np.random.default_rng(0).standard_normal(shape).astype(F)}
    before = run(one, x)["y"]
    raised = raise_opset(one, version)
    assert raised == (opset < version)
    assert one.graph.opset_imports[""] == max(version, opset)
    onnx.checker.check_model(ir.to_proto(one))
    assert np.array_equal(run(one, x)["y"], before)
    assert one.graph.node("it").outputs[0].name == "h"
    assert raise_opset(one, version) is False


def test_only_changed_nodes_are_touched(tmp_path):
    one = model("Softmax", 11, axis=2)
    relu = one.graph.node("relu")
    relu.metadata_props["key"] = "value"
    raise_opset(one, 21)
    assert one.graph.node("relu") is relu
    assert relu.metadata_props == {"key": "value"}


def test_equal_nodes_have_constants_of_their_own():
    text = """<ir_version: 4, opset_import: ["" : 9]>
    g (float[2, 3] x, float[2, 3] z) => (float[2, 5] y) {
        a = Pad<mode = "constant", pads = [0, 1, 0, 1]>(x)
        b = Pad<mode = "constant", pads = [0, 1, 0, 1]>(z)
        y = Sub(a, b)
    }"""
    old = ir.from_proto(onnx.parser.parse_model(text))
    for k, node in enumerate(old.graph):
        node.name = f"n{k}"
    made = old.clone()
    raise_opset(made, 13)
    feeds = {"x": np.arange(6, dtype=F).reshape(2, 3), "z": np.ones((2, 3), F)}
    np.testing.assert_array_equal(run(made, feeds)["y"], run(old, feeds)["y"])


def test_subgraphs_functions_and_foreign_domains():
    """Branches are converted with the model; functions by their own opset; others left alone."""
    branch = helper.make_graph(
        [helper.make_node("Squeeze", ["x"], ["t"], axes=[0])],
        "b",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
            helper.make_node("Mine", ["x"], ["z"], domain="f"),
            helper.make_node("Foreign", ["x"], ["w"], domain="com.foreign", axes=[1]),
        ],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3]),
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "yz"],
    )
    imports = [helper.make_opsetid(d, v) for d, v in (("", 12), ("f", 1), ("com.foreign", 1))]
    function = helper.make_function(
        "f", "Mine", ["a"], ["b"], [helper.make_node("Clip", ["a"], ["b"])], imports[:1]
    )
    proto = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))
    one: ir.Model = ir.from_proto(proto)
    raise_opset(one, 20)
    inner = one.graph[0].attributes["then_branch"].as_graph()
    assert "Squeeze" in {n.op_type for n in inner}
    squeeze = next(n for n in inner if n.op_type == "Squeeze")
    assert len(squeeze.inputs) == 2
    assert [n.op_type for n in one.graph] == ["If", "Mine", "Foreign"]
    assert [f.opset_imports[""] for f in one.functions.values()] == [20]
    assert one.graph.opset_imports == {"": 20, "f": 1, "com.foreign": 1}
    assert one.ir_version >= 9


@pytest.mark.parametrize(
    ("op", "opset", "attributes"),
    [
        ("GroupNormalization", 18, {"num_groups": 2}),  # scale per group became scale per channel
        ("Hardmax", 11, {"axis": 1}),  # flattened what follows the axis
        ("Scan", 8, {"num_scan_inputs": 1}),  # had a batch axis
        ("ImageScaler", 8, {"scale": 2.0}),  # was an experiment, and ended
    ],
)
def test_refusal_names_the_node_and_changes_nothing(op, opset, attributes):
    constants = {} if op == "Hardmax" else dict.fromkeys("sb", np.ones(2, F))
    one = model(op, opset, constants=constants, **attributes)
    before = str(one)
    with pytest.raises(ModelError, match=f"{op} 'it'"):
        raise_opset(one, 21)
    assert str(one) == before


def test_unknown_version():
    with pytest.raises(ModelError, match="opset 999"):
        raise_opset(model("Relu", 11), 999)


def test_weights_stay_mapped(tmp_path):
    path = tmp_path / "m.onnx"
    one = model("MatMul", 8, constants={"w": np.ones((4, 500), F)})
    graphopt.save(one, path)
    mapped = graphopt.load(path)
    tensor = mapped.graph.initializers["w"].const_value
    assert raise_opset(mapped, 21)
    assert mapped.graph.initializers["w"].const_value is tensor


def test_a_limit_holds_for_every_pass_and_is_said():
    scores = parse_model(
        "q = MatMul(x, wq)\nk = MatMul(x, wk)\nt = Transpose<perm=[0, 2, 1]>(k)\n"
        "s = MatMul(q, t)\nd = Div(s, c)\np = Softmax<axis=-1>(d)\ny = MatMul(p, x)",
        inputs={"x": (2, 3, 8)},
        constants={
            "wq": np.ones((8, 8), np.float32),
            "wk": np.eye(8, dtype=np.float32),
            "c": np.array(2.8, np.float32),
        },
        opset=17,
    )
    free = graphopt.optimize(scores, "fuse", target="onnx", measure=False)
    held = graphopt.optimize(scores, "fuse", target="onnx", measure=False, max_opset=17)
    assert held.model.graph.opset_imports[""] == 17
    again = graphopt.optimize(scores, "fuse", target="onnx", replay=held.recipe)
    assert again.recipe == held.recipe
    assert again.model.graph.opset_imports[""] == 17
    with pytest.raises(InputError, match="another max opset"):
        graphopt.optimize(scores, "fuse", target="onnx", replay=held.recipe, max_opset=18)
    reached = free.model.graph.opset_imports[""]
    said = any(f"opset 17 became {reached}" in n for n in free.report.steps[0].notes)
    assert said == (reached > 17)
    limit_opset(scores, 18)
    with pytest.raises(ModelError, match="18 at most"):
        raise_opset(scores, 19)


def test_a_model_that_cannot_be_raised_for_a_pass_has_a_note_and_no_edit():
    model = parse_model("y = Relu(x)", inputs={"x": (2,)}, opset=12)
    limit_opset(model, 12)
    ctx = Context(model)
    assert not raise_for("int8", model, ctx, 13)
    assert not ctx.edits
    assert ctx.notes == ["int8 needs opset 13 or newer: it may be raised to 12 at most"]
    assert model.graph.opset_imports[""] == 12
