"""The models that `fuzz.py` mutates: small ones written here, and the cases of ONNX's own suite."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["seeds"]

#: Graphs in ONNX's text form, and the shapes of their weights.
WRITTEN: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "convolutions": (
        """g (float[n, 3, 8, 8] x) => (float[n, 5] y) {
        c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w1, b1)
        m = BatchNormalization(c, s, s, s, v) r = Relu(m)
        p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
        d = Conv<group = 2>(p, w2) e = Add(d, p) q = Clip(e, low, high)
        a = GlobalAveragePool(q) f = Flatten(a) z = Gemm<transB = 1>(f, w3, b3) y = Softmax(z) }""",
        {"w1": (4, 3, 3, 3), "b1": (4,), "s": (4,), "v": (4,), "w2": (4, 2, 1, 1)}
        | {"w3": (5, 4), "b3": (5,), "low": (), "high": ()},
    ),
    "attention": (
        """g (float[b, t, 8] x) => (float[b, t, 8] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        h = Constant<value_ints = [0, 0, 2, 4]>() f = Constant<value_ints = [0, 0, 8]>()
        q1 = Reshape(q, h) k1 = Reshape(k, h) v1 = Reshape(v, h)
        q2 = Transpose<perm = [0, 2, 1, 3]>(q1) k2 = Transpose<perm = [0, 2, 3, 1]>(k1)
        v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
        s = MatMul(q2, k2) two = Constant<value_float = 2.0>()
        d = Div(s, two) p = Softmax<axis = -1>(d) o = MatMul(p, v2)
        o1 = Transpose<perm = [0, 2, 1, 3]>(o) o2 = Reshape(o1, f) u = Add(o2, x)
        m = ReduceMean<axes = [-1]>(u) c = Sub(u, m) e = Mul(c, c) w = ReduceMean<axes = [-1]>(e)
        r = Sqrt(w) n = Div(c, r) y = Mul(n, g1) }""",
        {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "g1": (8,)},
    ),
    "recurrent": (
        """g (float[t, b, 4] x, int32[b] n) => (float[] y, float[] h2, float[] z) {
        one = Constant<value_ints = [1]>() a, h, c = LSTM<hidden_size = 3>(x, w, r, b1, n)
        s = Squeeze(a, one) y, h2 = GRU<hidden_size = 2, linear_before_reset = 1>(s, w2, r2)
        z = Squeeze(h) }""",
        {"w": (1, 12, 4), "r": (1, 12, 3), "b1": (1, 24), "w2": (1, 6, 3), "r2": (1, 6, 2)},
    ),
    "control": (
        """g (float[n, 4] x, bool c) => (float[] y, float[] l) {
        s = Shape(x) i = Constant<value_int = 1>() d = Gather(s, i) k = Cast<to = 9>(d)
        a = If(k) <then_branch = t () => (float[n, 4] p) { p = Relu(x) },
                   else_branch = e () => (float[n, 4] q) { q = Neg(x) }>
        o = If(c) <then_branch = t2 () => (float[n, 4] p2) { p2 = MatMul(a, w) },
                   else_branch = e2 () => (float[n, 4] q2) { q2 = Exp(a) }>
        three = Constant<value_int = 3>() yes = Constant<value = bool {1}>()
        y, l = Loop(three, yes, o) <body = b (int64 it, bool go, float[n, 4] v)
            => (bool go2, float[n, 4] w2, float[n, 4] u) {
            go2 = Identity(go) w2 = Add(v, x) u = Mul(v, v) }> }""",
        {"w": (4, 4)},
    ),
    "sizes": (
        """g (float[n, 6] x, int64[k] i) => (float[] y, float[] z, int64[] j) {
        s = Shape(x) zero = Constant<value_ints = [0]>() one = Constant<value_ints = [1]>()
        a = Slice(s, zero, one) m = Constant<value_ints = [2, -1]>()
        t = Concat<axis = 0>(a, m) r = Reshape(x, t) y = ReduceSum<keepdims = 0>(r, one)
        e = Gather<axis = 1>(x, i) u = Unsqueeze(e, zero) rep = Constant<value_ints = [2, 1, 1]>()
        z = Tile(u, rep) q = ConstantOfShape<value = int64[1] {3}>(s) p = Mul(q, q)
        v = Expand(p, s) j = Cast<to = 7>(v) }""",
        {},
    ),
    "quantized": (
        """g (float[n, 4] x) => (float[] y) {
        s = Constant<value_float = 0.05>() z = Constant<value = uint8 {128}>()
        z2 = Constant<value = int8 {0}>()
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)
        c = QuantizeLinear(w, s, z2) d = DequantizeLinear(c, s, z2) m = MatMul(b, d)
        y = Relu(m) }""",
        {"w": (4, 6)},
    ),
    "others": (
        """g (float[2, 3] x, string[2] t) => (float[] y, bool[] f, float[] o) {
        q = SequenceConstruct(x, x) i = Constant<value_int = 1>() y = SequenceAt(q, i)
        w = Constant<value_strings = ["a", "b"]>() f = Equal(t, w) p = Optional(x)
        o = OptionalGetElement(p) }""",
        {},
    ),
    "functions": (
        """g (float[n, 4] x) => (float[] y) { a = f.act(x) b = f.act(a) y = MatMul(b, w) }
        <domain: "f", opset_import: ["" : 17]> act (a) => (c) { b = Sigmoid(a) c = Mul(a, b) }""",
        {"w": (4, 3)},
    ),
}
OPSETS = {"others": 19}


@functools.cache
def seeds() -> list[bytes]:
    """The serialized models; those written here come 20 times each, to weigh as much as a suite."""
    own = [_written(name, *parts) for name, parts in WRITTEN.items()]
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = [c.model.SerializeToString() for c in load_model_tests(kind="node")]
    light = Path(onnx.__file__).parent / "backend/test/data/light"
    nets = [(light / f"light_{n}.onnx").read_bytes() for n in ("squeezenet", "shufflenet")]
    return own * 20 + [c for c in cases if len(c) < 20_000] + nets


def _written(name: str, text: str, weights: dict[str, tuple[int, ...]]) -> bytes:
    head = f'<ir_version: 8, opset_import: ["" : {OPSETS.get(name, 17)}, "f" : 1]>'
    model = onnx.parser.parse_model(f"{head} {text}")
    rng = np.random.default_rng(0)
    for key, shape in weights.items():
        array = np.abs(rng.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, key))
    return bytes(model.SerializeToString())
