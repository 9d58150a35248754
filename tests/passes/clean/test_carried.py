import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.clean.clean import Clean

from graphopt import optimize
from graphopt.graph.traverse import all_nodes
from graphopt.testing import check


def model(text: str) -> ir.Model:
    header = '<ir_version: 10, opset_import: ["" : 20]>'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(header + text)))


LOOP = """g (float[1,4] x, int64 n) => (float[1,4] y, float[4,4] v, float[k,1,4] steps)
<float[4,4] w = {1.0,0.5,0.0,0.0, 0.0,1.0,0.0,0.5, 0.25,0.0,1.0,0.0, 0.0,0.0,0.0,1.0}>
{
    y, v, steps = Loop(n, , x, w) <body = b (int64 i, bool c, float[1,4] s, float[4,4] u)
        => (bool c2, float[1,4] s2, float[4,4] u2, float[1,4] t)
    {
        c2 = Identity(c)
        m = MatMul(s, u)
        s2 = Tanh(m)
        u1 = Identity(u)
        u2 = Identity(u1)
        t = Neg(s2)
    }>
}"""


def loop(m: ir.Model) -> ir.Node:
    return next(n for n in all_nodes(m.graph) if n.op_type in ("Loop", "Scan"))


@pytest.mark.parametrize("turns", [0, 1, 5])
def test_what_no_turn_changes_is_read_from_outside(turns):
    """s' = tanh(s W): W is carried along, and comes out as it went in, after no turns too."""
    m = model(LOOP)
    check(Clean(), m, inputs={"n": np.array(turns, np.int64)})
    node = loop(m)
    body = node.attributes["body"].as_graph()
    assert (len(node.inputs), len(body.inputs), len(body.outputs)) == (3, 3, 3)
    (product,) = [n for n in body if n.op_type == "MatMul"]
    assert product.inputs[1] is m.graph.initializers["w"]
    assert [v.name for v in m.graph.outputs] == ["y", "v", "steps"]


def test_the_edit_is_proved():
    result = optimize(model(LOOP), "clean", measure=False)
    (step,) = result.report.steps
    assert step.evidence is not None
    assert (step.evidence.proved > 0, step.evidence.checked, step.evidence.assumed) == (True, 0, 0)


def test_edits_beside_carried_state_are_proved():
    """tanh(x W + b) -> FusedGemm(x, W, b) in a body that carries W: both graphs have one term."""
    text = LOOP.replace("s2 = Tanh(m)", "a = Add(m, k) s2 = Tanh(a)")
    text = text.replace("<float[4,4] w", "<float[4] k = {0.5, 0.25, 1.0, 2.0}, float[4,4] w")
    result = optimize(model(text), "fuse", measure=False)
    (step,) = result.report.steps
    assert "FusedGemm" in {n.op_type for n in all_nodes(result.model.graph)}
    assert step.evidence is not None
    assert (step.evidence.proved > 0, step.evidence.checked, step.evidence.assumed) == (True, 0, 0)


def test_a_scan_carries_its_weights_in_the_same_way():
    m = model(
        """g (float[1,4] x, float[5,1,4] xs) => (float[1,4] y, float[5,1,4] ys) <float[4,4] w = {
        1.0,0.5,0.0,0.0, 0.0,1.0,0.0,0.5, 0.25,0.0,1.0,0.0, 0.0,0.0,0.0,1.0}>
        {
            y, v, ys = Scan <num_scan_inputs = 1, body = b
                (float[1,4] s, float[4,4] u, float[1,4] p)
                => (float[1,4] s2, float[4,4] u2, float[1,4] q)
            {
                m = MatMul(s, u)
                s2 = Add(m, p)
                u2 = Identity(u)
                q = Neg(s2)
            }> (x, w, xs)
        }"""
    )
    check(Clean(), m)
    node = loop(m)
    assert (len(node.inputs), len(node.outputs)) == (2, 2)


@pytest.mark.parametrize(
    "u2",
    ["u2 = Mul(u, k)", "u2 = Identity(s)"],
    ids=["changed", "another state"],
)
def test_state_that_a_turn_changes_stays(u2):
    m = model(
        f"""g (float[4] x, float[4] z, int64 n) => (float[4] y, float[4] v) <float k = {{2.0}}>
        {{
            y, v = Loop(n, , x, z) <body = b (int64 i, bool c, float[4] s, float[4] u)
                => (bool c2, float[4] s2, float[4] u2)
            {{ c2 = Identity(c) s2 = Add(s, u) {u2} }}>
        }}"""
    )
    check(Clean(), m, inputs={"n": np.array(3, np.int64)})
    assert len(loop(m).inputs) == 4


def test_products_of_a_loop_become_integers():
    """A recurrent layer as a loop: the matrix is carried, and kept in integers of 8 bits."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(256, 256)).astype(np.float32) / 16
    m = model(
        """g (float[1,256] x, float[256,256] w, int64 n) => (float[1,256] y)
        {
            y, v = Loop(n, , x, w) <body = b (int64 i, bool c, float[1,256] s, float[256,256] u)
                => (bool c2, float[1,256] s2, float[256,256] u2)
            {
                c2 = Identity(c)
                m = MatMul(s, u)
                s2 = Tanh(m)
                u2 = Identity(u)
            }>
        }"""
    )
    m.graph.inputs[1].replace_all_uses_with(weight := ir.Value(name="w_held"))
    m.graph.inputs.pop(1)
    weight.const_value = ir.tensor(w, name="w_held")
    m.graph.register_initializer(weight)
    runs = [
        {"x": rng.normal(size=(1, 256)).astype(np.float32), "n": np.array(3, np.int64)}
        for _ in range(8)
    ]
    result = optimize(m, "int8", samples=runs, measure=False)
    assert [step.status for step in result.report.steps] == ["kept"]
    assert result.report.after.bytes < 0.4 * result.report.before.bytes
    (product,) = [n for n in all_nodes(result.model.graph) if n.op_type == "MatMulNBits"]
    assert product.graph is loop(result.model).attributes["body"].as_graph()
