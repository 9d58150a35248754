import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.graph.evaluation import deterministic, evaluate, quick

OPSETS = {"": 20}


def node(op_type, count, domain="", outputs=1, **attributes):
    inputs = [ir.Value(name=f"x{k}") for k in range(count)]
    made = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
    for k, value in enumerate(made.outputs):
        value.name = f"y{k}"
    return made


def i64(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("op_type", "attributes", "inputs", "expected"),
    [
        ("Div", {}, (i64(-7, 7), i64(2, -2)), i64(-3, -3)),  # towards zero, unlike Python
        ("Slice", {}, (i64(0, 1, 2, 3), i64(3), i64(-9), i64(0), i64(-2)), i64(3, 1)),
        ("Gather", {"axis": 0}, (i64(5, 6, 7), i64(-1, 0)), i64(7, 5)),
        ("Reshape", {}, (np.ones((2, 3)), i64(0, -1)), np.ones((2, 3))),
        ("ReduceSum", {"keepdims": 0}, (i64(1, 2, 3),), np.array(6)),
        ("Range", {}, (i64(5)[0], i64(0)[0], i64(-2)[0]), i64(5, 3, 1)),
        ("Unsqueeze", {}, (i64(1, 2), i64(0, -1)), i64(1, 2).reshape(1, 2, 1)),
        ("Shape", {"start": 1}, (np.zeros((2, 3, 4)),), i64(3, 4)),
        ("Where", {}, (np.array([True, False]), i64(1, 2), i64(3, 4)), i64(1, 4)),
    ],
)
def test_numpy_gives_what_the_runtime_gives(op_type, attributes, inputs, expected):
    made = node(op_type, len(inputs), **attributes)
    (mine,) = quick(made, inputs)
    assert np.array_equal(mine, expected)
    assert mine.dtype == expected.dtype
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(made)], "g",
        [onnx.helper.make_tensor_value_info(f"x{k}", onnx.helper.np_dtype_to_tensor_dtype(
            np.asarray(x).dtype), np.shape(x)) for k, x in enumerate(inputs)],
        [onnx.ValueInfoProto(name="y0")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    from onnx.reference import ReferenceEvaluator

    feeds = {f"x{k}": np.asarray(x) for k, x in enumerate(inputs)}
    assert np.array_equal(ReferenceEvaluator(model).run(None, feeds)[0], mine)


@pytest.mark.parametrize(
    ("op_type", "attributes", "inputs"),
    [
        ("Div", {}, (i64(1), i64(0))),
        ("Gather", {}, (i64(1, 2), i64(2))),
        ("Cast", {"to": ir.DataType.INT32.value}, (np.array([np.nan]),)),
        ("Cast", {"to": ir.DataType.INT8.value}, (np.array([128.0]),)),
        ("Reshape", {}, (np.ones(3), i64(2))),
        ("ReduceMax", {}, (np.ones(0),)),
        ("Range", {}, (i64(0)[0], i64(1)[0], i64(0)[0])),
    ],
)
def test_what_numpy_does_not_define_plainly_is_left_to_the_runtime(op_type, attributes, inputs):
    assert quick(node(op_type, len(inputs), **attributes), inputs) is None


def test_the_runtime_computes_what_is_not_in_the_table():
    x = np.array([[1, 4], [3, 2]], np.float32)
    values, places = evaluate(node("TopK", 2, outputs=2), (x, i64(1)), OPSETS)
    assert values.tolist() == [[4], [3]]
    assert places.tolist() == [[1], [0]]


def test_an_operator_that_nothing_here_has_gives_none():
    assert evaluate(node("NoSuchOperator", 1), (i64(1),), OPSETS) is None


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (node("Relu", 1), True),
        (node("RandomNormal", 0, shape=[2]), False),
        (node("Dropout", 1), False),
        (node("BatchNormalization", 5, training_mode=1), False),
        (node("BatchNormalization", 5, training_mode=0), True),
        (node("Gelu", 1, domain="com.microsoft"), False),
    ],
    ids=lambda v: v.op_type if isinstance(v, ir.Node) else "",
)
def test_what_may_be_evaluated_is_a_function_of_its_inputs(made, expected):
    assert deterministic(made) is expected
    if not expected:
        assert evaluate(made, (), OPSETS) is None
