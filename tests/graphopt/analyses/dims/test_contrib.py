"""Fused attention, skip norms, rotary, opset 23, quantized operators, and subgraphs."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from examine import examine

from graphopt import Context
from graphopt.analyses.dims import dimensions
from graphopt.testing import parse_model

TOKENS = {"x": (2, 5, 12)}


def model(text, inputs, opset=20, arrays=None, **shapes):
    rng = np.random.default_rng(1)
    constants = {
        name: (rng.standard_normal(shape) * 0.5 + 0.1).astype(np.float32)
        for name, shape in shapes.items()
    }
    return parse_model(text, inputs=inputs, constants={**constants, **(arrays or {})}, opset=opset)


def found(built):
    return [(d.size, d.kind) for d in Context(built).get(dimensions).prunable.values()]


def holds(built, feeds=None):
    rng = np.random.default_rng(0)
    feeds = dict(feeds or {})
    for value in built.graph.inputs:
        if value.name not in feeds:
            feeds[value.name] = rng.standard_normal(tuple(value.shape)).astype(np.float32)
    outcomes = list(examine(built, feeds))
    wrong = [o for o in outcomes if not o.equal]
    assert not wrong, wrong
    assert outcomes[-1].moved > 1e-3


def ints(*values):
    return np.array(values, np.int64)


def test_multi_head_attention():
    built = model(
        """q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        o = com.microsoft.MultiHeadAttention <num_heads=3> (q, k, v, b)  y = MatMul(o, wo)""",
        TOKENS, wq=(12, 12), wk=(12, 12), wv=(12, 24), b=(48,), wo=(24, 5),
    )  # fmt: skip
    assert found(built) == [(3, "heads"), (4, "head size"), (8, "head size")]
    holds(built)


def test_packed_attention():
    built = model(
        "o = com.microsoft.Attention <num_heads=3> (x, w, b)  y = MatMul(o, wo)",
        TOKENS, w=(12, 36), b=(36,), wo=(12, 5),
    )  # fmt: skip
    assert found(built) == [(3, "heads"), (4, "head size")]
    holds(built)


def test_skip_layer_normalization():
    built = model(
        """a = MatMul(x, w0)  b = MatMul(a, w1)
        n, m, v, s = com.microsoft.SkipLayerNormalization <epsilon=0.001> (a, b, g, c, d)
        t = Add(n, s)  y = MatMul(t, w2)""",
        TOKENS, w0=(12, 8), w1=(8, 8), g=(8,), c=(8,), d=(8,), w2=(8, 3),
    )  # fmt: skip
    assert found(built) == [(8, "features")]
    assert next(iter(Context(built).get(dimensions).prunable.values())).scope == "residual"
    built.graph.outputs[:] = [v for v in built.graph.outputs if v.name == "y"]
    holds(built)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_microsoft_rotary_embedding(interleaved):
    built = model(
        f"""q = MatMul(x, wq)  k = MatMul(x, wk)  q4 = Reshape(q, s)  k4 = Reshape(k, s)
        qt = Transpose <perm=[0,2,1,3]> (q4)  kt = Transpose <perm=[0,2,1,3]> (k4)
        qr = com.microsoft.RotaryEmbedding <interleaved={interleaved}> (qt, p, cos, sin)
        kr = com.microsoft.RotaryEmbedding <interleaved={interleaved}> (kt, p, cos, sin)
        ku = Transpose <perm=[0,1,3,2]> (kr)  y = MatMul(qr, ku)""",
        TOKENS, wq=(12, 24), wk=(12, 24), cos=(9, 4), sin=(9, 4),
        arrays={"s": ints(2, 5, 3, 8), "p": np.tile(np.arange(5), (2, 1))},
    )  # fmt: skip
    assert (4, "head size") in found(built)
    holds(built)


def test_grouped_query_attention():
    built = model(
        """q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        o, pk, pv = com.microsoft.GroupQueryAttention <num_heads=4, kv_num_heads=2>
        (q, k, v, , , n, t)  y = MatMul(o, wo)""".replace("\n        (q", " (q"),
        TOKENS, wq=(12, 32), wk=(12, 16), wv=(12, 16), wo=(32, 5),
        arrays={"n": np.full(2, 4, np.int32), "t": np.array(5, np.int32)},
    )  # fmt: skip
    built.graph.outputs[:] = [v for v in built.graph.outputs if v.name == "y"]
    assert found(built) == [(2, "kv groups"), (2, "heads")]
    holds(built)


def test_attention_of_opset_23():
    built = model(
        """q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        o = Attention <q_num_heads=6, kv_num_heads=3> (q, k, v)  y = MatMul(o, wo)""",
        TOKENS, opset=23, wq=(12, 24), wk=(12, 12), wv=(12, 12), wo=(24, 5),
    )  # fmt: skip
    assert sorted(found(built)) == [
        (2, "heads"),
        (3, "kv groups"),
        (4, "head size"),
        (4, "head size"),
    ]
    holds(built)


def test_rms_normalization_of_opset_23():
    built = model(
        "a = MatMul(x, w0)  n = RMSNormalization(a, g)  y = MatMul(n, w1)",
        TOKENS, opset=23, w0=(12, 8), g=(8,), w1=(8, 3),
    )  # fmt: skip
    assert found(built) == [(8, "features")]
    holds(built)


def test_einsum_attention():
    built = model(
        """q = Einsum <equation="btd,dnh->btnh"> (x, wq)
        k = Einsum <equation="btd,dnh->btnh"> (x, wk)
        s = Einsum <equation="btnh,bsnh->bnts"> (q, k)  p = Softmax(s)
        o = Einsum <equation="bnts,bsnh->btnh"> (p, k)
        y = Einsum <equation="btnh,nhd->btd"> (o, wo)""",
        TOKENS, wq=(12, 4, 3), wk=(12, 4, 3), wo=(4, 3, 12),
    )  # fmt: skip
    assert [f[0] for f in found(built)] == [4, 3]
    holds(built)


def quantized(*shape):
    return np.random.default_rng(3).integers(-90, 90, shape).astype(np.int8)


def test_quantized_convolutions():
    scales = {f"s{k}": np.linspace(0.01, 0.03, n, dtype="f4") for k, n in ((0, 8), (1, 8), (2, 4))}
    zeros = {f"z{k}": np.zeros(n, np.int8) for k, n in ((0, 8), (1, 8), (2, 4))}
    built = model(
        """q = QuantizeLinear(x, sa, za)
        a = QLinearConv(q, sa, za, w0, s0, z0, sa, za, b0)
        b = QLinearConv <group=8, pads=[1,1,1,1]> (a, sa, za, w1, s1, z1, sa, za)
        c = QLinearConv(b, sa, za, w2, s2, z2, sa, za)  y = DequantizeLinear(c, sa, za)""",
        {"x": (1, 3, 5, 5)},
        arrays={"w0": quantized(8, 3, 1, 1), "w1": quantized(8, 1, 3, 3),
                "w2": quantized(4, 8, 1, 1), "b0": np.arange(8, dtype=np.int32),
                "sa": np.float32(0.05), "za": np.uint8(120), **scales, **zeros},
    )  # fmt: skip
    assert found(built) == [(8, "channels")]
    holds(built)


def test_dynamically_quantized_matrices():
    built = model(
        """q, s, z = DynamicQuantizeLinear(x)  a = MatMulInteger(q, w0, z, z0)  f = Cast <to=1> (a)
        t = Mul(f, s)  u = Mul(t, s0)  r = Relu(u)
        p, v, o = DynamicQuantizeLinear(r)  b = MatMulInteger(p, w1, o)  g = Cast <to=1> (b)
        y = Mul(g, v)""",
        TOKENS,
        arrays={"w0": quantized(12, 8), "w1": quantized(8, 4), "z0": np.zeros(8, np.int8),
                "s0": np.linspace(0.01, 0.03, 8, dtype="f4")},
    )  # fmt: skip
    assert found(built) == [(8, "features")]
    holds(built)


def text_model(text):
    built = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    rng = np.random.default_rng(2)
    for value in list(built.graph.inputs):
        if value.name.startswith("w"):
            array = rng.standard_normal(tuple(value.shape)).astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            built.graph.inputs.remove(value)
            built.graph.register_initializer(value)
    for k, node in enumerate(built.graph.all_nodes()):
        node.name = node.name or f"n{k}"
    return built


def test_weights_and_activations_seen_from_inside_an_if():
    built = text_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[2,12] x, bool c, float[12,8] w0, float[8,8] w1, float[8,3] w2) => (float[2,3] y) {
            a = MatMul(x, w0)
            b = If (c) <
                then_branch = t () => (float[2,8] p) { p = Relu(a) },
                else_branch = e () => (float[2,8] q) { r = MatMul(a, w1) s = Tanh(r) q = Add(s, a) }
            >
            y = MatMul(b, w2)
        }"""
    )  # fmt: skip
    assert found(built) == [(8, "features")]
    x = np.random.default_rng(0).standard_normal((2, 12)).astype(np.float32)
    for c in (True, False):
        holds(built, {"x": x, "c": np.array(c)})


def test_states_carried_by_a_loop():
    built = text_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[2,12] x, float[12,8] w0, float[8,6] w1, float[6,8] w2, float[8,3] w3)
        => (float[2,3] y) {
            n = Constant <value_int = 3> ()
            c = Constant <value = bool {1}> ()
            a = MatMul(x, w0)
            b = Loop (n, c, a) <
                body = l (int64 i, bool d, float[2,8] h) => (bool e, float[2,8] k) {
                    e = Identity(d)
                    u = MatMul(h, w1)
                    v = Tanh(u)
                    m = MatMul(v, w2)
                    k = Add(h, m)
                }
            >
            y = MatMul(b, w3)
        }"""
    )  # fmt: skip
    assert sorted(found(built)) == [(6, "features"), (8, "features")]
    holds(built)


def test_an_unknown_operator_with_a_subgraph_freezes_what_it_sees():
    built = text_model(
        """<ir_version: 10, opset_import: ["" : 20, "my" : 1]>
        g (float[2,12] x, float[12,8] w0, float[8,3] w1) => (float[2,3] y) {
            a = MatMul(x, w0)
            b = my.Each (x) < body = l () => (float[2,8] p) { p = Relu(a) } >
            c = Add(a, b)
            y = MatMul(c, w1)
        }"""
    )  # fmt: skip
    assert found(built) == []


def test_heads_that_do_not_divide_the_width_are_left_alone():
    built = model(
        "y = com.microsoft.Attention <num_heads = 12> (x, w, b)",
        {"x": (1, 2, 4), "w": (4, 3), "b": (3,)},
    )
    assert not found(built)
