"""LiteRT's rules for integers: what stands between Q and DQ is one operator on int8."""

import numpy as np
import pytest
from litert_graphs import drawn, operators, parsed

from graphopt.testing import parse_model

pytest.importorskip("ai_edge_litert", reason="needs the litert extra")

from graphopt.backends.litert import BACKEND

from graphopt.backend import find_target

#: The activations' grid: from -4 to 4 in int8, and another.
GRIDS = {
    "s": np.float32(8 / 255),
    "z": np.int8(-1),
    "s2": np.float32(12 / 255),
    "z2": np.int8(3),
}


def quantized(weights):
    scale = np.abs(weights).max(axis=tuple(range(1, weights.ndim))) / 127
    along = scale.reshape(-1, *([1] * (weights.ndim - 1)))
    integers = np.rint(weights / along).astype(np.int8)
    return integers, scale.astype(np.float32), np.zeros(len(scale), np.int8)


def lower(tmp_path, text, shapes, constants):
    model = parse_model(text, inputs=shapes, constants={**GRIDS, **constants})
    path = BACKEND.lower(model, find_target("litert"), tmp_path / "m.tflite")
    return path, BACKEND.session(path, find_target("litert"))


IN = "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  "
OUT = "  r = QuantizeLinear(o, s2, z2)  y = DequantizeLinear(r, s2, z2)"
W, WS, WZ = quantized(drawn(4, 3, 3, 3))
CONV = {"w": W, "ws": WS, "wz": WZ, "bq": np.array([5, -3, 2, 0], np.int32)}
CONV |= {"bs": (WS * GRIDS["s"]).astype(np.float32), "bz": np.zeros(4, np.int32)}


def test_a_convolution_with_its_bias_and_relu(tmp_path):
    text = (
        IN + "k = DequantizeLinear<axis=0>(w, ws, wz)  b = DequantizeLinear<axis=0>(bq, bs, bz)"
        "  a = Conv<pads=[1,1,1,1]>(d, k, b)  o = Relu(a)" + OUT
    )
    path, _ = lower(tmp_path, text, {"x": (1, 3, 8, 8)}, CONV)
    assert [o for o in operators(path) if o != "TRANSPOSE"] == ["QUANTIZE", "CONV_2D", "DEQUANTIZE"]
    (graph,) = parsed(path).subgraphs
    bias = next(t for t in graph.tensors if t.type == 2 and len(t.shape) == 1 and t.quantization)
    np.testing.assert_allclose(bias.quantization.scale, WS * GRIDS["s"], rtol=1e-6)
    kernel = next(t for t in graph.tensors if list(t.shape) == [4, 3, 3, 3] and t.quantization)
    assert set(kernel.quantization.zeroPoint) == {0}
    assert kernel.quantization.quantizedDimension == 0
    np.testing.assert_allclose(kernel.quantization.scale, WS, rtol=1e-6)


@pytest.mark.parametrize("op", ["o = MatMul(d, k)", "o = Gemm(d, k, b)"])
def test_a_product_whose_result_stays_float_keeps_its_weights_as_integers(op, tmp_path):
    """The range of the data is found on every run; weights of a model in floats are unpacked."""
    integers, scale, zero = quantized(drawn(5, 6))
    constants = {"w": integers.T.copy(), "ws": scale, "wz": zero, "b": drawn(5)}
    text = IN + f"k = DequantizeLinear<axis=1>(w, ws, wz)  {op}  y = Softmax(o)"
    path, session = lower(tmp_path, text, {"x": (2, 6)}, constants)
    assert operators(path) == ["QUANTIZE", "DEQUANTIZE", "FULLY_CONNECTED", "SOFTMAX"]
    (graph,) = parsed(path).subgraphs
    (weights,) = (t for t in graph.tensors if list(t.shape) == [5, 6])
    np.testing.assert_allclose(weights.quantization.scale, scale, rtol=1e-6)
    x = drawn(2, 6)
    made = x @ (integers.T * scale) + (constants["b"] if "Gemm" in op else 0)
    expected = np.exp(made) / np.exp(made).sum(-1, keepdims=True)
    np.testing.assert_allclose(session({"x": x})["y"], expected, atol=0.03)
    text = f"k = DequantizeLinear<axis=1>(w, ws, wz)  {op.replace('(d', '(x')}  y = Softmax(o)"
    path, _ = lower(tmp_path, text, {"x": (2, 6)}, constants)
    assert "DEQUANTIZE" in operators(path)


def test_a_product_has_its_scales_along_the_rows_of_its_transposed_weights(tmp_path):
    w, ws, wz = quantized(drawn(6, 8))
    constants = {"w": np.ascontiguousarray(w.T), "ws": ws, "wz": wz}
    text = IN + "k = DequantizeLinear<axis=1>(w, ws, wz)  o = MatMul(d, k)" + OUT
    path, _ = lower(tmp_path, text, {"x": (2, 8)}, constants)
    assert operators(path) == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]
    kernel = next(t for t in parsed(path).subgraphs[0].tensors if list(t.shape) == [6, 8])
    assert kernel.quantization.quantizedDimension == 0


@pytest.mark.parametrize(
    ("text", "behind"),
    [
        ("o = Concat<axis=1>(d, d)", ["QUANTIZE", "QUANTIZE", "CONCATENATION"]),
        ("o = MaxPool<kernel_shape=[2,2]>(d)", ["QUANTIZE", "MAX_POOL_2D", "QUANTIZE"]),
        ("o = Flatten(d)", ["QUANTIZE", "RESHAPE", "QUANTIZE"]),
        ("o = Sigmoid(d)", ["QUANTIZE", "LOGISTIC", "QUANTIZE"]),
        ("o = Softmax(d)", ["QUANTIZE", "SOFTMAX", "QUANTIZE"]),
    ],
)
def test_kernels_with_grids_of_their_own_are_requantized_around(tmp_path, text, behind):
    path, _ = lower(tmp_path, IN + text + OUT, {"x": (1, 3, 4, 4)}, {})
    found = [o for o in operators(path) if o != "TRANSPOSE"]
    assert found == [*behind, "DEQUANTIZE"]


@pytest.mark.parametrize("text", ["o = MaxPool<kernel_shape=[2,2]>(d)", "o = Flatten(d)"])
def test_equal_grids_need_nothing_in_between(tmp_path, text):
    out = "  r = QuantizeLinear(o, s, z)  y = DequantizeLinear(r, s, z)"
    path, _ = lower(tmp_path, IN + text + out, {"x": (1, 3, 4, 4)}, {})
    assert operators(path).count("QUANTIZE") == 1


@pytest.mark.parametrize("operator", ["Add", "Mul", "Sub"])
def test_two_operands_on_their_own_grids(tmp_path, operator):
    text = IN + "p = QuantizeLinear(v, s2, z2)  e = DequantizeLinear(p, s2, z2)  "
    path, _ = lower(tmp_path, text + f"o = {operator}(d, e)" + OUT, {"x": (2, 8), "v": (2, 8)}, {})
    assert operators(path) == ["QUANTIZE", "QUANTIZE", operator.upper(), "DEQUANTIZE"]


def test_unsigned_activations_become_signed_with_the_zero_point_moved_along(tmp_path):
    unsigned = {"z": np.uint8(127), "z2": np.uint8(131)}
    text = IN + "o = Mul(d, d)" + OUT
    model = parse_model(text, inputs={"x": (2, 8)}, constants={**GRIDS, **unsigned})
    path = BACKEND.lower(model, find_target("litert"), tmp_path / "m.tflite")
    zeros = {
        int(t.quantization.zeroPoint[0])
        for t in parsed(path).subgraphs[0].tensors
        if t.quantization and len(t.quantization.zeroPoint or ())
    }
    assert zeros == {-1, 3}


def test_what_has_no_integers_behind_it_computes_in_floats(tmp_path):
    text = IN + "k = DequantizeLinear<axis=0>(w, ws, wz)  y = Conv(d, k)"
    path, opened = lower(tmp_path, text, {"x": (1, 3, 8, 8)}, CONV)
    found = operators(path)
    assert found.count("DEQUANTIZE") == 2
    assert opened({"x": drawn(1, 3, 8, 8)})["y"].dtype == np.float32


def test_operators_without_an_integer_kernel_are_dequantized_around(tmp_path):
    path, _ = lower(tmp_path, IN + "o = Exp(d)" + OUT, {"x": (2, 8)}, {})
    assert operators(path) == ["QUANTIZE", "DEQUANTIZE", "EXP", "QUANTIZE", "DEQUANTIZE"]


def test_the_kernel_enumeration_is_that_of_the_schema():
    from graphopt.backends.litert.flatbuffer import codes

    assert codes("TensorType")["INT32"] == 2
    assert codes("BuiltinOperator")["CONV_2D"] == 3
