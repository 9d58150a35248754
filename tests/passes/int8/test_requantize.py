"""Models that are quantized already: by ONNX Runtime's quantizer, and written by hand."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.int8 import Int8
from graphopt.passes.int8.requantize import form_of

from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.testing import parse_model

BEFORE = """
c = Conv <pads=[1, 1, 1, 1]> (x, u, a)  r = Relu(c)  d = Conv <pads=[1, 1, 1, 1]> (r, v, b)
s = Add(d, r)  y = Relu(s)
"""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def source():
    constants = {
        "u": normal(8, 4, 3, 3),
        "a": normal(8, seed=1),
        "v": normal(8, 8, 3, 3, seed=2),
        "b": normal(8, seed=3),
    }
    return parse_model(BEFORE, inputs={"x": (1, 4, 9, 9)}, constants=constants, opset=17)


def off(model, expected, feed):
    got = run(model, feed)["y"]
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def quantized_by_the_runtime(folder, activation, per_channel):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter([{"x": normal(1, 4, 9, 9, seed=s)} for s in range(4)])

        def get_next(self):
            return next(self.left, None)

    model = ir.to_proto(source())
    model.ir_version = 8
    onnx.save(model, folder / "float.onnx")
    quantize_static(
        str(folder / "float.onnx"),
        str(folder / "int8.onnx"),
        Reader(),
        activation_type=getattr(QuantType, activation),
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
    )
    return ir.load(folder / "int8.onnx")


@pytest.mark.filterwarnings("ignore")  # the quantizer's own
@pytest.mark.parametrize("with_samples", [True, False])
def test_the_slow_form_is_quantized_anew_with_its_own_ranges(tmp_path, with_samples):
    model = quantized_by_the_runtime(tmp_path, "QInt8", per_channel=False)
    feed = {"x": normal(1, 4, 9, 9, seed=0)}
    expected = run(source(), feed)["y"]
    before = off(model, expected, feed)
    samples = Samples([feed]) if with_samples else None
    ctx = Context(model, samples=samples)
    assert Int8().run(model, ctx) > 0
    kinds = {
        n.inputs[2].const_value.dtype.name for n in model.graph if n.op_type == "QuantizeLinear"
    }
    assert kinds == {"UINT8"}
    assert not any(
        v.const_value.dtype == ir.DataType.FLOAT and v.const_value.size > 64
        for v in model.graph.initializers.values()
    ), "no float copy of a weight stays"
    # ranges and weights are the source's, rounded once more: at most twice its error
    assert off(model, expected, feed) < 2 * before + 0.01
    assert any("quantized anew" in n for n in ctx.notes)


@pytest.mark.filterwarnings("ignore")
def test_the_target_s_own_form_is_kept(tmp_path):
    model = quantized_by_the_runtime(tmp_path, "QUInt8", per_channel=True)
    feed = {"x": normal(1, 4, 9, 9, seed=0)}
    expected = run(model, feed)["y"]
    nodes = [n.op_type for n in model.graph]
    ctx = Context(model, samples=Samples([feed]))
    Int8().run(model, ctx)
    assert any("kept" in n for n in ctx.notes)
    assert [n.op_type for n in model.graph] == nodes
    np.testing.assert_array_equal(run(model, feed)["y"], expected)


def test_a_relu_that_the_grid_stood_for_comes_back():
    before = (
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  n = Neg(d)  y = Sigmoid(n)"
    )
    constants = {"s": np.float32(0.02), "z": np.int8(-128)}
    x = normal(4, 8)
    model = parse_model(
        before.replace("(x,", "(h,").replace("q =", "h = Neg(x)  q ="),
        inputs={"x": x},
        constants=constants,
    )
    expected = run(model, {"x": x})["y"]
    Int8().run(model, Context(model, samples=Samples([{"x": x}])))
    assert "Relu" in [n.op_type for n in model.graph]
    assert "QuantizeLinear" not in [n.op_type for n in model.graph]
    # rounding to steps of 0.02 is gone; what was clipped below 0 is clipped still
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, atol=0.01)


def test_forms_that_are_not_known_stay():
    """Sixteen bits, and scales that are computed."""
    constants = {"s": np.float32(0.02), "z": np.uint16(300)}
    before = "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)"
    model = parse_model(before, inputs={"x": (2, 3)}, constants=constants, opset=21)
    assert form_of(model.graph) is None
    computed = parse_model(
        "t = Abs(s)  q = QuantizeLinear(x, t, z)  y = DequantizeLinear(q, t, z)",
        inputs={"x": (2, 3), "s": (1,)},
        constants={"z": np.uint8([3])},
        opset=21,
    )
    assert form_of(computed.graph) is None


def test_onnxsim_s_static_form_is_kept_without_its_float_copies():
    onnxsim = pytest.importorskip("onnxsim")
    model = ir.to_proto(source())
    model.ir_version = 8
    feed = {"x": normal(1, 4, 9, 9, seed=0)}
    quantized = ir.from_proto(onnxsim.quantize_static(model, [feed]))
    expected = run(quantized, feed)["y"]
    ctx = Context(quantized, samples=Samples([feed]))
    Int8().run(quantized, ctx)
    assert any("kept" in n for n in ctx.notes)
    assert not any(
        v.const_value.dtype == ir.DataType.FLOAT and v.const_value.size > 64
        for v in quantized.graph.initializers.values()
    )
    assert off(quantized, expected, feed) < 0.03
