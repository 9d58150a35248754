"""The standard form: the same numbers behind DequantizeLinear, which ONNX Runtime rewrites."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphopt.passes.weight_only import WeightOnly, finished, writer
from graphopt.passes.weight_only.blocks import form_of, in_blocks

from graphopt.backend import find_target
from graphopt.cache import Cache
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.pipeline.optimize import optimize
from graphopt.rewriting.opset import limit_opset
from graphopt.samples import Samples
from graphopt.target import ONNX, Target
from graphopt.testing import check, parse_model

NEWEST = Target("t", opset=25, blocks=True)
OTHER = Target("o", operators=frozenset({"com.microsoft:MatMulNBits"}))
RNG = np.random.default_rng(0)
W = (RNG.standard_normal((192, 132)) / 12).astype(np.float32)
ODD = np.ascontiguousarray(W[:, :131])
X = RNG.standard_normal((9, 192)).astype(np.float32)


def made_by(text, target=NEWEST, x=X, w=W, opset=21, **options):
    model = parse_model(text, inputs={"x": x}, constants={"w": w, "v": ODD, "b": W[0]}, opset=opset)
    ctx = Context(model, target=target)
    return model, ctx, WeightOnly(**options).run(model, ctx)


def kinds(model):
    return [n.op_type for n in model.graph]


def rewritten(model, folder):
    """The nodes that ONNX Runtime computes."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return {n.op_type: n for n in onnx.load(folder / "optimized.onnx").graph.node}


@pytest.mark.parametrize(
    ("bits", "block"),
    [*((b, n) for b in (4, 8) for n in (16, 32, 64)), (2, 32), (2, 64)],
)
@pytest.mark.parametrize("mean", [0.0, 0.2])
def test_the_standard_form_holds_the_same_numbers(bits, block, mean, tmp_path):
    w = (W if bits == 2 else ODD) + np.float32(mean)
    n = w.shape[1]
    model, _, _ = made_by("y = MatMul(x, w)", w=w, opset=17, bits=bits, block=block)
    assert kinds(model) == ["DequantizeLinear", "MatMul"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    form = form_of(w.T, bits, (block,))
    blocks = in_blocks(w.T, form, np.float32)
    held = {n.split("_")[-1]: v.const_value for n, v in model.graph.initializers.items()}
    sign = "" if form.symmetric else "U"
    assert held["q"].dtype.name == f"{sign}INT{bits}"
    whole = blocks.integers.reshape(n, 192).T.astype(int)
    shift = 2 ** (bits - 1) if form.symmetric else 0
    np.testing.assert_array_equal(held["q"].numpy().astype(int), whole - shift)
    np.testing.assert_array_equal(held["scale"].numpy(), blocks.scales.T)
    assert ("zero" in held) != form.symmetric
    if not form.symmetric:
        np.testing.assert_array_equal(held["zero"].numpy().astype(int), blocks.zeros.T)
    assert held["q"].nbytes == -(-192 * n * bits // 8)
    y = run(model, {"x": X})["y"]
    np.testing.assert_allclose(y, X @ blocks.matrix(192).T, rtol=1e-4, atol=1e-4)
    made = rewritten(model, tmp_path)
    assert list(made) == ["MatMulNBits"]
    assert {a.name: a.i for a in made["MatMulNBits"].attribute}["bits"] == bits
    other, _, _ = made_by("y = MatMul(x, w)", OTHER, w=w, bits=bits, block=block)
    rounded = run(other, {"x": X}, optimize=True)["y"]  # both round x to 8 bits
    np.testing.assert_allclose(run(model, {"x": X}, optimize=True)["y"], rounded, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "w", "left"),
    [
        ("y = Gemm(x, w, b)", W, ["DequantizeLinear", "MatMul", "Add"]),
        ("y = Gemm<transB = 1>(x, w)", W.T.copy(), ["DequantizeLinear", "MatMul"]),
        (
            "t = Transpose<perm = [1, 0]>(w) \n y = MatMul(x, t)",
            W.T.copy(),
            ["DequantizeLinear", "MatMul"],
        ),
    ],
)
def test_every_spelling_of_a_product(text, w, left, tmp_path):
    model = parse_model(text, inputs={"x": X}, constants={"w": w, "b": W[0]}, opset=13)
    check(WeightOnly(bits=8), model, inputs={"x": X}, target=ONNX, tolerance=0.01)
    assert kinds(model) == left
    assert model.graph.opset_imports[""] == 21
    assert "DequantizeLinear" not in rewritten(model, tmp_path)


def test_half_precision_stays_half():
    model, _, _ = made_by("y = MatMul(x, w)", x=X.astype(np.float16), w=W.astype(np.float16))
    scale = model.graph.node(0).inputs[1]
    assert scale.dtype == model.graph.node(0).outputs[0].dtype == ir.DataType.FLOAT16
    np.testing.assert_allclose(run(model, {"x": X.astype(np.float16)})["y"], X @ W, atol=1)


@pytest.mark.parametrize(
    ("text", "target", "options", "why"),
    [
        ("y = MatMul(x, w)", ONNX, {"bits": 2}, "2 bits need opset 25, and onnx takes 23"),
        ("y = MatMul(x, w)", ONNX, {"layers": (("*", 2),)}, "2 bits need opset 25"),
        ("y = MatMul(x, w)", NEWEST, {"block": 128}, "blocks of 128 do not divide its 192 inputs"),
        ("y = MatMul(x, v)", NEWEST, {"bits": 2}, "131 outputs fill no bytes"),
        ("y = MatMul(x, w)", NEWEST, {"layers": (("*", 0),)}, "layers= says so"),
        ("y = MatMul(x, w) \n z = Neg(w)", NEWEST, {}, "read elsewhere"),
        ("y = MatMul(x, w)", dataclasses.replace(NEWEST, opset=20), {}, "4 bits need opset 21"),
    ],
)
def test_what_cannot_be_stored_so_stays(text, target, options, why):
    model, ctx, edits = made_by(text, target, opset=17, **options)
    assert edits == 0
    assert model.graph.opset_imports[""] == 17
    assert why in " ".join(r.reason for r in ctx.refusals)


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("h = Gemm(x, w, b) \n r = Relu(h) \n y = Neg(r)", True),
        ("p = MatMul(x, w) \n h = Add(b, p) \n r = Clip(h) \n y = Neg(r)", True),
        ("h = MatMul(x, w) \n r = Relu(h) \n y = Neg(r)", True),
        ("h = MatMul(x, w) \n y = Relu(h)", False),
        ("h = MatMul(x, w) \n r = Relu(h) \n y = Neg(r) \n z = Abs(r)", False),
        ("h = Gemm(x, w, b) \n r = Tanh(h) \n y = Neg(r)", False),
    ],
)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_what_the_runtime_would_dequantize_in_every_run_stays(text, stays, batch, tmp_path):
    if batch and "Gemm" in text:
        pytest.skip("a Gemm has two axes")
    x = np.broadcast_to(X, (*batch, *X.shape))
    stays = stays and not (batch and "Add" in text)  # no Gemm is made of that
    model, ctx, _ = made_by(text, x=x)
    assert ("in every run" in " ".join(r.reason for r in ctx.refusals)) == stays
    made = rewritten(model, tmp_path)
    assert "DequantizeLinear" not in made
    assert ("MatMulNBits" in made) != stays


def test_tables_stay_with_a_reason():
    model = parse_model("y = Gather(w, i)", inputs={"i": np.array([3, 1])}, constants={"w": W})
    ctx = Context(model, target=NEWEST)
    assert WeightOnly().run(model, ctx) == 0
    assert "looks up no rows" in ctx.refusals[0].reason


def test_an_opset_that_may_not_be_raised_is_told():
    model = parse_model("y = MatMul(x, w)", inputs={"x": X}, constants={"w": W}, opset=20)
    limit_opset(model, 20)
    ctx = Context(model, target=ONNX)
    assert WeightOnly().run(model, ctx) == 0
    assert "weight_only needs opset 21" in ctx.notes[0]


def test_mixed_bits_are_those_that_the_opset_has():
    text = "h = MatMul(x, w) \n s = MatMul(x, v) \n y = Add(h, s)"
    w = [(s * RNG.standard_normal((256, 256)) / 16).astype(np.float32) for s in (1, 0.02)]
    x = RNG.standard_normal((64, 256)).astype(np.float32)
    for target, least in ((NEWEST, 2), (ONNX, 4)):
        model = parse_model(text, inputs={"x": x}, constants={"w": w[0], "v": w[1]})
        ctx = Context(model, target=target, samples=Samples([{"x": x}]))
        before = run(model, {"x": x})["y"]
        assert WeightOnly(bits="mixed").run(model, ctx) == 3  # the opset with them
        held = {n: v.const_value for n, v in model.graph.initializers.items()}
        assert held["v_q"].dtype.bitwidth == least
        assert held["w_q"].dtype.bitwidth >= 4
        y = run(model, {"x": x})["y"]
        assert np.linalg.norm(y - before) < 0.12 * np.linalg.norm(before)
        assert not any("accuracy levels" in note for note in ctx.notes)


def test_a_killed_run_goes_on_in_its_own_form(tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "LARGE", 0)
    text = "h = MatMul(x, w) \n t = Tanh(h) \n y = MatMul(t, v)"
    v = RNG.standard_normal((128, 128)).astype(np.float32)
    w = np.ascontiguousarray(W[:, :128])
    rounded, count = writer.in_blocks, []

    def counted(*given):
        if len(count) == most:
            raise KeyboardInterrupt
        count.append(given)
        return rounded(*given)

    def made(target):
        count.clear()
        model = parse_model(text, inputs={"x": X}, constants={"w": w, "v": v}, opset=21)
        WeightOnly().run(model, Context(model, target=target, cache=Cache(tmp_path)))
        return model

    monkeypatch.setattr(writer, "in_blocks", counted)
    most = 1
    with pytest.raises(KeyboardInterrupt):
        made(NEWEST)
    most = 9
    made(OTHER)
    assert len(count) == 2
    y = run(made(NEWEST), {"x": X})["y"]
    assert len(count) == 1
    monkeypatch.setattr(finished, "LARGE", 1 << 30)
    np.testing.assert_array_equal(y, run(made(NEWEST), {"x": X})["y"])


@pytest.mark.parametrize("target", ["onnx", "ort"])
def test_the_whole_pipeline_takes_it(target, tmp_path):
    model = parse_model("y = MatMul(x, w)", inputs={"x": X}, constants={"w": W})
    found = optimize(model, "weight_only", target=target, measure=False)
    assert kinds(found.model) == ["DequantizeLinear", "MatMul"]
    assert found.report.after.bytes < 0.3 * found.report.before.bytes
    assert find_target(target).blocks
    path = tmp_path / f"m{find_target(target).suffix}"
    found.write(path)
    assert path.stat().st_size < 0.3 * W.nbytes
