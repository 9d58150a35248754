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


def test_what_a_turn_passes_on_need_not_go_through_an_operator():
    m = model(
        """g (float[3] x) => (float[3] y, float[3, 3] s) {
        n = Constant<value_int = 3>()
        t = Constant<value = bool {1}>()
        y, s = Loop(n, t, x) <
            body = b (int64 i, bool go, float[3] v) => (bool go, float[3] w, float[3] v) {
                w = Add(v, v)
            }
        >
    }"""
    )
    check(Clean(), m)
    assert "Loop" not in operators(m)


def test_a_branch_may_give_one_of_its_initializers():
    text = IF.format(more="", condition="i = Constant<value_int = 1>() c = Cast<to = 9>(i)")
    m = model(text)
    branch = next(n for n in m.graph if n.op_type == "If").attributes["then_branch"].as_graph()
    given = ir.Value(name="given", const_value=ir.tensor(np.ones(3, np.float32)))
    branch.register_initializer(given)
    branch.outputs[0] = given
    check(Clean(), m)
    assert "If" not in operators(m)


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


#: How exporters write a condition on the shapes of x [2, b, 4] before they test it.
DECIDED = {
    "a size": "d = Gather(s, zero) c = Cast<to = 9>(d)",
    "a size of one element": "d = Gather(s, zeros) q = Squeeze(d, zeros) c = Cast<to = 9>(q)",
    "squeezed without axes": "d = Gather(s, zeros) q = Squeeze(d) c = Cast<to = 9>(q)",
    "a slice": "d = Slice(s, zeros, ones) q = Reshape(d, none) c = Cast<to = 9>(q)",
    "vectors": "d = Gather(s, ends) e = Equal(d, sizes) i = Cast<to = 7>(e) "
    "p = ReduceProd<keepdims = 0>(i) c = Cast<to = 9>(p)",
    "the rank": "n = Size(s) three = Constant<value_int = 3>() c = Equal(n, three)",
    "a size of no number": "d = Gather(s, ones) o = Add(d, ones) q = Squeeze(o) "
    "c = Cast<to = 9>(q)",
}
CONSTANTS = """zero = Constant<value_int = 0>() zeros = Constant<value_ints = [0]>()
    ones = Constant<value_ints = [1]>() ends = Constant<value_ints = [0, 2]>()
    sizes = Constant<value_ints = [2, 4]>() none = Constant<value = int64[0] {}>()"""


@pytest.mark.parametrize("how", DECIDED)
@pytest.mark.parametrize("where", ["outside", "in a branch"])
def test_a_condition_that_follows_from_shapes_is_decided_wherever_it_stands(how, where):
    inner = f"""{CONSTANTS} s = Shape(x) {DECIDED[how]}
        k = If(c) <then_branch = p () => (float[2, b, 4] a) {{ a = Exp(x) }},
                   else_branch = q () => (float[2, b, 4] h) {{ h = Abs(x) }}>"""
    text = inner.replace("k = If", "y = If")
    if where == "in a branch":
        text = f"""y = If(w) <then_branch = t () => (float[2, b, 4] k) {{ {inner} }},
                              else_branch = e () => (float[2, b, 4] z) {{ z = Neg(x) }}>"""
    more = ", bool w" if where == "in a branch" else ""
    m = model(f"g (float[2, b, 4] x{more}) => (y) {{ {text} }}")
    given = {"w": np.array(True)} if more else {}
    check(Clean(), m, inputs={"x": np.ones((2, 3, 4), np.float32), **given})
    assert sorted(operators(m)) == (["Exp", "If", "Neg"] if more else ["Exp"])


def test_what_follows_a_decided_branch_is_decided_by_that_branch():
    m = model(
        f"""g (float[2, 1, 4] x) => (y) {{
        {CONSTANTS} s = Shape(x) d = Gather(s, ones) q = Squeeze(d) c = Cast<to = 9>(q)
        r = If(c) <then_branch = p () => (float[2, 4] a) {{ a = Squeeze(x, ones) }},
                   else_branch = q () => (float[2, 1, 4] b) {{ b = Identity(x) }}>
        t = Shape(r) n = Size(t) two = Constant<value_int = 2>() e = Equal(n, two)
        y = If(e) <then_branch = u () => (float[2, 4] f) {{ f = Exp(r) }},
                   else_branch = v () => (float[2, 4] h) {{ h = Abs(r) }}>
    }}"""
    )
    check(Clean(), m)
    assert operators(m) == ["Squeeze", "Exp"]
