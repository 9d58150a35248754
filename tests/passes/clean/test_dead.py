import numpy as np
import onnx
import onnx_ir as ir
from graphopt.passes.clean.clean import Clean

from graphopt import Context
from graphopt.testing import check


def from_text(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def model(text: str) -> ir.Model:
    return from_text(f'<ir_version: 10, opset_import: ["" : 20, "f" : 1]> {text}')


def test_unused_nodes_and_initializers_go():
    m = model("g (float[3] x) => (y) <float[3] w = {1, 2, 3}> { a = Exp(x) b = Neg(a) y = Abs(x) }")
    check(Clean(), m, after="y = Abs(x)", inputs={"x": (3,)})
    assert not m.graph.initializers


def test_optional_outputs_that_nothing_reads_go():
    m = model(
        "g (float[2, 3] x) => (y) <float[3] s = {1, 2, 3}> "
        "{ y, mean, inv = LayerNormalization(x, s) }"
    )
    check(Clean(), m)
    assert len(m.graph.node(0).outputs) == 1


def test_an_unread_output_between_read_ones_loses_its_name():
    m = model(
        "g (float[2, 3, 4] x, float[1, 20, 4] w, float[1, 20, 5] r) => (y, c) "
        "{ y, h, c = LSTM<hidden_size = 5>(x, w, r) }"
    )
    check(Clean(), m)
    assert [o.name for o in m.graph.node(0).outputs] == ["y", "", "c"]


def test_required_outputs_stay():
    check(
        Clean(),
        model("g (float[4] x) => (y) { y, b = Split<num_outputs = 2>(x) }"),
        unchanged=True,
    )


def test_a_dead_branch_lets_go_of_what_it_read():
    m = model(
        """g (bool c, float[3] x) => (y) {
        e = Exp(x)
        z = If(c) <
            then_branch = t () => (a) { a = Neg(e) },
            else_branch = f () => (b) { b = Abs(e) }
        >
        y = Relu(x)
    }"""
    )
    check(Clean(), m, inputs={"c": np.array(True)})
    assert [n.op_type for n in m.graph.all_nodes()] == ["Relu"]


def test_denied_edits_leave_everything():
    m = model("g (float[3] x) => (y) { a = Identity(x) b = Neg(a) y = Abs(a) }")
    assert Clean().run(m, Context(m, allow=lambda edit: False)) == 0
    assert len(list(m.graph)) == 3


def test_functions_are_inlined():
    text = """<ir_version: 10, opset_import: ["" : 20, "f" : 1]>
    g (float[3] x) => (y) { a = f.twice(x) y = f.twice(a) }
    <domain: "f", opset_import: ["" : 20]> twice (x) => (y) { y = Add(x, x) }"""
    m = from_text(text)
    check(Clean(), m)
    assert [n.op_type for n in m.graph] == ["Add", "Add"]
    assert not m.functions
