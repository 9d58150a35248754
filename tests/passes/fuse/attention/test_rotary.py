import numpy as np
import onnx
import onnx_ir as ir
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

ANGLES = np.outer(np.arange(5), 1.0 / 10 ** np.arange(3)).astype(np.float32)
BOTH = np.concatenate([ANGLES, ANGLES], -1)
CONSTANTS = {
    "zero": np.array([0]),
    "half": np.array([3]),
    "end": np.array([2**63 - 1]),
    "last": np.array([3]),
    "cos": np.cos(BOTH)[None, None],
    "sin": np.sin(BOTH)[None, None],
    "into": np.array([2, 5, 4, 6]),
}
BODY = """a = Mul(x, cos)
    b = Slice(x, zero, half, last)
    c = Slice(x, half, end, last)
    d = Neg(c)
    e = Concat <axis=-1> (d, b)
    f = Mul(e, sin)
    y = Add(a, f)"""
X = {"x": (2, 4, 5, 6)}


def test_halves():
    model = check(Fuse(), BODY, inputs=X, constants=CONSTANTS, opset=23)
    assert [n.op_type for n in model.graph] == ["RotaryEmbedding"]


def test_packed_heads_stay_packed():
    before = (
        "h = Reshape(x, into)  z = Transpose <perm=[0, 2, 1, 3]> (h)  "
        + BODY.replace("(x,", "(z,").replace("y = Add", "o = Add")
        + "  y = Transpose <perm=[0, 2, 1, 3]> (o)"
    )
    model = check(Fuse(), before, inputs={"x": (2, 5, 24)}, constants=CONSTANTS, opset=23)
    assert [n.op_type for n in model.graph] == ["RotaryEmbedding", "Reshape"]


PAIRS = """a = Mul(x, cos)
    b = Slice(x, zero, end, last, two)
    c = Slice(x, one, end, last, two)
    d = Neg(c)
    g = Unsqueeze(d, four)
    h = Unsqueeze(b, four)
    i = Concat <axis=-1> (g, h)
    e = Reshape(i, shape)
    f = Mul(sin, e)
    y = Add(f, a)"""
TWICE = np.repeat(ANGLES, 2, axis=-1)
MORE = {
    **CONSTANTS,
    "one": np.array([1]),
    "two": np.array([2]),
    "four": np.array([4]),
    "six": np.array([6]),
    "shape": np.array([2, 4, 5, 6]),
}


def test_pairs():
    constants = {**MORE, "cos": np.cos(TWICE)[None, None], "sin": np.sin(TWICE)[None, None]}
    model = check(Fuse(), PAIRS, inputs=X, constants=constants, opset=23)
    assert [n.op_type for n in model.graph] == ["RotaryEmbedding"]


def test_pairs_with_positions_before_heads():
    tables = {"cos": np.cos(TWICE)[None, :, None], "sin": np.sin(TWICE)[None, :, None]}
    constants = {**MORE, **tables, "shape": np.array([2, 5, 4, 6])}
    model = check(Fuse(), PAIRS, inputs={"x": (2, 5, 4, 6)}, constants=constants, opset=23)
    assert [n.op_type for n in model.graph] == ["Reshape", "RotaryEmbedding", "Reshape"]


def test_halves_are_no_pairs():
    check(Fuse(), PAIRS, because="halves", inputs=X, constants=MORE, opset=23)


PART = "x = Slice(w, zero, six, last)  r = Slice(w, six, end, last)  "


def test_a_part_of_the_channels():
    before = PART + BODY.replace("y = Add", "o = Add") + "  y = Concat <axis=-1> (o, r)"
    model = check(Fuse(), before, inputs={"w": (2, 4, 5, 10)}, constants=MORE, opset=23)
    (node,) = model.graph
    assert node.attributes["rotary_embedding_dim"].as_int() == 6


def test_a_part_of_the_channels_with_positions_before_heads():
    tables = {"cos": np.cos(TWICE)[None, :, None], "sin": np.sin(TWICE)[None, :, None]}
    constants = {**MORE, **tables, "shape": np.array([2, 5, 4, 6])}
    before = PART + PAIRS.replace("y = Add", "o = Add") + "  y = Concat <axis=-1> (o, r)"
    model = check(Fuse(), before, inputs={"w": (2, 5, 4, 10)}, constants=constants, opset=23)
    assert [n.op_type for n in model.graph] == ["Reshape", "RotaryEmbedding", "Reshape"]


def test_the_other_half_negated_is_no_rotation():
    body = BODY.replace("Neg(c)", "Neg(b)").replace("(d, b)", "(c, d)")
    model = check(Fuse(), body, inputs=X, constants=CONSTANTS, opset=23)
    assert "RotaryEmbedding" not in [n.op_type for n in model.graph]


def test_tables_with_different_halves_are_refused():
    constants = {**CONSTANTS, "cos": np.cos(np.concatenate([ANGLES, 2 * ANGLES], -1))[None, None]}
    model = check(Fuse(), BODY, inputs=X, constants=constants, opset=23)
    assert "RotaryEmbedding" not in [n.op_type for n in model.graph]


def test_tables_that_are_inputs_are_refused():
    constants = {k: v for k, v in CONSTANTS.items() if k != "cos"}
    inputs = {**X, "cos": (1, 1, 5, 6)}
    model = check(Fuse(), BODY, inputs=inputs, constants=constants, opset=23)
    assert "RotaryEmbedding" not in [n.op_type for n in model.graph]


COMPUTED = """g (float[B, 4, S, 6] x, float[{rows}, S, 3] freqs) => (float[B, 4, S, 6] y) {{
    both = Concat<axis = -1>(freqs, freqs)
    c0 = Cos(both)
    s0 = Sin(both)
    c1 = Mul(c0, scaling)
    s1 = Mul(s0, scaling)
    cos = Unsqueeze(c1, one)
    sin = Unsqueeze(s1, one)
    {body}
    }}"""


def computed(rows, body=BODY):
    return built(COMPUTED.format(rows=rows, body=body))


def built(text):
    """A model of opset 23 whose names that nothing defines are constants of this file."""
    values = {**CONSTANTS, "one": np.array([1]), "scaling": np.array(0.5, np.float32)}
    proto = onnx.helper.make_model(
        onnx.parser.parse_graph(text),
        opset_imports=[onnx.helper.make_opsetid("", 23)],
        ir_version=10,
    )
    made = {o for n in proto.graph.node for o in n.output} | {i.name for i in proto.graph.input}
    used = {i for n in proto.graph.node for i in n.input} - made
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(values[n], n) for n in sorted(used))
    return ir.from_proto(proto)


FEEDS = {"x": (2, 4, 5, 6)}


def test_tables_computed_for_every_row():
    model = check(Fuse(), computed("B"), inputs={**FEEDS, "freqs": (2, 5, 3)})
    kinds = sorted(n.op_type for n in model.graph)
    assert kinds == ["Cos", "Mul", "Mul", "RotaryEmbedding", "Sin"]


def test_tables_computed_once_serve_every_row_and_layer():
    second = """k = Mul(w, cos)
        l = Slice(w, zero, half, last)
        m = Slice(w, half, end, last)
        n = Neg(m)
        o = Concat<axis = -1>(n, l)
        p = Mul(o, sin)
        y = Add(k, p)"""
    body = BODY.replace("y = Add", "w = Add") + "\n" + second
    model = check(Fuse(), computed("1", body), inputs={**FEEDS, "freqs": (1, 5, 3)})
    kinds = [n.op_type for n in model.graph]
    assert kinds.count("RotaryEmbedding") == 2
    assert {k: kinds.count(k) for k in ("Cos", "Sin", "Shape", "Expand")} == {
        "Cos": 1,
        "Sin": 1,
        "Shape": 1,
        "Expand": 2,
    }


def test_a_table_whose_halves_may_differ_stays():
    text = """g (float[B, 4, S, 6] x, float[B, 1, S, 6] cos, float[B, 1, S, 6] sin)
        => (float[B, 4, S, 6] y) { BODY }""".replace("BODY", BODY)
    sizes = {**FEEDS, "cos": (2, 1, 5, 6), "sin": (2, 1, 5, 6)}
    model = check(Fuse(), built(text), inputs=sizes)
    assert not any(n.op_type == "RotaryEmbedding" for n in model.graph)
