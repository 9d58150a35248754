"""Int8 on samples that say little or nothing of the model's inputs."""

import numpy as np
import pytest
from graphopt.passes.int8 import Int8

from graphopt import Context
from graphopt.backend import find_target
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8, 6, 6)).astype(np.float32)
CONV = parse_model(
    "a = Conv <pads=[1, 1, 1, 1]> (x, w)  b = Relu (a)  y = Conv (b, v)",
    constants={
        "w": RNG.normal(size=(16, 8, 3, 3)).astype(np.float32) / 8,
        "v": RNG.normal(size=(8, 16, 1, 1)).astype(np.float32) / 4,
    },
    inputs={"x": ("n", 8, 6, 6)},
)


def quantized(x, calibrator="minmax"):
    model = CONV.clone()
    ctx = Context(model, target=find_target("cpu"), samples=Samples([{"x": x}]))
    return model, Int8(calibrator=calibrator).run(model, ctx), ctx


@pytest.mark.parametrize("calibrator", ["minmax", "entropy", "auto"])
def test_one_absurd_sample_spoils_nothing(calibrator):
    x = X.copy()
    x[3, 2, 1, 1] = 3e38
    model, edits, ctx = quantized(x, calibrator)
    want, got = (run(m, {"x": X})["y"] for m in (CONV, model))
    assert edits == 2
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
    assert any("in 1 of 16 samples" in note for note in ctx.notes)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_constants_give_no_ranges(value):
    _, edits, ctx = quantized(np.full_like(X, value))
    assert edits == 0
    assert f"samples: 'x' is {value:g} throughout: no range follows from that." in ctx.notes


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_products_keep_their_trained_ranges(op):
    """What lies beyond a trained range was clipped in training: one found later is other."""
    w = RNG.normal(size=(8, 8)).astype(np.float32)
    text = f"q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  y = {op} (d, w)"
    constants = {"s": np.float32(0.01), "z": np.array(128, np.uint8), "w": w}
    model = parse_model(text, constants=constants, inputs={"x": ("n", 8)})
    x = RNG.normal(size=(64, 8)).astype(np.float32)
    copy = model.clone()
    ctx = Context(copy, target=find_target("cpu"), samples=Samples([{"x": x}]))
    Int8().run(copy, ctx)
    want, got = (run(m, {"x": x})["y"] for m in (model, copy))
    assert np.linalg.norm(want - got) < 0.02 * np.linalg.norm(want)
    assert np.linalg.norm(want - x @ w) > 0.1 * np.linalg.norm(want)


def test_integer_operators_are_left_alone_and_said():
    model = parse_model(
        "q, s, z = DynamicQuantizeLinear (x)  i = MatMulInteger (q, w, z)  f = Cast <to = 1> (i)  "
        "y = Mul (f, s)",
        constants={"w": np.ones((8, 8), np.int8)},
        inputs={"x": ("n", 8)},
    )
    ctx = Context(model, target=find_target("cpu"), samples=Samples([{"x": X[:, :, 0, 0]}]))
    assert Int8().run(model, ctx) == 0
    assert ctx.idle == "quantized already: start from the float model"


@pytest.mark.parametrize("kind", ["signal", "image"])
def test_signals_of_unknown_scale_have_no_ranges(kind):
    """What a signal's values are follows from nothing: what finds its ranges in each run does."""
    size = (1, 8, 40, 40) if kind == "signal" else (1, 3, 40, 40)
    model = parse_model(
        "a = Conv (x, w)  b = GlobalAveragePool (a)  c = Flatten (b)  y = MatMul (c, v)",
        constants={
            "w": RNG.normal(size=(64, size[1], 3, 3)).astype(np.float32) / 8,
            "v": RNG.normal(size=(64, 64)).astype(np.float32) / 8,
        },
        inputs={"x": size},
    )
    source = model.clone()
    drawn = Samples([{"x": RNG.normal(size=size).astype(np.float32)}], synthetic=True)
    ctx = Context(model, target=find_target("cpu"), samples=drawn)
    assert Int8().run(model, ctx) > 0
    quiet = {"x": 1e-3 * RNG.normal(size=size).astype(np.float32)}
    want, got = (run(m, quiet)["y"] for m in (source, model))
    error = np.linalg.norm(want - got) / np.linalg.norm(want)
    if kind == "signal":
        assert error < 0.05
        assert "How large 'x' is in use is not known." in ctx.notes
    else:
        assert any("invented images" in note for note in ctx.notes)
