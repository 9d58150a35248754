"""Value numbering: one term for what computes the same, and none of nodes that cannot be."""

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.analyses.shapes.analysis import infer, on_demand
from graphopt.proving.numbering import Walk
from graphopt.proving.terms import Terms


def numbered(*nodes, inputs="", domain=""):
    """The terms of the values of a graph, by name."""
    graph = onnx.parser.parse_graph(f"g ({inputs}) => () {{}}")
    graph.node.extend(nodes)
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=10,
    )
    model = ir.from_proto(proto)
    made = Walk(Terms(), model, infer(model))
    for node in model.graph:
        made.visit(node)
    return {v.name: term for v, term in made.values.items()}, made


def body(text):
    return onnx.parser.parse_graph(text)


LOOP = body(
    "b (int64 i, bool go, float[3] v) => (bool go2, float[3] w) { go2 = Identity(go) w = Neg(v) }"
)
THEN, ELSE = (body(f"t () => (float[3] p) {{ p = {op}(x) }}") for op in ("Relu", "Neg"))
THREE = helper.make_node("Constant", [], ["three"], value_int=3)
YES = helper.make_node(
    "Constant", [], ["yes"], value=helper.make_tensor("", TensorProto.BOOL, [], [1])
)


@pytest.mark.parametrize(
    "nodes",
    [
        [THREE, YES, helper.make_node("Loop", ["three", "yes", "x"], ["y", "z"], body=LOOP)],
        [YES, helper.make_node("If", ["yes"], ["y", "z"], then_branch=THEN, else_branch=ELSE)],
        [helper.make_node("If", ["c"], ["y", "z"], then_branch=THEN, else_branch=ELSE)],
        [helper.make_node("CastLike", ["x", "x"], ["y", "z"])],
    ],
    ids=lambda nodes: f"{nodes[-1].op_type}{len(nodes)}",
)
def test_outputs_that_a_node_cannot_have_are_unknown(nodes):
    terms, _ = numbered(*nodes, inputs="float[3] x, bool c")
    assert terms["y"] is not terms["z"]
    assert terms["y"].tensor is None


def test_elements_of_another_type_than_the_value_are_unknown():
    shape = helper.make_node("Constant", [], ["s"], value_ints=[2, 3])
    floats = helper.make_node("Constant", [], ["f"], value_floats=[1.0, 2.0])
    terms, made = numbered(shape, floats, helper.make_node("Concat", ["s", "f"], ["y"], axis=0))
    fact = next(made.facts.fact(v) for v in made.values if v.name == "y")
    assert (fact.dtype, fact.data) == (ir.DataType.INT64, None)
    assert terms["y"].tensor is None


def test_types_and_texts_in_attributes_tell_nodes_apart():
    kinds = [helper.make_tensor_type_proto(t, [5]) for t in (TensorProto.FLOAT, TensorProto.INT64)]
    options = [helper.make_node("Optional", [], [f"o{k}"], type=kinds[min(k, 1)]) for k in range(3)]
    terms, _ = numbered(*options)
    assert terms["o1"] is terms["o2"]
    assert terms["o0"] is not terms["o1"]
    keys = [helper.make_tensor("", TensorProto.STRING, [1], [text]) for text in (b"a", b"b")]
    coded = [
        helper.make_node(
            "LabelEncoder", ["x"], [f"y{k}"], domain="ai.onnx.ml",
            keys_strings=None, keys_tensor=keys[min(k, 1)], values_int64s=[1],
        )
        for k in range(3)
    ]  # fmt: skip
    terms, _ = numbered(*coded, inputs="string[3] x")
    assert terms["y1"] is terms["y2"]
    assert terms["y0"] is not terms["y1"]


def test_shapes_of_what_another_graph_computes_too_are_not_inferred_again():
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 17]>
        g (float[N, 6] x) => (float[N, 2, 3] y) <int64[3] s = {0, 2, 3}> {
            a = Relu(x)  r = Reshape(a, s)  n = Shape(a)  y = Neg(r)
        }
    """)
    terms, asked = Terms(), []

    def walked():
        model = ir.from_proto(proto)
        facts = on_demand(model)
        infer_node = facts._infer_node
        facts._infer_node = lambda node, *more: (
            asked.append(node.op_type) or infer_node(node, *more)
        )
        made = Walk(terms, model, facts)
        for node in model.graph:
            made.visit(node)
        return {v.name: (term, made.facts.fact(v)) for v, term in made.values.items()}

    first = walked()
    assert asked == ["Relu", "Reshape", "Shape", "Neg"]
    second = walked()
    assert len(asked) == 4
    assert first.keys() == second.keys()
    for name, (term, fact) in first.items():
        other, again = second[name]
        assert other is term
        assert (again.dtype, again.dims) == (fact.dtype, fact.dims)
        assert (again.data is None) == (fact.data is None)
