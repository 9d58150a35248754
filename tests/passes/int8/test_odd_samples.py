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
