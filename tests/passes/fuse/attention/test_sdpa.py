"""Attention as exporters write it. Every mask here has a row that is masked fully."""

import dataclasses

import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.target import ONNX
from graphopt.testing import check

LOW = float(np.finfo(np.float32).min)
Q, K, V = (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)
INPUTS = {"q": Q, "kt": (2, 3, 4, 7), "v": V}
SCALE = {"s": np.array(0.5, np.float32)}
ONLY_RUNTIME = dataclasses.replace(
    ONNX, opset=20, operators=frozenset({"com.microsoft:MultiHeadAttention"})
)

RNG = np.random.default_rng(5)


def allowed(*shape):
    """A boolean mask with rows that are masked fully."""
    mask = RNG.random(shape) < 0.6
    mask[..., 0] = True
    if shape[-2] > 1:
        mask[..., 1, :] = False
    else:
        mask[1] = False
    return mask


def fused(model, name="Attention"):
    return [n for n in model.graph if n.op_type == name]


def run(body, *, opset=23, target=ONNX, inputs=None, constants=None, **more):
    return check(
        Fuse(),
        body,
        inputs={**INPUTS, **(inputs or {})},
        constants={**SCALE, **(constants or {})},
        opset=opset,
        target=target,
        **more,
    )


def scores(mask="b"):
    return f"a = MatMul(q, kt)  b = Mul(a, s)  p = Softmax <axis=-1> ({mask})  "


GUARD = "n = IsNaN(p)  g = Where(n, zero, p)  y = MatMul(g, v)"
PLAIN = "y = MatMul(p, v)"
MASKED = "a = MatMul(q, kt)  b = Mul(a, s)  c = Add(b, m)  p = Softmax <axis=-1> (c)  "
ZERO = {"zero": np.array(0.0, np.float32)}


def test_without_a_mask():
    model = run(scores() + PLAIN)
    (node,) = fused(model)
    assert node.attributes["scale"].as_float() == 0.5
    assert not [n for n in model.graph if n.op_type in ("MatMul", "Softmax", "Mul")]


@pytest.mark.parametrize(("axis", "kept"), [("", True), ("<axis=-1>", False)])
def test_softmax_before_opset_13_is_not_along_the_last_axis_by_default(axis, kept):
    body = f"a = MatMul(q, kt)  b = Mul(a, s)  p = Softmax {axis} (b)  " + PLAIN
    target = dataclasses.replace(ONLY_RUNTIME, opset=11)
    model = run(body, opset=11, target=target)
    assert ("Softmax" in [n.op_type for n in model.graph]) is kept


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(q, s)  b = Mul(kt, s)  c = MatMul(a, b)  p = Softmax <axis=-1> (c)  " + PLAIN,
        "a = Div(q, s)  c = MatMul(a, kt)  d = Div(c, s)  p = Softmax <axis=3> (d)  " + PLAIN,
        "c = MatMul(q, kt)  p = Softmax <axis=-1> (c)  " + PLAIN,
    ],
)
def test_the_scale_may_be_anywhere(body):
    model = run(body)
    assert fused(model)
    assert not [n for n in model.graph if n.op_type in ("MatMul", "Softmax", "Mul", "Div")]


def where(fill, shape=(2, 1, 5, 7)):
    return {
        "inputs": {"ok": allowed(*shape)},
        "constants": {**ZERO, "fill": np.array(fill, np.float32)},
    }


def test_a_guarded_row_of_minus_infinity_stays_zero():
    model = run("m = Where(ok, zero, fill)  " + MASKED + GUARD, **where(-np.inf))
    (node,) = fused(model)
    assert node.inputs[3].name == "ok", "the boolean mask says the same"


def test_an_unguarded_row_of_minus_infinity_is_nan_and_stays_nan():
    run("m = Where(ok, zero, fill)  " + MASKED + PLAIN, because="NaN here", **where(-np.inf))


@pytest.mark.parametrize("end", [PLAIN, GUARD], ids=["plain", "guarded"])
def test_a_row_of_the_lowest_float_stays_uniform(end):
    model = run("m = Where(ok, zero, fill)  " + MASKED + end, **where(LOW))
    assert fused(model)


@pytest.mark.parametrize("end", [PLAIN, GUARD], ids=["plain", "guarded"])
@pytest.mark.parametrize("fill", [-1e4, -1e9])
def test_a_row_of_a_large_negative_number_stays_as_it_is(end, fill):
    assert fused(run("m = Where(ok, zero, fill)  " + MASKED + end, **where(fill)))


def test_the_lowest_float_is_not_changed_for_others():
    body = "m = Where(ok, zero, fill)  other = Relu(m)  " + MASKED + PLAIN
    run(body, because="read elsewhere", **where(LOW))


def test_a_mask_that_is_an_input_may_hold_anything():
    run(MASKED + PLAIN, because="may hold anything", inputs={"m": (2, 1, 5, 7)})


@pytest.mark.parametrize("fill", [-np.inf, LOW])
def test_a_constant_mask_with_a_full_row(fill):
    mask = np.where(allowed(1, 1, 5, 7), 0.0, fill).astype(np.float32)
    if fill == LOW:
        assert fused(run(MASKED + PLAIN, constants={"m": mask}))
    else:
        run(MASKED + PLAIN, because="NaN here", constants={"m": mask})
    assert fused(run(MASKED + GUARD, constants={"m": mask, **ZERO}))


@pytest.mark.parametrize("fill", [-np.inf, LOW, -1e9])
def test_a_causal_mask_is_an_attribute(fill):
    mask = np.where(np.tril(np.ones((5, 5), bool)), 0.0, fill).astype(np.float32)
    model = run(
        MASKED + PLAIN, inputs={"kt": (2, 3, 4, 5), "v": (2, 3, 5, 4)}, constants={"m": mask}
    )
    (node,) = fused(model)
    assert node.attributes["is_causal"].as_int() == 1
    assert len(node.inputs) == 3


def test_a_mask_of_zeros_is_none():
    model = run(MASKED + PLAIN, constants={"m": np.zeros((1, 1, 5, 7), np.float32)})
    assert len(fused(model)[0].inputs) == 3


def test_a_position_bias_and_a_mask():
    body = """m = Where(ok, zero, fill)
        a = MatMul(q, kt)  b = Mul(a, s)  c = Add(b, bias)  d = Add(c, m)
        p = Softmax <axis=-1> (d)  """
    bias = RNG.standard_normal((1, 3, 5, 7)).astype(np.float32)
    case = where(LOW)
    case["constants"]["bias"] = bias
    assert fused(run(body + PLAIN, **case))


def test_the_old_bert_mask():
    body = """i = Cast <to=1> (ids)  j = Sub(one, i)  m = Mul(j, fill)  """
    ids = np.array([[1, 1, 1, 0, 0, 0, 0], [0] * 7])[:, None, None]
    constants = {"one": np.array(1, np.float32), "fill": np.array(LOW, np.float32)}
    model = run(body + MASKED + PLAIN, inputs={"ids": ids}, constants=constants)
    assert fused(model)


FILLED = "a = MatMul(q, kt)  b = Mul(a, s)  c = Where(ok, {})  p = Softmax <axis=-1> (c)  "


@pytest.mark.parametrize("end", [PLAIN, GUARD], ids=["plain", "guarded"])
@pytest.mark.parametrize("order", ["b, fill", "fill, b"])
def test_scores_that_are_filled_with_the_lowest_float(order, end):
    assert fused(run(FILLED.format(order) + end, **where(LOW)))


@pytest.mark.parametrize("shape", [(2, 1, 5, 7), (2, 1, 1, 7)])
def test_scores_that_are_filled_with_minus_infinity(shape):
    case = where(-np.inf, shape)
    (node,) = fused(run(FILLED.format("b, fill") + GUARD, **case))
    assert "Where" not in [n.op_type for n in node.graph]
    assert fused(run(FILLED.format("fill, b") + GUARD, **case))
    run(FILLED.format("b, fill") + PLAIN, because="NaN here", **case)


def test_scores_that_are_filled_with_a_small_number_are_refused():
    run(FILLED.format("b, fill") + PLAIN, unchanged=True, **where(-100.0))


def test_a_soft_cap():
    cap = {"cap": np.array(5.0, np.float32)}
    body = """a = MatMul(q, kt)  b = Mul(a, s)  d = Div(b, cap)  e = Tanh(d)  f = Mul(e, cap)
        c = Add(f, m)  p = Softmax <axis=-1> (c)  """
    mask = np.where(allowed(1, 1, 5, 7), 0.0, LOW).astype(np.float32)
    (node,) = fused(run(body + PLAIN, constants={**cap, "m": mask}))
    assert node.attributes["softcap"].as_float() == 5.0


MERGED = {"n": np.array([6, 5, 4]), "o": np.array([6, 4, 7]), "r": np.array([6, 7, 4])}
PARTED = "x = Reshape(q, n)  z = Reshape(kt, o)  a = MatMul(x, z)  b = Mul(a, s)  "


def test_batch_and_heads_in_one_axis():
    body = PARTED + "p = Softmax <axis=-1> (b)  w = Reshape(v, r)  y = MatMul(p, w)"
    assert fused(run(body, constants=MERGED))


@pytest.mark.parametrize("shape", [(6, 1, 7), (6, 5, 7), (1, 5, 7), (5, 7)])
def test_a_bias_where_batch_and_heads_are_one_axis_and_a_mask_where_they_are_two(shape):
    body = (
        PARTED
        + """c = Add(b, bias)  d = Reshape(c, apart)  m = Where(ok, zero, fill)
        e = Add(d, m)  p = Softmax <axis=-1> (e)  y = MatMul(p, v)"""
    )
    case = where(LOW)
    bias = RNG.standard_normal(shape).astype(np.float32)
    case["constants"] |= {**MERGED, "bias": bias, "apart": np.array([2, 3, 5, 7])}
    assert fused(run(body, **case))


def test_a_mask_of_keys_gets_a_row_for_every_query_once():
    body = "m = Where(ok, zero, fill)  " + MASKED + "o = MatMul(p, v)  "
    second = "d = MatMul(o, kt)  e = Add(d, m)  f = Softmax <axis=-1> (e)  y = MatMul(f, v)"
    model = run(body + second, **where(LOW, (2, 1, 1, 7)))
    assert [n.op_type for n in model.graph].count("Expand") == 1
    assert len(fused(model)) == 2


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (1, 7)])
def test_multi_head_attention_gets_a_mask_of_four_axes(shape):
    mask = RNG.standard_normal(shape).astype(np.float32)
    model = run(MASKED + PLAIN, opset=20, target=ONLY_RUNTIME, constants={"m": mask})
    assert fused(model, "MultiHeadAttention")


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 1, 7)])
def test_an_old_opset_is_raised_for_what_a_mask_is_written_with(shape):
    mask = RNG.standard_normal(shape).astype(np.float32)
    model = run(MASKED + PLAIN, opset=12, target=ONLY_RUNTIME, constants={"m": mask})
    assert fused(model, "MultiHeadAttention")
    assert model.graph.opset_imports[""] == 15


@pytest.mark.parametrize(
    ("body", "inputs", "because"),
    [
        (MASKED + PLAIN, {"m": (2, 1, 5, 1)}, "every key"),
        (
            "a = MatMul(q, kt)  b = Add(a, m)  c = Mul(b, s)  p = Softmax <axis=-1> (c)  " + PLAIN,
            {"m": (2, 1, 5, 7)},
            "scaled after",
        ),
        (scores().replace("axis=-1", "axis=1") + PLAIN, {}, None),
        (scores() + "n = Relu(p)  " + PLAIN, {}, None),
    ],
    ids=["narrow mask", "scaled mask", "axis", "probabilities used elsewhere"],
)
def test_what_is_no_attention(body, inputs, because):
    run(body, inputs=inputs, because=because, unchanged=True)


@pytest.mark.parametrize("target", [ONNX, ONLY_RUNTIME])
def test_one_head_of_keys_for_all_queries(target):
    """Multi-query attention (Shazeer, arXiv:1911.02150): MatMul broadcasts the one head."""
    one = {"kt": (2, 1, 4, 7), "v": (2, 1, 7, 4)}
    body = scores() + PLAIN
    if target is ONNX:
        assert fused(run(body, inputs=one))
    else:
        run(body, inputs=one, target=target, opset=20, unchanged=True)


def test_a_factor_for_each_head_scales_the_query():
    """Cosine attention (Liu et al., arXiv:2111.09883)."""
    body = "a = MatMul(q, kt)  b = Mul(a, h)  c = Add(b, m)  p = Softmax <axis=-1> (c)  " + PLAIN
    factors = {"h": np.array([1, 2, 3], np.float32).reshape(3, 1, 1)}
    bias = RNG.standard_normal((1, 3, 5, 7)).astype(np.float32)
    model = run(body, constants={**factors, "m": bias})
    assert [n.op_type for n in model.graph] == ["Mul", "Transpose", "Attention"]


def test_a_mask_scaled_by_head_is_refused():
    body = "a = MatMul(q, kt)  b = Add(a, m)  c = Mul(b, h)  p = Softmax <axis=-1> (c)  " + PLAIN
    factors = {"h": np.array([1, 2, 3], np.float32).reshape(3, 1, 1)}
    bias = RNG.standard_normal((1, 3, 5, 7)).astype(np.float32)
    run(body, constants={**factors, "m": bias}, because="scaled after")


def test_other_heads_that_broadcast_are_refused():
    run(
        scores() + PLAIN,
        inputs={"q": (2, 1, 5, 4)},
        because="differ in batch or heads",
    )


def test_an_old_opset_without_the_runtimes_operator():
    old = dataclasses.replace(ONNX, opset=20)
    run(scores() + PLAIN, opset=20, target=old, because="no fused attention")


@pytest.mark.parametrize("end", [PLAIN, GUARD], ids=["plain", "guarded"])
def test_multi_head_attention_keeps_a_uniform_row(end):
    model = run(
        "m = Where(ok, zero, fill)  " + MASKED + end,
        opset=20,
        target=ONLY_RUNTIME,
        **where(LOW),
    )
    assert fused(model, "MultiHeadAttention")


def test_multi_head_attention_keeps_nan_rows_and_refuses_to_guard():
    case = where(-np.inf)
    body = "m = Where(ok, zero, fill)  " + MASKED
    assert fused(run(body + PLAIN, opset=20, target=ONLY_RUNTIME, **case), "MultiHeadAttention")
    run(body + GUARD, opset=20, target=ONLY_RUNTIME, because="the guard made it 0", **case)


HEADS = {
    "into": np.array([2, 5, 3, 4]),
    "back": np.array([2, 5, 12]),
    "flat": np.array([6, 5, 4]),
    "apart": np.array([2, 3, 4, 5]),
}
SPLIT = """a = Reshape(x, into)  q = Transpose <perm=[0, 2, 1, 3]> (a)
    b = Reshape(z, into)  c = Transpose <perm=[0, 2, 1, 3]> (b)
    d = Reshape(w, into)  v = Transpose <perm=[0, 2, 1, 3]> (d)  """
KEY = """e = Reshape(c, flat)  f = Transpose <perm=[0, 2, 1]> (e)  kt = Reshape(f, apart)  """
CORE = """i = MatMul(q, kt)  p = Softmax <axis=-1> (i)  j = MatMul(p, v)
    k = Transpose <perm=[0, 2, 1, 3]> (j)  y = Reshape(k, back)"""


@pytest.mark.parametrize("key", [KEY, "kt = Transpose <perm=[0, 1, 3, 2]> (c)  "])
def test_packed_heads(key):
    check(
        Fuse(),
        before=SPLIT + key + CORE,
        after="y = Attention <q_num_heads=3, kv_num_heads=3, scale=1.0> (x, z, w)",
        inputs={"x": (2, 5, 12), "z": (2, 5, 12), "w": (2, 5, 12)},
        constants=HEADS,
        opset=23,
    )


def test_packed_heads_of_one_projection():
    check(
        Fuse(),
        before="x, z, w = Split <axis=-1, num_outputs=3> (u)  "
        + SPLIT
        + "kt = Transpose <perm=[0, 1, 3, 2]> (c)  "
        + CORE,
        after="""x, z, w = Split <axis=-1, num_outputs=3> (u)
            y = Attention <q_num_heads=3, kv_num_heads=3, scale=1.0> (x, z, w)""",
        inputs={"u": (2, 5, 36)},
        constants=HEADS,
        opset=23,
    )


REPEAT = """f = Unsqueeze(c, two)  g = Expand(f, wide)  kk = Reshape(g, merged)
    kt = Transpose <perm=[0, 1, 3, 2]> (kk)
    h = Unsqueeze(d, two)  l = Expand(h, wide)  v = Reshape(l, merged)  """


def test_grouped_queries_share_keys():
    model = check(
        Fuse(),
        before=REPEAT + "i = MatMul(q, kt)  p = Softmax <axis=-1> (i)  y = MatMul(p, v)",
        inputs={"c": (2, 2, 5, 4), "d": (2, 2, 5, 4), "q": (2, 6, 5, 4)},
        constants={
            "two": np.array([2]),
            "wide": np.array([2, 2, 3, 5, 4]),
            "merged": np.array([2, 6, 5, 4]),
        },
        opset=23,
    )
    assert [n.op_type for n in model.graph] == ["Attention"]


def test_tiled_heads_are_no_grouped_queries():
    # repeated as a whole (0 1 0 1), not each in a row (0 0 1 1)
    body = REPEAT.replace("Unsqueeze(c, two)", "Unsqueeze(c, one)").replace(
        "Unsqueeze(d, two)", "Unsqueeze(d, one)"
    )
    model = check(
        Fuse(),
        before=body + "i = MatMul(q, kt)  p = Softmax <axis=-1> (i)  y = MatMul(p, v)",
        inputs={"c": (2, 2, 5, 4), "d": (2, 2, 5, 4), "q": (2, 6, 5, 4)},
        constants={
            "one": np.array([1]),
            "wide": np.array([2, 3, 2, 5, 4]),
            "merged": np.array([2, 6, 5, 4]),
        },
        opset=23,
    )
    assert "Expand" in [n.op_type for n in model.graph]


def test_weights_that_are_turned_before_the_product_are_no_attention():
    square = {"q": (2, 3, 5, 4), "kt": (2, 3, 4, 5), "v": (2, 3, 5, 4)}
    body = scores() + "t = Transpose <perm=[0, 1, 3, 2]> (p)  y = MatMul(t, v)"
    assert not fused(run(body, inputs=square))
