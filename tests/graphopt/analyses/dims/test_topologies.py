"""Every topology: which dimensions it has, and that each of them, cut, equals the masked twin."""

import random

import numpy as np
import pytest
from examine import examine

from graphopt import Context
from graphopt.analyses.dims import dimensions
from graphopt.analyses.dims.analysis import infer
from graphopt.testing import parse_model

IMAGE = {"x": (2, 3, 6, 6)}
TOKENS = {"x": (2, 5, 12)}


def model(text, inputs, opset=20, arrays=None, **shapes):
    """A model with random weights of these shapes."""
    rng = np.random.default_rng(1)
    constants = {
        name: (rng.standard_normal(shape) * 0.5 + 0.1).astype(np.float32)
        for name, shape in shapes.items()
    }
    return parse_model(text, inputs=inputs, constants={**constants, **(arrays or {})}, opset=opset)


def sizes(built):
    """(name, size, kind, scope) of each dimension."""
    dims = Context(built).get(dimensions)
    return [(d.name, d.size, d.kind, d.scope) for d in dims.prunable.values()]


def holds(built, **inputs):
    """Each dimension alone and all together equal the twin, and the cut is felt."""
    rng = np.random.default_rng(0)
    feeds = dict(inputs)
    for value in built.graph.inputs:
        if value.name not in feeds:
            shape = tuple(d if isinstance(d, int) else 2 for d in value.shape)
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    outcomes = list(examine(built, feeds))
    assert outcomes
    wrong = [o for o in outcomes if not o.equal]
    assert not wrong, wrong
    assert outcomes[-1].moved > 1e-3


def ints(*values):
    return np.array(values, np.int64)


def test_residual_add_and_fan_out():
    built = model(
        """a = Conv(x, w0)
        b = Conv <pads=[1,1,1,1]> (a, w1)  c = Relu(b)  d = Conv <pads=[1,1,1,1]> (c, w2)
        s = Add(a, d)
        p = Conv(s, w3)  q = Conv(s, w4)  t = Mul(p, q)  g = GlobalAveragePool(t)
        y = Conv(g, w5)""",
        IMAGE, w0=(8, 3, 1, 1), w1=(6, 8, 3, 3), w2=(8, 6, 3, 3), w3=(4, 8, 1, 1), w4=(4, 8, 1, 1),
        w5=(2, 4, 1, 1),
    )  # fmt: skip
    assert sizes(built) == [
        ("w0", 8, "channels", "residual"),
        ("w1", 6, "channels", "inner"),
        ("w3", 4, "channels", "inner"),
    ]
    holds(built)


def test_nested_concat():
    built = model(
        """a = Conv(x, w0)  b = Conv(a, w1)  ab = Concat <axis=1> (a, b)
        n = BatchNormalization(ab, s, o, m, v)  c = Conv(n, w2)  abc = Concat <axis=1> (ab, c)
        y = Conv(abc, w3)""",
        IMAGE, w0=(4, 3, 1, 1), w1=(6, 4, 1, 1), s=(10,), o=(10,), m=(10,), w2=(5, 10, 1, 1),
        w3=(2, 15, 1, 1), arrays={"v": np.linspace(0.5, 2, 10).astype(np.float32)},
    )  # fmt: skip
    assert [s[:2] for s in sizes(built)] == [("w0", 4), ("w1", 6), ("w2", 5)]
    holds(built)


def test_split_into_branches():
    built = model(
        """a = Conv(x, w0)  p, q = Split <axis=1, num_outputs=2> (a)
        r = Conv(q, w1)  z = Concat <axis=1> (p, r)  y = Conv(z, w2)""",
        IMAGE, w0=(8, 3, 1, 1), w1=(6, 4, 1, 1), w2=(2, 10, 1, 1),
    )  # fmt: skip
    assert [s[1] for s in sizes(built)] == [4, 4, 6]
    holds(built)


def test_slices_select_counts_of_what_is_kept():
    built = model(
        """a = Conv(x, w0)  p = Slice(a, zero, three, one)  q = Slice(a, three, far, one)
        r = Conv(p, w1)  s = Conv(q, w2)  t = Add(r, s)  y = Conv(t, w3)""",
        IMAGE, w0=(8, 3, 1, 1), w1=(4, 3, 1, 1), w2=(4, 5, 1, 1), w3=(2, 4, 1, 1),
        arrays={"zero": ints(0), "three": ints(3), "far": ints(2**40), "one": ints(1)},
    )  # fmt: skip
    assert [s[1] for s in sizes(built)] == [3, 5, 4]
    holds(built)


def test_constant_gather_moves_with_the_channels():
    built = model(
        "a = Conv(x, w0)  p = Gather <axis=1> (a, i)  y = Conv(p, w1)",
        IMAGE, w0=(8, 3, 1, 1), w1=(2, 4, 1, 1), arrays={"i": ints(6, 1, 3, 0)},
    )  # fmt: skip
    holds(built)


def test_channel_shuffle():
    """Two grouped convolutions with a shuffle between them: 2*6 against 6*2."""
    built = model(
        """a = Conv(x, w0)  r = Reshape(a, s1)  t = Transpose <perm=[0,2,1,3,4]> (r)
        u = Reshape(t, s2)  v = Relu(u)  y = Conv(v, w1)""",
        IMAGE, w0=(12, 3, 1, 1), w1=(2, 12, 1, 1),
        arrays={"s1": ints(2, 2, 6, 6, 6), "s2": ints(2, 12, 6, 6)},
    )  # fmt: skip
    assert sorted(s[1] for s in sizes(built)) == [2, 6]
    holds(built)


def test_two_shuffles_coarsen_until_they_agree():
    shuffle = "Transpose <perm=[0,2,1,3,4]>"
    built = model(
        f"""a = Conv(x, w0)  r = Reshape(a, s1)  t = {shuffle} (r)  u = Reshape(t, s2)
        r2 = Reshape(u, s1)  t2 = {shuffle} (r2)  u2 = Reshape(t2, s2)  y = Conv(u2, w1)""",
        IMAGE, w0=(16, 3, 1, 1), w1=(2, 16, 1, 1),
        arrays={"s1": ints(2, 2, 8, 6, 6), "s2": ints(2, 16, 6, 6)},
    )  # fmt: skip
    assert sum(s[1] for s in sizes(built)) >= 4
    holds(built)


def test_grouped_depthwise_and_transposed_convolutions():
    built = model(
        """a = Conv(x, w0, b0)  b = Conv <group=4> (a, w1, b1)  c = Conv <group=12> (b, w2)
        d = ConvTranspose(c, w3, b3)  e = ConvTranspose <group=2> (d, w4)  y = Conv(e, w5)""",
        IMAGE, w0=(8, 3, 1, 1), b0=(8,), w1=(12, 2, 1, 1), b1=(12,), w2=(12, 1, 3, 3),
        w3=(12, 6, 2, 2), b3=(6,), w4=(6, 4, 1, 1), w5=(2, 8, 1, 1),
    )  # fmt: skip
    found = {s[0]: s[1:] for s in sizes(built)}
    assert found["w0:groups"] == (4, "groups", "residual")
    assert found["w0:channels"] == (2, "channels", "inner")
    holds(built)


def test_squeeze_excite_and_flatten():
    built = model(
        """a = Conv(x, w0)  g = GlobalAveragePool(a)  h = Conv(g, w1)  i = Relu(h)
        j = Conv(i, w2)  k = Sigmoid(j)  m = Mul(a, k)  f = Flatten(m)  y = Gemm <transB=1> (f, w3)
        """,
        IMAGE, w0=(8, 3, 1, 1), w1=(4, 8, 1, 1), w2=(8, 4, 1, 1), w3=(2, 8 * 36),
    )  # fmt: skip
    assert [s[:2] for s in sizes(built)] == [("w0", 8), ("w1", 4)]
    holds(built)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixel_shuffle(mode):
    built = model(
        f"""a = Conv(x, w0)  b = DepthToSpace <blocksize=2, mode="{mode}"> (a)  r = Relu(b)
        c = SpaceToDepth <blocksize=2> (r)  y = Conv(c, w1)""",
        IMAGE, w0=(12, 3, 1, 1), w1=(2, 12, 1, 1),
    )  # fmt: skip
    assert [s[1] for s in sizes(built)] == [3]
    holds(built)


def test_group_norm_as_instance_norm():
    built = model(
        """a = Conv(x, w0)  r = Reshape(a, s1)  n = InstanceNormalization(r, one, nil)
        u = Reshape(n, s2)  k = Mul(u, gamma)  v = Add(k, beta)  y = Conv(v, w1)""",
        IMAGE, w0=(12, 3, 1, 1), gamma=(12, 1, 1), beta=(12, 1, 1), w1=(2, 12, 1, 1),
        arrays={"s1": ints(0, 3, -1), "s2": ints(2, 12, 6, 6),
                "one": np.ones(3, np.float32), "nil": np.zeros(3, np.float32)},
    )  # fmt: skip
    assert sorted(s[1] for s in sizes(built)) == [3, 4]
    holds(built)


def test_group_normalization():
    built = model(
        """a = Conv(x, w0)  n = GroupNormalization <num_groups=3> (a, g, b)  y = Conv(n, w1)""",
        IMAGE, opset=21, w0=(12, 3, 1, 1), g=(12,), b=(12,), w1=(2, 12, 1, 1),
    )  # fmt: skip
    assert sorted(s[1] for s in sizes(built)) == [3, 4]
    holds(built)


def test_norms_are_reductions():
    """An RMS norm written out, a layer norm, and a norm of a weight."""
    built = model(
        """a = MatMul(x, w0)  p = Pow(a, two)  m = ReduceMean <keepdims=1> (p, last)
        e = Add(m, eps)  q = Sqrt(e)  d = Div(a, q)  g = Mul(d, gamma)
        l = LayerNormalization(g, gamma, beta)  y = MatMul(l, w1)""",
        TOKENS, w0=(12, 8), gamma=(8,), beta=(8,), w1=(8, 2),
        arrays={"two": np.float32(2), "last": ints(-1), "eps": np.float32(1e-5)},
    )  # fmt: skip
    assert sizes(built) == [("w0", 8, "features", "inner")]
    holds(built)


ATTENTION = """
    q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
    q4 = Reshape(q, split)  k4 = Reshape(k, split)  v4 = Reshape(v, split)
    qt = Transpose <perm=[0,2,1,3]> (q4)  kt = Transpose <perm=[0,2,3,1]> (k4)
    vt = Transpose <perm=[0,2,1,3]> (v4)
    s = MatMul(qt, kt)  z = Mul(s, scale)  b = Add(z, bias)  p = Softmax(b)  o = MatMul(p, vt)
    ot = Transpose <perm=[0,2,1,3]> (o)  oc = Reshape(ot, join)  out = MatMul(oc, wo)
    y = Add(x, out)"""


def test_attention_heads_and_head_sizes():
    built = model(
        ATTENTION, TOKENS, wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12), bias=(1, 4, 1, 1),
        arrays={"split": ints(2, 5, 4, 3), "join": ints(0, 0, -1), "scale": np.float32(0.5)},
    )  # fmt: skip
    assert sizes(built) == [
        ("wq:heads", 4, "heads", "inner"),
        ("wq:head size", 3, "head size", "residual"),
        ("wv", 3, "head size", "residual"),
    ]
    holds(built)


def test_packed_projection():
    """(3, h, d) in one matrix: the 3 stays, heads and head sizes go in all three blocks."""
    built = model(
        """a = MatMul(x, w)  r = Reshape(a, split)  t = Transpose <perm=[2,0,3,1,4]> (r)
        q = Gather <axis=0> (t, i0)  k = Gather <axis=0> (t, i1)  v = Gather <axis=0> (t, i2)
        kt = Transpose <perm=[0,1,3,2]> (k)  s = MatMul(q, kt)  p = Softmax(s)  o = MatMul(p, v)
        ot = Transpose <perm=[0,2,1,3]> (o)  oc = Reshape(ot, join)  y = MatMul(oc, wo)""",
        TOKENS, w=(12, 36), wo=(12, 12),
        arrays={"split": ints(2, 5, 3, 4, 3), "join": ints(2, 5, 12), "i0": np.array(0),
                "i1": np.array(1), "i2": np.array(2)},
    )  # fmt: skip
    assert [s[1:3] for s in sizes(built)] == [(4, "heads"), (3, "head size")]
    holds(built)


def test_grouped_query_attention_by_expand():
    built = model(
        """q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        q4 = Reshape(q, sq)  k4 = Reshape(k, sk)  v4 = Reshape(v, sk)
        qt = Transpose <perm=[0,2,1,3]> (q4)  kt = Transpose <perm=[0,2,1,3]> (k4)
        vt = Transpose <perm=[0,2,1,3]> (v4)
        ku = Unsqueeze(kt, two)  ke = Expand(ku, se)  kr = Reshape(ke, sr)
        vu = Unsqueeze(vt, two)  ve = Expand(vu, se)  vr = Reshape(ve, sr)
        kk = Transpose <perm=[0,1,3,2]> (kr)
        s = MatMul(qt, kk)  p = Softmax(s)  o = MatMul(p, vr)
        ot = Transpose <perm=[0,2,1,3]> (o)  oc = Reshape(ot, join)  y = MatMul(oc, wo)""",
        TOKENS, wq=(12, 24), wk=(12, 8), wv=(12, 8), wo=(24, 6),
        arrays={"sq": ints(2, 5, 6, 4), "sk": ints(2, 5, 2, 4), "two": ints(2),
                "se": ints(2, 2, 3, 5, 4), "sr": ints(2, 6, 5, 4), "join": ints(2, 5, 24)},
    )  # fmt: skip
    found = [s[1:] for s in sizes(built)]
    assert (2, "kv groups", "inner") in found
    assert (3, "heads", "residual") in found
    holds(built)


def test_rotary_halves_are_identified():
    built = model(
        """q = MatMul(x, wq)  k = MatMul(x, wk)  q4 = Reshape(q, split)  k4 = Reshape(k, split)
        q1 = Slice(q4, lo, mid, last)  q2 = Slice(q4, mid, hi, last)  qn = Neg(q2)
        qr = Concat <axis=-1> (qn, q1)  qc = Mul(q4, cos)  qs = Mul(qr, sin)  qq = Add(qc, qs)
        k1 = Slice(k4, lo, mid, last)  k2 = Slice(k4, mid, hi, last)  kn = Neg(k2)
        kr = Concat <axis=-1> (kn, k1)  kc = Mul(k4, cos)  ks = Mul(kr, sin)  kk = Add(kc, ks)
        qt = Transpose <perm=[0,2,1,3]> (qq)  kt = Transpose <perm=[0,2,3,1]> (kk)
        y = MatMul(qt, kt)""",
        TOKENS, wq=(12, 24), wk=(12, 24), cos=(5, 1, 8), sin=(5, 1, 8),
        arrays={"split": ints(2, 5, 3, 8), "lo": ints(0), "mid": ints(4), "hi": ints(2**62),
                "last": ints(-1)},
    )  # fmt: skip
    assert [s[1:] for s in sizes(built)] == [(4, "head size", "inner")]  # of heads none may go
    holds(built)


def test_the_size_of_heads_goes_where_heads_cannot():
    """Heads of a gate made of the stream itself, in groups of a convolution, or just one."""
    gated = model(
        """gr = Reshape(x, split)  gm = ReduceMean <keepdims=1, axes=[3]> (gr)
        gt = Transpose <perm=[0,2,1,3]> (gm)  gb = Mul(bias, gt)"""
        + ATTENTION.replace("Add(z, bias)", "Add(z, gb)"),
        TOKENS, opset=17, wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12), bias=(1, 4, 1, 1),
        arrays={"split": ints(2, 5, 4, 3), "join": ints(0, 0, -1), "scale": np.float32(0.5)},
    )  # fmt: skip
    assert [s[1:] for s in sizes(gated)] == [(3, "head size", "inner")] * 2
    grouped = model(
        """q = Conv <group=4> (x, wq)  k = Conv <group=4> (x, wk)  v = Conv <group=4> (x, wv)
        qr = Reshape(q, split)  kr = Reshape(k, split)  vr = Reshape(v, split)
        qt = Transpose <perm=[0,1,3,2]> (qr)  vt = Transpose <perm=[0,1,3,2]> (vr)
        s = MatMul(qt, kr)  p = Softmax(s)  o = MatMul(p, vt)
        ot = Transpose <perm=[0,1,3,2]> (o)  oc = Reshape(ot, join)  out = Conv(oc, wo)
        y = Add(x, out)""",
        {"x": (2, 12, 5)}, wq=(12, 3, 1), wk=(12, 3, 1), wv=(12, 3, 1), wo=(12, 12, 1),
        arrays={"split": ints(2, 4, 3, 5), "join": ints(2, 12, 5)},
    )  # fmt: skip
    assert [s[1:] for s in sizes(grouped)] == [(3, "head size", "inner")] * 2
    alone = model(
        ATTENTION, TOKENS, wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12), bias=(1, 1, 1, 1),
        arrays={"split": ints(2, 5, 1, 12), "join": ints(0, 0, -1), "scale": np.float32(0.5)},
    )  # fmt: skip
    assert [s[1:] for s in sizes(alone)] == [(12, "head size", "inner")] * 2
    for built in (gated, grouped, alone):
        holds(built)


def test_gated_feed_forward():
    built = model(
        """g = MatMul(x, wg)  u = MatMul(x, wu)  s = Sigmoid(g)  a = Mul(g, s)  h = Mul(a, u)
        d = MatMul(h, wd)  y = Add(x, d)""",
        TOKENS, wg=(12, 20), wu=(12, 20), wd=(20, 12),
    )  # fmt: skip
    assert sizes(built) == [("wg", 20, "features", "inner")]
    holds(built)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent(kind, gates, both):
    d, h = (2, 6) if both else (1, 6)
    how = "bidirectional" if both else "forward"
    join = "t = Transpose <perm=[0,2,1,3]> (Y)  f = Reshape(t, s)"
    built = model(
        f"""e = MatMul(x, w0)
        Y, Yh = {kind} <hidden_size={h}, direction="{how}"> (e, W, R, B)
        {join}  z = MatMul(f, w1)  Zt = Transpose <perm=[1,0,2]> (Yh)  Zf = Reshape(Zt, s2)
        zz = MatMul(Zf, w1)  y = Add(z, zz)""",
        TOKENS, w0=(12, 8), W=(d, gates * h, 8), R=(d, gates * h, h), B=(d, 2 * gates * h),
        w1=(d * h, 3), arrays={"s": ints(2, 5, d * h), "s2": ints(5, d * h)},
    )  # fmt: skip
    assert [s[1:3] for s in sizes(built)] == [(8, "features"), (6, "hidden")]
    holds(built)


def test_tied_embedding_and_head():
    built = model(
        """e = Gather <axis=0> (table, ids)  a = MatMul(e, w0)  r = Relu(a)  b = MatMul(r, w1)
        s = Add(e, b)  t = Transpose <perm=[1,0]> (table)  y = MatMul(s, t)""",
        {"ids": np.array([[1, 2, 3], [4, 5, 0]])}, table=(7, 8), w0=(8, 10), w1=(10, 8),
    )  # fmt: skip
    assert sizes(built) == [
        ("table", 8, "features", "residual"),
        ("w0", 10, "features", "inner"),
    ]
    assert Context(built).get(dimensions).tied == ("table",)
    holds(built, ids=np.array([[1, 2, 3], [4, 5, 0]]))


def test_layers_that_share_weights_are_pruned_as_one():
    """ALBERT: the same two matrices, twice."""
    built = model(
        "a = MatMul(x, w0)  b = Relu(a)  c = MatMul(b, w1)  d = MatMul(c, w0)  e = Relu(d)"
        "  y = MatMul(e, w1)",
        TOKENS, w0=(12, 8), w1=(8, 12),
    )  # fmt: skip
    assert [s[:2] for s in sizes(built)] == [("w0", 8)]
    assert Context(built).get(dimensions).tied == ("w0", "w1")
    holds(built)


def test_one_merged_zero_vector_is_typed_per_use():
    """Exporters merge equal constants: one bias of zeros feeds two layers of equal width."""
    built = model(
        "a = MatMul(x, w0)  b = Add(a, z)  r = Relu(b)  c = MatMul(r, w1)  d = Add(c, z)"
        "  y = MatMul(d, w2)",
        TOKENS, w0=(12, 6), w1=(6, 6), w2=(6, 2), arrays={"z": np.full(6, 0.25, np.float32)},
    )  # fmt: skip
    assert [s[:2] for s in sizes(built)] == [("w0", 6), ("w1", 6)]
    holds(built)


def test_quantize_dequantize():
    """Scales and zero points ride along, per channel of weights, per tensor of activations."""
    rng = np.random.default_rng(0)
    q = {n: rng.integers(-90, 90, s).astype(np.int8) for n, s in
         {"q0": (8, 3, 1, 1), "q1": (4, 8, 1, 1)}.items()}  # fmt: skip
    built = model(
        """w0 = DequantizeLinear <axis=0> (q0, s0, z0)  a = Conv(x, w0)
        aq = QuantizeLinear(a, sa, za)  ad = DequantizeLinear(aq, sa, za)
        w1 = DequantizeLinear <axis=0> (q1, s1, z1)  y = Conv(ad, w1)""",
        IMAGE,
        arrays={**q, "s0": np.linspace(0.01, 0.03, 8, dtype="f4"), "z0": np.zeros(8, np.int8),
                "s1": np.linspace(0.01, 0.03, 4, dtype="f4"), "z1": np.zeros(4, np.int8),
                "sa": np.float32(0.05), "za": np.uint8(128)},
    )  # fmt: skip
    assert [s[:2] for s in sizes(built)] == [("q0", 8)]
    holds(built)


def test_sizes_that_are_data_stay_and_sizes_that_are_shapes_follow():
    """The exported sqrt(head size), and a Reshape to sizes computed from Shape."""
    built = model(
        """a = MatMul(x, w0)  s = Shape(a)  n = Gather(s, last)  f = Cast <to=1> (n)
        q = Sqrt(f)  d = Div(a, q)  lead = Slice(s, zero, two)  h = Div(n, six)
        h1 = Unsqueeze(h, zero)  t = Concat <axis=0> (lead, six1, h1)  r = Reshape(d, t)
        u = Relu(r)  v = Reshape(u, s)  y = MatMul(v, w1)""",
        TOKENS, w0=(12, 24), w1=(24, 2),
        arrays={"last": np.array(2), "zero": ints(0), "two": ints(2), "six": np.array(6),
                "six1": ints(6)},
    )  # fmt: skip
    assert sorted(s[1] for s in sizes(built)) == [4, 6]
    holds(built)


def test_dynamic_batch_and_steps():
    built = model(
        ATTENTION, {"x": ("batch", "steps", 12)},
        wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12), bias=(1, 4, 1, 1),
        arrays={"split": ints(0, 0, 4, 3), "join": ints(0, 0, 12), "scale": np.float32(0.5)},
    )  # fmt: skip
    assert ("wq:heads", 4, "heads", "inner") in sizes(built)
    holds(built, x=np.random.default_rng(0).standard_normal((3, 7, 12)).astype(np.float32))


def test_unknown_operators_are_barriers():
    built = model("a = MatMul(x, w0)  b = my.domain.Strange(a)  y = MatMul(b, w1)", TOKENS,
                  w0=(12, 6), w1=(6, 2))  # fmt: skip
    dims = Context(built).get(dimensions)
    assert not dims.prunable
    assert "operator my.domain:Strange is not known" in {f.reason for f in dims.frozen}


@pytest.mark.parametrize(("opset", "free"), [(11, False), (13, True)])
def test_softmax_before_opset_13_looks_along_all_axes_from_1(opset, free):
    built = model("a = Conv(x, w0)  b = Softmax(a)  y = Conv(b, w1)", IMAGE, opset,
                  w0=(6, 3, 1, 1), w1=(2, 6, 1, 1))  # fmt: skip
    assert bool(Context(built).get(dimensions).prunable) is free


def test_softmax_and_topk_freeze_what_they_look_along():
    built = model("a = MatMul(x, w0)  b = Softmax(a)  y = MatMul(b, w1)", TOKENS, w0=(12, 6),
                  w1=(6, 2))  # fmt: skip
    dims = Context(built).get(dimensions)
    assert not dims.prunable
    assert ("w0", "Softmax looks along it") in {(f.tensor, f.reason) for f in dims.frozen}


def test_batch_times_heads_with_an_unknown_batch():
    """As torch's nn.MultiheadAttention is written: (steps, batch*heads, head size)."""
    built = model(
        """q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        s = Shape(x)  t = Slice(s, i0, i1)  b = Slice(s, i1, i2)  bh = Mul(b, four)
        fold = Concat <axis=0> (t, bh, three)
        q3 = Reshape(q, fold)  k3 = Reshape(k, fold)  v3 = Reshape(v, fold)
        qt = Transpose <perm=[1,0,2]> (q3)  kt = Transpose <perm=[1,2,0]> (k3)
        vt = Transpose <perm=[1,0,2]> (v3)
        a = MatMul(qt, kt)  p = Softmax(a)  o = MatMul(p, vt)  ot = Transpose <perm=[1,0,2]> (o)
        join = Concat <axis=0> (t, b, twelve)  oc = Reshape(ot, join)  y = MatMul(oc, wo)""",
        {"x": ("steps", "batch", 12)}, wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 5),
        arrays={"i0": ints(0), "i1": ints(1), "i2": ints(2), "four": ints(4), "three": ints(3),
                "twelve": ints(12)},
    )  # fmt: skip
    assert [s[1:3] for s in sizes(built)] == [(4, "heads"), (3, "head size"), (3, "head size")]
    holds(built, x=np.random.default_rng(0).standard_normal((7, 3, 12)).astype(np.float32))


def units(dims):
    """Every unit as the set of positions it has, however it is numbered and named."""
    found = set()
    for d in dims.prunable.values():
        for u in range(d.size):
            found.add(
                frozenset(
                    (m.node, m.input, m.axis, int(p))
                    for m in d.members
                    for p in np.flatnonzero(m.positions == u)
                )
            )
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_nodes_does_not_matter(seed):
    built = model(
        ATTENTION, TOKENS, wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12), bias=(1, 4, 1, 1),
        arrays={"split": ints(2, 5, 4, 3), "join": ints(0, 0, -1), "scale": np.float32(0.5)},
    )  # fmt: skip
    nodes = list(built.graph)
    random.Random(seed).shuffle(nodes)
    ctx = Context(built)
    assert units(infer(ctx, nodes)) == units(ctx.get(dimensions))


def test_recurrences_that_start_from_the_same_zeros_are_cut_apart():
    """Exporters make one tensor of zeros for all layers and slice it: no tie between their units.

    One slice is of a size known at once, the other (its batch comes from x) only at run time.
    """
    built = model(
        """n = Shape <start=1, end=2> (x)  s = Concat <axis=0> (two, n, six)
        zeros = Expand(zero, s)
        z0 = Slice(zeros, lo, mid, lo)  z1 = Slice(zeros, mid, hi, lo)
        Y = LSTM <hidden_size=6> (x, W0, R0, B0, , z0, z0)  a = Squeeze(Y, mid)
        V = LSTM <hidden_size=6> (a, W1, R1, B1, , z1, z1)  b = Squeeze(V, mid)
        y = MatMul(b, w)""",
        {"x": (5, "batch", 4)}, W0=(1, 24, 4), R0=(1, 24, 6), B0=(1, 48), W1=(1, 24, 6),
        R1=(1, 24, 6), B1=(1, 48), w=(6, 3),
        arrays={"zero": np.array(0.5, np.float32), "two": ints(2), "six": ints(6),
                "lo": ints(0), "mid": ints(1), "hi": ints(2)},
    )  # fmt: skip
    assert [s[1:3] for s in sizes(built)] == [(6, "hidden"), (6, "hidden")]
    holds(built, x=np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32))


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("b = MatMul(a, w1)  s = Add(a, b)", "residual"),
        ("b = MatMul(a, w1)  s = Sum(b, a)", "residual"),
        ("n = Relu(a)  b = MatMul(n, w1)  c = Tanh(b)  s = Add(c, a)", "residual"),
        # parallel branches, and a sum of skips: nothing of its width is read on the way
        ("b = MatMul(x, w2)  s = Add(a, b)", "inner"),
        ("b = MatMul(x, w2)  c = MatMul(x, w3)  t = Add(a, b)  s = Add(t, c)", "inner"),
        # a gate: what is added carries the value itself
        ("b = MatMul(a, w1)  g = Sigmoid(b)  h = Mul(a, g)  s = Add(a, h)", "inner"),
    ],
)
def test_a_sum_is_a_stream_where_it_adds_what_was_made_of_itself(text, scope):
    built = model(
        f"a = MatMul(x, w0)  {text}  y = MatMul(s, w4)",
        TOKENS, w0=(12, 8), w1=(8, 8), w2=(12, 8), w3=(12, 8), w4=(8, 3),
    )  # fmt: skip
    assert [(size, kind, where) for _, size, kind, where in sizes(built)] == [
        (8, "features", scope)
    ]
    holds(built)


def test_parts_of_one_tensor_that_follow_each_other_are_no_stream():
    """Res2Net: every part of a split is worked on with what became of the part before it."""
    built = model(
        """a = Conv(x, w0)  a1, a2, a3 = Split <num_outputs=3, axis=1> (a)
        b1 = Conv <pads=[1,1,1,1]> (a1, w1)  c1 = Relu(b1)  t = Add(c1, a2)
        b2 = Conv <pads=[1,1,1,1]> (t, w2)  c2 = Relu(b2)  u = Add(c2, a3)
        b3 = Conv <pads=[1,1,1,1]> (u, w3)  c3 = Relu(b3)
        d = Concat <axis=1> (c1, c2, c3)  y = Conv(d, w4)""",
        IMAGE, w0=(12, 3, 1, 1), w1=(4, 4, 3, 3), w2=(4, 4, 3, 3), w3=(4, 4, 3, 3),
        w4=(5, 12, 1, 1),
    )  # fmt: skip
    assert [s[1:] for s in sizes(built)] == [(4, "channels", "inner")] * 4
    holds(built)


@pytest.mark.parametrize(
    ("tokens", "weight"),
    [
        ("Conv (v, ws, b)", (5, 5, 1)),
        ("ConvTranspose (v, ws, b)", (5, 5, 1)),
        ('Conv <group=5, auto_pad="SAME_UPPER"> (v, ws, b)', (5, 1, 1)),
    ],
)
def test_a_window_of_one_carries_the_axis_it_slides_along(tokens, weight):
    """gMLP: a convolution of size one mixes tokens, feature by feature."""
    built = model(
        f"""h = MatMul(x, w0)  u, v = Split <num_outputs=2, axis=2> (h)  t = {tokens}
        m = MaxPool <kernel_shape=[1]> (t)  g = Mul(u, m)  y = MatMul(g, w1)""",
        TOKENS, w0=(12, 16), ws=weight, b=(5,), w1=(8, 12),
    )  # fmt: skip
    assert sizes(built) == [("w0", 8, "features", "inner")]
    holds(built)


@pytest.mark.parametrize("how", ["kernel_shape=[2]", "kernel_shape=[1], strides=[2]"])
def test_wider_windows_and_strides_let_no_position_go(how):
    built = model(
        f"h = MatMul(x, w0)  m = MaxPool <{how}> (h)  y = MatMul(m, w1)",
        TOKENS, w0=(12, 9), w1=(8 if "2]" in how[:17] else 5, 3),
    )  # fmt: skip
    assert sizes(built) == []


def test_indices_of_a_maximum_point_into_the_whole_tensor():
    built = model(
        """h = Conv(x, w0)  m, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (h)
        f = Cast <to=1> (i)  s = Add(f, m)  y = Conv(s, w1)""",
        IMAGE, w0=(8, 3, 1, 1), w1=(4, 8, 1, 1),
    )  # fmt: skip
    assert sizes(built) == []
