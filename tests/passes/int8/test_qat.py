"""Quantization-aware training: the same integer model, closer to the float one."""

import dataclasses

import numpy as np
import pytest
from graphopt.backends.devices.fixed import at_fixed_shapes
from graphopt.backends.qnn import BACKEND as QNN
from graphopt.passes.int8 import Int8, qat

from graphopt import Budget, Context, Samples
from graphopt.execution.runtime import run
from graphopt.target import Int8Scheme, Target
from graphopt.testing import parse_model, structure

pytest.importorskip("torch")

SCHEME = Int8Scheme(per_channel=False)
TEXT = """
    x1 = Conv <pads=[1, 1, 1, 1]> (x, a, ba)
    r1 = Relu(x1)
    x2 = Conv <pads=[1, 1, 1, 1]> (r1, b, bb)
    r2 = Relu(x2)
    g = GlobalAveragePool(r2)
    f = Flatten(g)
    y = Gemm <transB=1> (f, fc, bf)
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(qat, "STEPS", 12)


def outlier_model():
    """One channel 40 times the others, and one weight far outside the rest of its layer."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {"a": normal(8, 3, 3, 3), "b": normal(8, 8, 3, 3), "fc": normal(5, 8)}
    constants |= {"ba": normal(8, 1).reshape(-1), "bb": normal(8, 1).reshape(-1)}
    constants["bf"] = np.zeros(5, np.float32)
    constants["a"][0] *= 40
    constants["b"][:, 0] /= 40
    constants["b"][3, 2, 0, 0] = 4.0
    return parse_model(TEXT, inputs={"x": (16, 3, 8, 8)}, constants=constants)


def feeds(seed, count):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((16, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def quantized(one, scheme=SCHEME, samples=None):
    model = outlier_model()
    samples = Samples(feeds(1, 12)) if samples is None else samples
    ctx = Context(model, target=Target("t", int8=scheme), samples=samples)
    return model, one.run(model, ctx), ctx


def error(model):
    source, probe = outlier_model(), feeds(2, 3)
    a = np.concatenate([run(source, f)["y"] for f in probe])
    b = np.concatenate([run(model, f)["y"] for f in probe])
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_training_recovers_what_static_ranges_lose_and_keeps_the_structure(monkeypatch):
    monkeypatch.setattr(qat, "STEPS", 100)
    static, _, _ = quantized(Int8(balance=False))
    trained, edits, ctx = quantized(Int8(balance=False, qat=True))
    # 8 bits over 40 times the usual range leave 5 to 6: several percent, as seen without training
    assert error(static) > 0.03
    assert error(trained) < 0.6 * error(static)
    assert edits
    assert any(n.startswith("qat: ") for n in ctx.notes)
    assert structure(trained) == structure(static)
    before, after = static.graph.initializers, trained.graph.initializers
    assert before.keys() == after.keys()
    assert all(before[n].dtype == after[n].dtype for n in before)
    assert any(
        not np.array_equal(before[n].const_value.numpy(), after[n].const_value.numpy())
        for n in before
    )


def test_scales_of_biases_are_those_of_the_products():
    model, _, _ = quantized(Int8(balance=False, qat=True))
    found = 0
    for node in model.graph:
        if node.op_type == "Conv" and node.inputs[2] is not None:
            x, w, b = (v.producer().inputs[1].const_value.numpy() for v in node.inputs)
            np.testing.assert_allclose(b, x * w, rtol=1e-6)
            found += 1
    assert found == 2


def test_narrow_weights_stay_narrow():
    scheme = dataclasses.replace(SCHEME, reduce_range=True)
    model, _, _ = quantized(Int8(balance=False, qat=True), scheme)
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0].const_value is not None:
            q = node.inputs[0].const_value.numpy()
            if q.dtype == np.int8:
                assert np.abs(q).max() <= 63


def test_products_quantized_at_run_time_keep_their_form():
    scheme = dataclasses.replace(SCHEME, operators=frozenset(), dynamic=frozenset({"Gemm"}))
    static, _, _ = quantized(Int8(), scheme)
    trained, _, _ = quantized(Int8(qat=True), scheme)
    assert structure(trained) == structure(static)
    assert any(n.op_type == "MatMulInteger" for n in trained.graph)


def for_an_npu(one, model, samples, budget=None):
    """The model in the integers of QNN, and its context."""
    made = model.clone()
    ctx = Context(made, target=QNN.target("qnn"), samples=Samples(samples), budget=budget)
    one.run(made, ctx)
    return made, ctx


def test_integers_everywhere_are_trained_and_stay_everywhere(monkeypatch):
    monkeypatch.setattr(qat, "STEPS", 100)
    static, _ = for_an_npu(Int8(balance=False), outlier_model(), feeds(1, 12))
    trained, ctx = for_an_npu(Int8(balance=False, qat=True), outlier_model(), feeds(1, 12))
    assert any(n.startswith("qat: ") for n in ctx.notes)
    assert error(trained) < 0.6 * error(static)
    assert structure(trained) == structure(static)
    assert QNN.falls_off(at_fixed_shapes(trained, ctx.target)) == []
    weights = [v.const_value for v in trained.graph.initializers.values() if v.const_value.size > 1]
    assert all(w.numpy().min() > 0 for w in weights if w.dtype.name == "UINT8"), "128 is 0.0"


def test_steps_of_16_bits_are_trained_as_those_of_8():
    """A channel a hundred times the others, which what reads it does not look at."""
    rng = np.random.default_rng(0)
    u, v, w = (rng.standard_normal((8, 8, 1, 1)).astype(np.float32) for _ in range(3))
    v[:, 0] = 0
    k = np.array([100, *[1.5] * 7], np.float32).reshape(1, 8, 1, 1)
    model = parse_model(
        "a = Conv(x, u)  s = Mul(a, k)  b = Conv(s, v)  c = Relu(b)  d = Conv(c, w)  y = Relu(d)",
        inputs={"x": (4, 8, 6, 6)},
        constants={"u": u, "v": v, "w": w, "k": k},
    )
    samples = [{"x": rng.standard_normal((4, 8, 6, 6)).astype(np.float32)} for _ in range(4)]
    budget = Budget(max_error=0.04)
    static, _ = for_an_npu(Int8(balance=False), model, samples, budget)
    trained, ctx = for_an_npu(Int8(balance=False, qat=True), model, samples, budget)
    assert any("of 3 stages have activations of 16 bits" in n for n in ctx.notes)
    assert structure(trained) == structure(static)
    assert QNN.falls_off(at_fixed_shapes(trained, ctx.target)) == []
    before, after = activation_steps(static), activation_steps(trained)
    assert before.keys() == after.keys() == {"UINT8", "UINT16"}
    assert all(after[dtype] != before[dtype] for dtype in before), "all of them are trained"
    assert min(min(steps) for steps in after.values()) > 0


def activation_steps(model):
    """Scales of what is rounded on every run, by the type it is rounded to."""
    found = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            scale = float(node.inputs[1].const_value.numpy())
            found.setdefault(node.outputs[0].dtype.name, []).append(scale)
    return found


@pytest.mark.parametrize("drawn", [None, "synthetic"])
def test_refuses_without_real_samples(drawn):
    model = outlier_model()
    before = structure(model)
    samples = Samples(feeds(0, 1), synthetic=True) if drawn else None
    ctx = Context(model, target=Target("t", int8=SCHEME), samples=samples)
    assert Int8(qat=True).run(model, ctx) == 0
    assert structure(model) == before
    assert "unlabelled" in ctx.refusals[0].reason
