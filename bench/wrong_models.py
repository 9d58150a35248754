"""Small models that wrong passes are tried on: one trait each, and inputs that show it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import numpy_helper, parser

__all__ = ["MODELS", "Small"]

HEAD = '<ir_version: {ir}, opset_import: ["": {opset}]>\n'


@dataclasses.dataclass(frozen=True)
class Small:
    """A model as text; `w_3_4` in it is a weight of that shape, `high` bounds integers."""

    text: str
    opset: int = 20
    high: int = 2
    ir: int = 10
    edges: tuple[float, ...] = ()

    def proto(self):
        """The model with its weights drawn, always the same."""
        words = "".join(c if c.isalnum() or c == "_" else " " for c in self.text).split()
        names = sorted({w for w in words if w.startswith("w_")})
        shapes = {n: [int(d) for d in n.split("_") if d.isdigit()] for n in names}
        declared = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in shapes.items())
        text = self.text.replace("WEIGHTS", declared)
        model = parser.parse_model(HEAD.format(ir=self.ir, opset=self.opset) + text)
        rng = np.random.default_rng(3)
        kept = [t for t in model.graph.initializer if t.name not in names]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        for name in names:
            array = rng.standard_normal(shapes[name]) / np.sqrt(shapes[name][0])
            array = np.abs(array) + 0.1 if name.endswith("_pos") else array
            model.graph.initializer.append(numpy_helper.from_array(array.astype("f4"), name))
        onnx.checker.check_model(model)
        return model

    def feeds(self, rng, batch, kind):
        """Inputs of one run: "normal", "large", "far", "tiny", "zeros", "ties" or "edges"."""
        made, sizes = {}, {"batch": batch, "seq": 3 + batch % 4, "n": batch}
        model = self.proto()
        weights = {t.name for t in model.graph.initializer}
        for value in model.graph.input:
            if value.name in weights and kind != "large":
                continue  # what has a default is given once
            tensor = value.type.tensor_type
            shape = [d.dim_value or sizes[d.dim_param] for d in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            made[value.name] = self.drawn(rng, shape, dtype, kind)
        return made

    def drawn(self, rng, shape, dtype, kind):
        if dtype.kind == "b":
            return np.asarray(rng.random(shape) < (0.0 if kind == "zeros" else 0.6))
        if dtype.kind in "iu":
            low = -self.high if dtype == np.int32 else 0
            return rng.integers(low, self.high, shape).astype(dtype)
        scale = {"large": 20.0, "far": 1e4, "tiny": 1e-33, "zeros": 0.0}.get(kind, 1.0)
        array = rng.standard_normal(shape) * scale
        if kind == "zeros":
            array = rng.choice([0.0, -0.0], shape)
        if kind == "ties":
            array = rng.integers(-2, 3, shape) / 2
        if kind == "edges" and self.edges:
            array = np.where(rng.random(shape) < 0.3, rng.choice(self.edges, shape), array)
        return array.astype(dtype)


MODELS = {
    "mlp": Small("""net (float[batch,16] x) => (float[batch,4] y, float[batch,4] z) <WEIGHTS> {
        h = MatMul(x, w_16_32_a)  hb = Add(h, w_32_b)  r = Relu(hb)
        yb = MatMul(r, w_32_4_c)  y = Add(yb, w_4_d)  z = Sigmoid(y) }"""),
    "scores": Small("""net (float[batch,16] x) => (float[batch,8] p, int64[batch] a)
        <WEIGHTS, int64[1] last = {-1}> {
        h = MatMul(x, w_16_8_a)  s = Add(h, w_8_b)  p = Softmax<axis=-1>(s)
        a = ArgMax<axis=-1, keepdims=0>(s) }"""),
    "logs": Small("""net (float[batch,8] x) => (float[batch,8] y) {
        y = LogSoftmax<axis=-1>(x) }"""),
    "conv": Small("""net (float[batch,4,8,8] x) => (float[batch,6,4,4] y, float[batch,6,4,4] z)
        <WEIGHTS, int64[8] pads = {0,0,1,1,0,0,1,1}> {
        p = Pad<mode="reflect">(x, pads)
        c = Conv<group=2, pads=[0,1,1,0], strides=[1,1]>(p, w_6_2_3_3_a, w_6_b)
        n = BatchNormalization<epsilon=0.01>(c, w_6_pos, w_6_e, w_6_f, w_6_g_pos)
        l = LeakyRelu<alpha=0.2>(n)
        y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>(l)
        z = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(l)
        }"""),
    "resized": Small("""net (float[batch,2,5,5] x) => (float[batch,2,10,10] y)
        <float[4] scales = {1.0,1.0,2.0,2.0}, float[0] none = {}> {
        y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, none, scales)
        }"""),
    "norm": Small("""net (float[batch,6,6] x) => (float[batch,6,6] y, float[batch,6,6] z)
        <WEIGHTS> {
        n = LayerNormalization<axis=-1, epsilon=0.00001>(x, w_6_a, w_6_b)  y = Gelu(n)
        t = Transpose<perm=[0,2,1]>(x)  s = Softmax<axis=-1>(t)
        z = Einsum<equation="bij,jk->bik">(s, w_6_6_c) }"""),
    "tokens": Small("""net (int64[batch,seq] ids) => (float[batch,seq,8] y, float[batch,seq,1] k)
        <WEIGHTS, float one = {1.0}, int64[1] unit = {1}, int64[1] two = {2}> {
        e = Gather<axis=0>(w_50_8_a, ids)  h = MatMul(e, w_8_8_b)  y = Tanh(h)
        s = Shape(ids)  full = Concat<axis=0>(s, unit)
        k = ConstantOfShape<value = float[1] {0.5}>(full) }""", high=50),
    "wide": Small("""net (int64[batch,seq] ids) => (int64[batch,seq] y) <int64 k = {3}> {
        d = Mul(ids, k)  y = Add(d, ids) }""", high=1 << 33),
    "masked": Small("""net (float[batch,seq,8] x, bool[batch,seq] mask) => (float[batch,seq,8] y)
        <float low = {-1000000000.0}, float root = {2.828427}, int64[1] one = {1}> {
        t = Transpose<perm=[0,2,1]>(x)  d = MatMul(x, t)  s = Div(d, root)
        m = Unsqueeze(mask, one)  w = Where(m, s, low)  p = Softmax<axis=-1>(w)
        y = MatMul(p, x) }"""),
    "flagged": Small("""net (float[batch,6] x, bool flag) => (float[batch,6] y)
        <float rare = {30.0}, float scale = {0.5}> {
        m = ReduceMax<keepdims=0>(x)  c = Greater(m, rare)
        h = If(flag) <then_branch = a () => (float[batch,6] t) { t = Mul(x, scale) },
                      else_branch = b () => (float[batch,6] e) { e = Sin(x) }>
        y = If(c) <then_branch = q () => (float[batch,6] u) { k = Constant<value_float=0.25>()
                                                              u = Mul(h, k) },
                   else_branch = w () => (float[batch,6] v) { v = Neg(h) }> }"""),
    "long": Small("""net (float[batch,6] x) => (float[batch,6] y)
        <int64 four = {4}, int64 zero = {0}> {
        s = Shape(x)  b = Gather<axis=0>(s, zero)  c = Greater(b, four)
        y = If(c) <then_branch = a () => (float[batch,6] t) { t = Abs(x) },
                   else_branch = b () => (float[batch,6] e) { e = Identity(x) }> }"""),
    "loop": Small("""net (float[batch,4] x) => (float[batch,4] y)
        <int64 turns = {20}, bool yes = {1}, float half = {0.9375}> {
        y = Loop(turns, yes, x) <body = b (int64 i, bool c, float[batch,4] h)
            => (bool d, float[batch,4] g) { d = Identity(c)  f = Mul(h, half)
                                             g = Add(f, x) }> }"""),
    "gru": Small("""net (float[seq,batch,4] x, float[1,batch,5] h0)
        => (float[seq,1,batch,5] y, float[1,batch,5] h1) <WEIGHTS> {
        y, h1 = GRU<hidden_size=5, linear_before_reset=1>(
            x, w_1_15_4_a, w_1_15_5_b, w_1_30_c, , h0) }"""),
    "ints": Small("""net (int32[batch,4] a, int32[batch,4] b)
        => (int32[batch,4] q, int32[batch,4] m, int32[batch,4] p)
        <int32 three = {3}, int32 four = {4}> {
        q = Div(a, four)  m = Mod(b, three)  p = Mul(a, b) }""", high=40000),
    "text": Small("""net (float[batch,3] x) => (string[batch] y)
        <string[3] labels = {"cat", "dog", "emu"}> {
        a = ArgMax<axis=1, keepdims=0>(x)  y = Gather<axis=0>(labels, a) }"""),
    "quant": Small("""net (float[batch,8] x) => (float[batch,4] y)
        <float s = {0.05}, uint8 z = {120}, int8[8,4] w = {
        1,-2,3,-4,5,-6,7,-8,9,10,-11,12,13,-14,15,16,17,18,-19,20,21,-22,23,24,
        25,26,-27,28,29,30,31,-32}, float[4] sw = {0.01,0.02,0.03,0.04}> {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        v = DequantizeLinear<axis=1>(w, sw)  y = MatMul(d, v) }"""),
    "special": Small("""net (float[batch,8] x)
        => (float[batch,8] y, float[batch,8] r, bool[batch,8] g)
        <float zero = {0.0}, float one = {1.0}, float half = {0.5}, float huge = {1e30}> {
        n = IsNaN(x)  y = Where(n, zero, x)  k = Mul(x, huge)  r = Reciprocal(k)
        g = Greater(x, half) }""", edges=(np.nan, -0.0, 0.5, 1e-38)),
    "plain": Small("""net (float[batch,8] x)
        => (float[batch,8] y, float[batch,8] z, float[batch,8] u)
        <float lo = {0.0}, float hi = {6.0}> {
        y = Clip(x, lo, hi)  z = Round(x)  s = Mul(x, x)  u = Sqrt(s) }"""),
    "random": Small("""net (float[batch,8] x) => (float[batch,8] y) <float k = {0.1}> {
        r = RandomNormalLike<seed=7.0>(x)  s = Mul(r, k)  y = Add(x, s) }"""),
    "hollow": Small("""net (float[n,4] x) => (float[4] s, float[n,4] k, float[n,2,2] q)
        <int64[1] first = {0}, int64[0] none = {}, int64[3] shape = {0,2,2}> {
        s = ReduceSum<keepdims=0>(x, first)  k = ReduceSum<noop_with_empty_axes=1>(x, none)
        q = Reshape(x, shape) }"""),
    "eleven": Small("""net (float[batch,3,4] x) => (float[batch,3,4] y)
        { h = Tanh(x)  y = Softmax<axis=1>(h) }""", opset=11, ir=6),
    "given": Small("""net (float[batch,4] x, float[1] k) => (float[batch,4] y)
        <float[1] k = {2.0}> {
        y = Mul(x, k) }"""),
    "unread": Small("""net (float[batch,4] x, float[batch,4] hint) => (float[batch,4] y) {
        y = Tanh(x) }"""),
    "picks": Small("""net (float[batch,9] x, int64[batch] at)
        => (float[batch,3] v, int64[batch,3] i, float[batch,3] a, float[batch,1] g)
        <int64[1] three = {3}, int64[1] one = {1}> {
        v, i = TopK<axis=1>(x, three)  a, b, c = Split<axis=1, num_outputs=3>(x)
        u = Unsqueeze(at, one)  g = GatherElements<axis=1>(x, u) }""", high=9),
}  # fmt: skip
