"""The work that choice counts on is what the cost analysis finds after the cut."""

import numpy as np
import pytest

from graphopt import Context, cut
from graphopt.analyses.cost import cost
from graphopt.analyses.dims import dimensions
from graphopt.analyses.dims.cost_model import work
from graphopt.testing import parse_model

MODELS = {
    "chain": (
        "a = Conv (x, w1, b1)  r = Relu (a)  c = Conv (r, w2)  p = GlobalAveragePool (c)"
        "  f = Flatten (p)  y = Gemm (f, w3)",
        {"x": (1, 3, 8, 8)},
        {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (6, 8, 3, 3), "w3": (6, 4)},
    ),
    "residual": (
        "a = Conv (x, w1)  r = Relu (a)  b = Conv (r, w2)  s = Add (a, b)  y = Conv (s, w3)",
        {"x": (1, 3, 4, 4)},
        {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1), "w3": (4, 8, 1, 1)},
    ),
    "concatenation": (
        "a = Conv (x, w1)  b = Conv (x, w2)  c = Concat <axis=1> (a, b)  r = Relu (c)"
        "  y = Conv (r, w3)",
        {"x": (1, 3, 4, 4)},
        {"w1": (8, 3, 1, 1), "w2": (6, 3, 1, 1), "w3": (4, 14, 1, 1)},
    ),
    "depthwise": (
        "a = Conv (x, w1)  d = Conv <group=8, pads=[1, 1, 1, 1]> (a, w2)  y = Conv (d, w3)",
        {"x": (1, 3, 4, 4)},
        {"w1": (8, 3, 1, 1), "w2": (8, 1, 3, 3), "w3": (4, 8, 1, 1)},
    ),
    "flatten": (
        "a = Conv (x, w1)  r = Relu (a)  f = Flatten (r)  y = Gemm <transB=1> (f, w2)",
        {"x": (1, 3, 2, 2)},
        {"w1": (8, 3, 1, 1), "w2": (5, 32)},
    ),
    "transposed convolution": (
        "a = ConvTranspose (x, w1)  r = Relu (a)  y = ConvTranspose (r, w2)",
        {"x": (1, 3, 4, 4)},
        {"w1": (3, 8, 2, 2), "w2": (8, 4, 2, 2)},
    ),
    "weights behind a transpose": (
        "t = Transpose <perm=[1, 0]> (w1)  a = MatMul (x, t)  r = Relu (a)  y = MatMul (r, w2)",
        {"x": (2, 5, 6)},
        {"w1": (8, 6), "w2": (8, 4)},
    ),
    "attention": (
        "q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)"
        "  q4 = Reshape (q, s)  k4 = Reshape (k, s)  v4 = Reshape (v, s)"
        "  qt = Transpose <perm=[0, 2, 1, 3]> (q4)  kt = Transpose <perm=[0, 2, 3, 1]> (k4)"
        "  vt = Transpose <perm=[0, 2, 1, 3]> (v4)  l = MatMul (qt, kt)  p = Softmax (l)"
        "  o = MatMul (p, vt)  ot = Transpose <perm=[0, 2, 1, 3]> (o)  m = Reshape (ot, back)"
        "  y = MatMul (m, wo)",
        {"x": (2, 5, 24)},
        {
            "wq": (24, 24),
            "wk": (24, 24),
            "wv": (24, 24),
            "wo": (24, 24),
            "s": np.array([2, 5, 4, 6]),
            "back": np.array([2, 5, 24]),
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_is_what_a_cut_leaves(name):
    text, inputs, constants = MODELS[name]
    rng = np.random.default_rng(0)
    arrays = {
        k: v if isinstance(v, np.ndarray) else rng.standard_normal(v).astype(np.float32)
        for k, v in constants.items()
    }
    model = parse_model(text, inputs=inputs, constants=arrays)
    ctx = Context(model)
    dims = ctx.get(dimensions).prunable
    assert dims
    macs, params, units = (work(dims, of, ctx) for of in ("macs", "params", "units"))
    kept = {n: np.sort(rng.permutation(d.size)[: -(-d.size // 2)]) for n, d in dims.items()}
    share = {n: len(k) / dims[n].size for n, k in kept.items()}
    assert macs.total == ctx.get(cost).macs
    cut(model, kept, ctx)
    after = ctx.get(cost)
    assert macs.left(share) == pytest.approx(after.macs)
    tensors = [v.const_value.numpy() for v in model.graph.initializers.values()]
    weights = sum(t.size for t in tensors if t.dtype == np.float32)
    integers = sum(t.size for t in arrays.values() if t.dtype == np.int64)
    assert params.left(share) - integers == pytest.approx(weights)
    assert units.left(share) == sum(map(len, kept.values()))


def test_saved_is_the_difference():
    text, inputs, constants = MODELS["residual"]
    arrays = {k: np.ones(v, np.float32) for k, v in constants.items()}
    ctx = Context(parse_model(text, inputs=inputs, constants=arrays))
    dims = ctx.get(dimensions).prunable
    macs = work(dims, "macs", ctx)
    (first, *_) = dims
    share = dict.fromkeys(dims, 0.75)
    difference = macs.left(share) - macs.left({**share, first: 0.5})
    assert macs.saved(share, first, 0.5) == pytest.approx(difference)
