"""Q/DQ as PyTorch's own operators on integers, the form that compilers of devices read."""

from collections import Counter

import numpy as np
import pytest

from graphopt.errors import ModelError
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
S, Z = np.float32(1 / 64), np.int8(3)
X = RNG.uniform(-1, 1, (4, 16)).astype(np.float32)
P = RNG.integers(-127, 128, (8, 16)).astype(np.int8)
PS = np.linspace(0.01, 0.02, 8).astype(np.float32)
READ = "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  "
CONSTANTS = {"s": S, "z": Z, "p": P, "ps": PS}


def lower(model):
    from graphopt.backends.torch_fx.lowering import lower

    return lower(model, integers=True)


def lowered(text, **more):
    model = parse_model(READ + text, inputs={"x": X.shape}, constants=CONSTANTS | more)
    module = lower(model)
    (y,) = module(torch.from_numpy(X))
    names = Counter(str(n.target) for n in module.graph.nodes if n.op == "call_function")
    return y.detach().numpy(), run(model, {"x": X})["y"], names, module


def test_pairs_are_operators_on_integers_and_weights_stay_integers():
    text = """
    k = DequantizeLinear<axis=0>(p, ps)  m = Gemm<transB=1>(d, k)
    r = QuantizeLinear(m, s, z)  y = DequantizeLinear(r, s, z)
    """
    got, expected, names, module = lowered(text)
    np.testing.assert_array_equal(got, expected)
    assert names["quantized_decomposed.quantize_per_tensor.default"] == 2
    assert names["quantized_decomposed.dequantize_per_tensor.default"] == 2
    assert names["quantized_decomposed.dequantize_per_channel.default"] == 1
    assert [b.dtype for n, b in module.named_buffers() if n == "p"] == [torch.int8]
    assert sum("linear" in name for name in names) == 1


def test_a_product_with_a_float_result_finds_its_range_at_run_time():
    text = "k = DequantizeLinear<axis=0>(p, ps)  t = Transpose<perm=[1,0]>(k)  y = MatMul(d, t)"
    got, expected, names, _ = lowered(text)
    assert names["quantized_decomposed.choose_qparams.tensor"] == 1
    assert names["quantized_decomposed.quantize_per_tensor.default"] == 0
    exact = X @ (P * PS[:, None]).T
    # both round the data: half a step of 2 / 255, or of 1 / 64, over 16 weights of at most 2.5
    np.testing.assert_allclose(got, exact, atol=0.15)
    np.testing.assert_allclose(expected, exact, atol=0.3)


def test_what_a_layer_gives_stays_rounded_before_it_is_rounded_anew():
    """Compilers take a layer in integers only if its result is rounded to constants."""
    text = """
    k = DequantizeLinear<axis=0>(p, ps)  m = Gemm<transB=1>(d, k)  a = Relu(m)
    r = QuantizeLinear(a, s, z)  e = DequantizeLinear(r, s, z)
    i = DequantizeLinear(o, s)  y = Gemm<transB=1>(e, i)
    """
    got, expected, names, _ = lowered(text, o=np.eye(8, dtype=np.int8))
    np.testing.assert_allclose(got, expected, atol=S * S)
    assert names["quantized_decomposed.quantize_per_tensor.default"] == 2
    assert names["quantized_decomposed.choose_qparams.tensor"] == 1


def test_a_grid_that_is_computed_has_no_such_operator():
    text = "q = QuantizeLinear(x, t, z)  y = DequantizeLinear(q, t, z)"
    model = parse_model(
        "t = ReduceMax<keepdims=0>(x)  " + text, inputs={"x": (2, 3)}, constants={"z": Z}
    )
    with pytest.raises(ModelError, match="is not one constant for the whole tensor"):
        lower(model)
