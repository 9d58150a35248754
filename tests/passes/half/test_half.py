"""Half: what is stored in 16 bits, what a runtime computes from it, what stays float32."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.half import Half

from graphopt import optimize
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.io.writing import write_model
from graphopt.samples import Samples
from graphopt.testing import parse_model

RNG = np.random.default_rng(3)
W = RNG.standard_normal((48, 40)).astype(np.float32)
X = RNG.standard_normal((5, 48)).astype(np.float32)
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def made(w=W, dtype="float16", text="y = MatMul(x, w)", opset=21):
    model = parse_model(text, inputs={"x": X}, constants={"w": w}, opset=opset)
    ctx = Context(model)
    return model, ctx, Half(dtype=dtype).run(model, ctx)


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_have_two_bytes_and_the_runtime_multiplies_by_the_rounded_ones(dtype, tmp_path):
    model, _, edits = made(dtype=dtype)
    assert edits == 1
    assert [n.op_type for n in model.graph] == ["Cast", "MatMul"]
    rounded = W.astype(TYPES[dtype]).astype(np.float32)
    np.testing.assert_allclose(run(model, {"x": X})["y"], X @ rounded, rtol=1e-5, atol=1e-5)
    write_model(model, tmp_path / "m.onnx")
    (tensor,) = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert len(tensor.raw_data) == 2 * W.size


@pytest.mark.parametrize(
    ("w", "dtype", "reason"),
    [
        (W * 1e5, "float16", "overflows"),
        (W * 1e-8, "float16", "loses"),
        (np.where(W > 2, np.inf, W), "float16", "not finite"),
    ],
)
def test_what_16_bits_cannot_hold_stays(w, dtype, reason):
    model, ctx, edits = made(w.astype(np.float32), dtype)
    assert edits == 0
    assert [n.op_type for n in model.graph] == ["MatMul"]
    assert reason in ctx.refusals[0].reason


@pytest.mark.parametrize("scale", [1e5, 1e-8])
def test_bfloat16_has_the_range_of_float32(scale):
    assert made((W * scale).astype(np.float32), "bfloat16")[2] == 1


def test_a_weight_read_twice_is_stored_once():
    model, _, edits = made(text="a = MatMul(x, w)  b = Mul(w, w)  c = MatMul(x, b)  y = Add(a, c)")
    assert edits == 1
    assert sum(n.op_type == "Cast" for n in model.graph) == 1
    w = W.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(run(model, {"x": X})["y"], X @ w + X @ (w * w), rtol=1e-4, atol=1e-4)


def test_old_opsets_have_no_bfloat16():
    _, ctx, edits = made(dtype="bfloat16", opset=12)
    assert edits == 0
    assert "opset 13" in ctx.idle


def test_in_a_pipeline_it_halves_the_file_and_keeps_the_interface():
    model = parse_model("y = MatMul(x, w)", inputs={"x": X}, constants={"w": W})
    result = optimize(model, "half", samples={"x": X}, measure=False)
    assert result.report.steps[0].status == "kept"
    assert result.model.graph.inputs[0].dtype == result.model.graph.outputs[0].dtype
    assert result.report.after.bytes < 0.6 * result.report.before.bytes


def test_an_unknown_type_is_named():
    with pytest.raises(ValueError, match="float16"):
        Half(dtype="float8")


@pytest.mark.parametrize("dtype", TYPES)
def test_where_terms_cancel_a_weight_stays_float(dtype):
    """Columns of w sum to nothing: rounding is all that x of one value sees."""
    w = W - W.mean(axis=0)
    x = np.ones_like(X) + 1e-4 * X
    constants = {"w": w, "v": W}
    text = "a = MatMul(x, w)  b = MatMul(z, v)"
    model = parse_model(text, inputs={"x": x, "z": X}, constants=constants)
    ctx = Context(model, samples=Samples([{"x": x, "z": X}]))
    assert Half(dtype=dtype).run(model, ctx) == 1
    assert "outputs that follow it move" in ctx.refusals[0].reason
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT
    np.testing.assert_allclose(run(model, {"x": x, "z": X})["a"], x @ w, atol=1e-5)
