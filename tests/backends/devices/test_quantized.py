"""Q/DQ told to converters that know none: floats with grids, pairs as compilers look for them."""

from collections import Counter

import numpy as np
import pytest
from graphopt.backends.devices.ncnn_int8 import write_integers
from graphopt.backends.devices.quantized import Grid, in_floats, in_pairs, rounding_data_alone
from quantized_nets import BIAS, PS, WS, G, P, S, W, X, net

from graphopt.errors import ModelError
from graphopt.execution.runtime import run
from graphopt.graph.constants import constant_value
from graphopt.testing import parse_model


def kinds(model):
    return Counter(n.op_type for n in model.graph)


def test_in_floats_are_the_reals_that_the_integers_stand_for():
    floats, (conv, product) = in_floats(net())
    assert not {"QuantizeLinear", "DequantizeLinear"} & kinds(floats).keys()
    np.testing.assert_array_equal(conv.weight, W * WS[:, None, None, None])
    np.testing.assert_array_equal(product.weight, (P * PS).T)
    np.testing.assert_array_equal(product.scales, PS)
    assert (conv.data, conv.result) == (Grid(float(S), 0), Grid(float(G), 0))
    assert (product.data, product.result) == (Grid(float(G), 0), None)
    assert conv.names[-2:] == ("c", "r")
    # the integers round to halves of a step: 27 products of at most 127 steps
    np.testing.assert_allclose(run(floats, {"x": X})["y"], run(net(), {"x": X})["y"], atol=0.05)


def test_unsigned_grids_are_those_of_signed_integers():
    text = """
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    k = DequantizeLinear(w, s)  y = Conv(d, k)
    """
    constants = {"s": S, "z": np.uint8(100), "w": W}
    _, (layer,) = in_floats(parse_model(text, inputs={"x": X.shape}, constants=constants))
    assert layer.data == Grid(float(S), -28)
    np.testing.assert_array_equal(layer.scales, np.full(32, S))


def test_an_output_that_was_rounded_keeps_its_name():
    text = "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)"
    model = parse_model(text, inputs={"x": (2,)}, constants={"s": S, "z": np.int8(0)})
    floats, layers = in_floats(model)
    x = np.array([0.123, 9], np.float32)
    np.testing.assert_array_equal(run(floats, {"x": x})["y"], x)
    assert layers == []


def test_rounding_data_alone_leaves_results_as_floats():
    model = rounding_data_alone(net())
    readers = [
        use.node.op_type
        for n in model.graph
        if n.op_type == "DequantizeLinear" and constant_value(n.inputs[0]) is None
        for use in n.outputs[0].uses()
    ]
    assert readers == ["Conv", "MatMul"]  # the mean reads floats


def test_in_pairs_every_reader_has_its_own_and_weights_have_rows_first():
    text = """
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    k = DequantizeLinear<axis=0>(w, ws)  b = DequantizeLinear<axis=0>(bq, bs)
    c = Conv<pads=[1,1,1,1]>(d, k, b)  e = Conv<pads=[1,1,1,1]>(d, k, b)  y = Add(c, e)
    """
    constants = {"s": S, "z": np.int8(0), "w": W, "ws": WS, "bq": BIAS, "bs": S * WS}
    model = parse_model(text, inputs={"x": X.shape}, constants=constants)
    made = in_pairs(model)
    assert kinds(made)["DequantizeLinear"] == 4  # two of the data, two of the weights
    assert all(len(n.outputs[0].uses()) == 1 for n in made.graph if n.op_type == "DequantizeLinear")
    np.testing.assert_array_equal(run(made, {"x": X})["y"], run(model, {"x": X})["y"])
    turned = in_pairs(net())
    assert kinds(turned)["Transpose"] == 1
    np.testing.assert_array_equal(run(turned, {"x": X})["y"], run(net(), {"x": X})["y"])


def test_ncnn_reads_integers_where_floats_were(tmp_path):
    floats, layers = in_floats(net())
    conv, product = layers
    zeros, bias = bytes(4), (S * WS * BIAS).astype("<f4").tobytes()
    floats_file = b"".join(
        [zeros, conv.weight.tobytes(), bias, zeros, product.weight.tobytes(), b"rest"]
    )
    (tmp_path / "m.bin").write_bytes(floats_file)
    lines = [
        "7767517",
        "2 3",
        "Convolution c 1 1 in0 1 0=32 1=3 5=1 6=864 9=1",
        "Gemm y 1 1 1 out0 10=4 2=0 3=1 4=0 5=1 6=0 7=1 8=1024 9=32",
    ]
    (tmp_path / "m.param").write_text("\n".join(lines))
    write_integers(tmp_path / "m.param", floats, layers)
    made = [" ".join(line.split()) for line in (tmp_path / "m.param").read_text().split("\n")]
    assert made[2] == "Convolution c 1 1 in0 1 0=32 1=3 5=1 6=864 9=1 8=2"
    assert made[3] == "InnerProduct y 1 1 1 out0 0=1024 1=0 2=32768 8=2"
    mark = (0x000D4B38).to_bytes(4, "little")
    scales = [np.array([*(1 / s), 1 / g], "<f4").tobytes() for s, g in ((WS, S), (PS, G))]
    expected = [mark, W.tobytes(), bias, scales[0], mark, P.T.tobytes(), scales[1], b"rest"]
    assert (tmp_path / "m.bin").read_bytes() == b"".join(expected)


def test_layers_that_are_not_those_of_the_model_stay_as_they_are(tmp_path):
    floats, layers = in_floats(net())
    (tmp_path / "m.bin").write_bytes(bytes(4) + layers[0].weight.tobytes())
    lines = ["7767517", "2 2", "Convolution c 1 1 a b 0=32", "InnerProduct y 1 1 b d 0=1024 2=1536"]
    (tmp_path / "m.param").write_text("\n".join(lines))
    with pytest.raises(ModelError, match="pnnx gave 'y' another weight than the model's"):
        write_integers(tmp_path / "m.param", floats, layers)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("zeros", [False, True])
def test_blocks_are_reals_and_no_layers(axis, zeros):
    q = np.random.default_rng(0).integers(-8, 8, (8, 6)).astype(np.int8)
    shape = (2, 6) if axis == 0 else (8, 2)
    size = 4 if axis == 0 else 3
    s = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    z = (s % 5).astype(np.int8)
    x = np.ones((2, 8), np.float32)
    model = parse_model(
        "qx = QuantizeLinear(x, p)  dx = DequantizeLinear(qx, p)"
        f"  w = DequantizeLinear<axis={axis}, block_size={size}>(q, s{', z' if zeros else ''})"
        "  y = MatMul(dx, w)",
        inputs={"x": x},
        constants={"q": q, "s": s, "z": z, "p": np.float32(1)},
        opset=21,
    )
    floats, layers = in_floats(model)
    assert not layers
    assert [n.op_type for n in floats.graph] == ["MatMul"]
    np.testing.assert_allclose(run(floats, {"x": x})["y"], run(model, {"x": x})["y"], rtol=1e-5)
    assert "Transpose" not in [n.op_type for n in in_pairs(model).graph]
