"""Weights of what stays float: integers in the file, floats where they compute."""

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.backends.cpu import TARGETS
from graphopt.passes.int8 import Int8
from graphopt.passes.int8 import mixed_precision as precision

from graphopt import Budget, Samples, optimize
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

CPU = TARGETS["cpu-avx512-vnni"]


def normal(*shape):
    """The same numbers for one shape, whatever other tests ran before."""
    return np.random.default_rng([3, *shape]).normal(size=shape).astype(np.float32)


FORMS = {
    "y = Conv<pads=[1,1,1,1]>(x, w)": ((1, 16, 9, 9), (32, 16, 3, 3)),
    "y = Conv<group=4>(x, w)": ((1, 64, 9, 9), (64, 16, 3, 3)),
    "y = ConvTranspose(x, w)": ((1, 16, 9, 9), (16, 32, 3, 3)),
    "y = MatMul(x, w)": ((5, 64), (64, 64)),
    "y = MatMul(w, x)": ((64, 5), (64, 64)),
    "t = Transpose<perm=[1,0]>(w)  y = MatMul(x, t)": ((5, 64), (64, 64)),
    "y = Gemm<transB=1, alpha=0.5>(x, w)": ((5, 64), (64, 64)),
    "y, h, c = LSTM<hidden_size=16>(x, w, r)": ((7, 1, 40), (1, 64, 40)),
    "y, h = GRU<hidden_size=16>(x, w, r)": ((7, 1, 64), (1, 48, 64)),
}


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("text", FORMS)
def test_every_form_of_a_weight_is_stored_and_computes_as_before(text, bits):
    shape, weight = FORMS[text]
    constants = {"w": normal(*weight) * np.float32(np.arange(weight[-2])[:, None] % 7 + 1)}
    if "r)" in text:  # gates that saturate would multiply the error
        constants["w"] *= np.float32(0.05)
        constants["r"] = normal(1, weight[1], 16) * np.float32(0.3)
    model = parse_model(text, inputs={"x": shape}, constants=constants)
    feeds = {"x": normal(*shape)}
    before = run(model, feeds)["y"]
    facts = {precision.FACT: {"left": _left(model), "bits": _bits(model, bits)}}
    ctx = Context(model, target=CPU, facts=facts)
    assert Int8().run(model, ctx) >= 1
    held = [v.const_value for v in model.graph.initializers.values() if v.const_value.size > 1000]
    held = [t for t in held if t.dtype is not ir.DataType.FLOAT]  # of LSTMs the smaller weight
    kinds = {8: ["INT8"], 12: ["INT8", "UINT8"], 16: ["INT16"]}
    assert sorted(t.dtype.name for t in held) == kinds[bits]
    assert sum(t.nbytes for t in held) == np.prod(weight) * bits / 8
    after = run(model, feeds)["y"]
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert 0 < error < {8: 0.02, 12: 0.002, 16: 1e-4}[bits]


def _left(model):
    return {n.name: "the test says so" for n in model.graph if n.op_type != "Transpose"}


def _bits(model, bits):
    return {n.name: bits for n in model.graph}


TABLES = {
    "j = Cast<to=7>(i)  t = Gather(w, j)  y = Neg(t)": (64, 96),
    "j = Cast<to=7>(i)  t = Slice(w, z, j)  y = Neg(t)": (64, 96),
    "y = Add(i, w)": (64, 96),
    "a, b = Split<axis=0, num_outputs=2>(w)  c = Concat<axis=0>(b, a)  y = Mul(c, i)": (64, 96),
}


@pytest.mark.parametrize("text", TABLES)
def test_tables_that_are_not_looked_up_in_integers_are_stored(text):
    sizes = 10.0 ** np.arange(-3, 3).repeat(11)[:64, None]
    table = normal(64, 96) * sizes.astype(np.float32)
    constants = {"w": table, "z": np.zeros(1, np.int64)}
    if "Slice" not in text:
        del constants["z"]
    model = parse_model(text, inputs={"i": (1,)}, constants=constants)
    feeds = {"i": np.array([48], np.float32)}
    before = run(model, feeds)["y"]
    left = {n.name: "the test says so" for n in model.graph}
    facts = {precision.FACT: {"left": left, "bits": {}}}
    assert Int8().run(model, Context(model, target=CPU, facts=facts)) == 1
    assert model.graph.initializers["w_q"].const_value.dtype == ir.DataType.INT8
    after = run(model, feeds)["y"]
    worst = np.abs(after - before).max(axis=-1) / np.abs(before).max(axis=-1)
    assert 0 < worst.max() < 0.01


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_weights_of_half_precision_have_8_or_12_bits(bits):
    w = normal(64, 64).astype(np.float16)
    model = parse_model(
        "h = Cast<to=10>(x)  m = MatMul(h, w)  y = Cast<to=1>(m)",
        inputs={"x": (4, 64)},
        constants={"w": w},
    )
    feeds = {"x": normal(4, 64)}
    before = run(model, feeds)["y"]
    stored = _bits(model, bits)
    facts = {precision.FACT: {"left": dict.fromkeys(stored, "said so"), "bits": stored}}
    Int8().run(model, Context(model, target=CPU, facts=facts))
    held = [v.const_value for v in model.graph.initializers.values() if v.const_value.size > 1000]
    assert sum(t.nbytes for t in held) == 64 * 64 * bits / 8
    error = np.linalg.norm(run(model, feeds)["y"] - before) / np.linalg.norm(before)
    assert error < 0.01
    assert (error > 0) == (bits < 16)


def test_masks_and_rows_are_no_tables():
    mask = np.triu(np.full((64, 64), -np.inf, np.float32), 1)
    model = parse_model(
        "a = Add(x, m)  y = Add(a, r)",
        inputs={"x": (64, 64)},
        constants={"m": mask, "r": normal(1, 4096)[:, :64].repeat(64, 0)[:1]},
    )
    assert Int8().run(model, Context(model, target=CPU)) == 0


def test_small_weights_and_layers_that_are_to_stay_float_are_left_alone():
    model = parse_model(
        "h = MatMul(x, w)  y = MatMul(h, v)",
        inputs={"x": (5, 64)},
        constants={"w": normal(64, 64), "v": normal(64, 8)},
    )
    first = next(iter(model.graph)).name
    ctx = Context(model, target=CPU)
    Int8(layers=((first, "float"),)).run(model, ctx)
    assert model.graph.initializers["w"].const_value.dtype == ir.DataType.FLOAT


def spectrum(seed=5):
    """A Fourier transform as a convolution, whose squares are compared: 8 bits spoil it."""
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * np.outer(np.arange(64), np.arange(128)) / 128
    basis = np.concatenate([np.cos(angle), np.sin(angle)])[:, None].astype(np.float32)
    model = parse_model(
        "f = Conv<strides=[32]>(x, w)  p = Mul(f, f)  e = MatMul(v, p)  l = Log(e)  "
        "m = ReduceMean<axes=[2], keepdims=0>(l)  h = MatMul(m, u)  y = Sigmoid(h)",
        inputs={"x": (1, 1, 512)},
        constants={
            "w": basis,
            "v": np.tile(np.eye(64, dtype=np.float32), 2),
            "u": rng.normal(size=(64, 32)).astype(np.float32),
        },
        opset=17,
    )
    slope = np.float32(1e-3) ** (np.arange(257) / 257)
    runs = []
    for _ in range(64):
        waves = np.fft.irfft(
            np.fft.rfft(rng.normal(size=512)) * slope * np.exp(rng.normal(size=257))
        )
        runs.append({"x": waves.astype(np.float32)[None, None]})
    return model, runs


def test_a_transform_that_8_bits_spoil_keeps_12_and_the_rest_8():
    model, runs = spectrum()
    result = optimize(
        model,
        "int8",
        samples=Samples(runs),
        target=CPU,
        measure=False,
        budget=Budget(max_disagreement=0.003),
    )
    (step,) = result.report.steps
    assert step.status == "kept", step.reason
    assert max(one.over for one in step.agreement.values()) <= 0.7
    held = {n: v.const_value.dtype.name for n, v in result.model.graph.initializers.items()}
    assert (held["w_q"], held["w_low"]) == ("INT8", "UINT8")
    assert held["u_q"] == "INT8"
    assert "u_low" not in held


def test_weights_of_branches_are_stored_too():
    branch = """
    <ir_version: 10, opset_import: ["" : 20]>
    net (bool b, float[4, 64] x) => (float[4, 64] y) {
        y = If(b) <then_branch = a () => (float[4, 64] p) { p = MatMul(x, w) },
                   else_branch = c () => (float[4, 64] q) { q = MatMul(x, v) }>
    }
    """
    import onnx

    proto = onnx.parser.parse_model(branch)
    for name, attribute in zip("wv", proto.graph.node[0].attribute, strict=True):
        attribute.g.initializer.append(onnx.numpy_helper.from_array(normal(64, 64), name))
    model = ir.from_proto(proto)
    feeds = [{"b": np.array(b), "x": normal(4, 64)} for b in (True, False)]
    before = [run(model, f)["y"] for f in feeds]
    size = len(ir.to_proto(model).SerializeToString())
    assert Int8().run(model, Context(model, target=CPU)) == 2
    assert len(ir.to_proto(model).SerializeToString()) < 0.4 * size
    for f, y in zip(feeds, before, strict=True):
        error = np.linalg.norm(run(model, f)["y"] - y) / np.linalg.norm(y)
        assert 0 < error < 0.02
