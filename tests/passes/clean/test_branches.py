import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.clean.clean import Clean

from graphopt import Context
from graphopt.testing import check


def from_text(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def model(text: str) -> ir.Model:
    return from_text(f'<ir_version: 10, opset_import: ["" : 20, "f" : 1]> {text}')


IF = """g (float[3] x{more}) => (y) {{
    {condition}
    y = If(c) <
        then_branch = t () => (a) {{ k = Constant<value_float = 2.0>() a = Mul(x, k) }},
        else_branch = f () => (b) {{ b = Identity(x) }}
    >
}}"""


def operators(m: ir.Model) -> list[str]:
    return [n.op_type for n in m.graph.all_nodes()]


@pytest.mark.parametrize(("value", "left"), [(1, ["Mul"]), (0, ["Identity"])])
def test_a_constant_condition_picks_its_branch(value, left):
    condition = f"i = Constant<value_int = {value}>() c = Cast<to = 9>(i)"
    m = model(IF.format(more="", condition=condition))
    check(Clean(), m)
    assert operators(m) == left


def test_a_condition_on_static_shapes_is_constant():
    condition = "s = Size(x) n = Constant<value_int = 3>() c = Equal(s, n)"
    m = model(IF.format(more="", condition=condition))
    check(Clean(), m)
    assert operators(m) == ["Mul"]


def test_a_condition_that_is_an_input_stays():
    m = model(IF.format(more=", bool c", condition=""))
    check(Clean(), m, inputs={"c": np.array(True)})
    assert "If" in operators(m)


def test_names_of_an_inlined_branch_do_not_clash():
    m = model(
        """g (float[3] x, bool d) => (y, z) {
        t = Constant<value_int = 1>()
        c = Cast<to = 9>(t)
        y = If(c) <
            then_branch = p () => (a) { q = Exp(x) a = Neg(q) },
            else_branch = r () => (b) { b = Abs(x) }
        >
        z = If(d) <
            then_branch = p2 () => (a) { q = Sin(x) a = Neg(q) },
            else_branch = r2 () => (b) { b = Abs(x) }
        >
    }"""
    )
    check(Clean(), m, inputs={"d": np.array(True)})
    assert operators(m).count("If") == 1


LOOP = """g (float[3] x{more}) => (y, s) {{
    {count}
    t = Constant<value = bool {{1}}>()
    y, s = Loop(n, t, x) <
        body = b (int64 i, bool go, float[3] v) => (go2, w, o) {{
            go2 = Identity(go)
            f = Cast<to = 1>(i)
            w = Add(v, f)
            o = Mul(w, w)
        }}
    >
}}"""


def test_a_short_loop_becomes_its_turns():
    m = model(LOOP.format(more="", count="n = Constant<value_int = 3>()"))
    check(Clean(), m)
    assert "Loop" not in operators(m)
    assert operators(m).count("Mul") == 3


def test_a_long_loop_stays():
    m = model(LOOP.format(more="", count="n = Constant<value_int = 1000>()"))
    ctx = Context(m)
    Clean().run(m, ctx)
    assert "Loop" in operators(m)
    assert any("too many nodes" in r.reason for r in ctx.refusals)


def test_a_loop_of_unknown_length_stays():
    m = model(LOOP.format(more=", int64 n", count=""))
    Clean().run(m, Context(m))
    assert "Loop" in operators(m)


def test_a_loop_that_may_stop_early_stays():
    m = model(
        """g (float[3] x) => (y) {
        n = Constant<value_int = 3>()
        t = Constant<value = bool {1}>()
        lim = Constant<value_float = 5.0>()
        y = Loop(n, t, x) <
            body = b (int64 i, bool go, float[3] v) => (go2, w) {
                w = Add(v, v)
                m = ReduceMax<keepdims = 0>(w)
                go2 = Less(m, lim)
            }
        >
    }"""
    )
    Clean().run(m, Context(m))
    assert "Loop" in operators(m)
