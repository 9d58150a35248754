"""Recovery: what is trained stays on its grid, keeps its zeros, and is nearer to the original."""

import numpy as np
import pytest

from graphopt.context import silent
from graphopt.execution.runtime import run
from graphopt.packing.coding import coded, integers_at, size_of
from graphopt.packing.layers import layers_of
from graphopt.samples import Samples
from graphopt.testing import parse_model

pytest.importorskip("constriction")
pytest.importorskip("torch")

RNG = np.random.default_rng(1)
WEIGHTS = {
    "v": RNG.standard_normal((24, 48)).astype(np.float32),
    "w": RNG.standard_normal((10, 48)).astype(np.float32),
}
TEXT = "h = MatMul(x, v)  r = Relu(h)  y = Gemm<transB = 1>(r, w)"
X = RNG.standard_normal((2000, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def made():
    from graphopt.packing.recovery import Recovery

    model = parse_model(TEXT, inputs={"x": ("N", 24)}, constants=WEIGHTS)
    samples = Samples([{"x": X}])
    layers = layers_of(model, [{"x": X[:384]}], 0, silent)
    step = size_of(layers) * 1.4
    found = integers_at(layers, step)
    recovery = Recovery(model, model, layers, samples, 0, silent)
    return model, layers, step, found, recovery.trained(found, step), recovery


def error(made, found):
    model, layers, step = made[:3]
    x = np.random.default_rng(2).standard_normal((500, 24)).astype(np.float32)
    source = run(model, {"x": x})["y"]
    return np.linalg.norm(run(coded(model, layers, found, step).model, {"x": x})["y"] - source)


def test_unseen_inputs_have_less_error(made):
    _, _, _, found, trained, _ = made
    assert error(made, trained) < 0.9 * error(made, found)


def test_zeros_stay_and_integers_are_of_the_layers_own_shape(made):
    _, layers, _, found, trained, _ = made
    assert {one.turned for one in layers} == {True, False}
    for q, before in zip(trained, found, strict=True):
        assert q.dtype == np.int32
        assert q.shape == before.shape
        assert (q != before).any()
        assert not q[before == 0].any()


def test_the_same_training_gives_the_same_integers(made, monkeypatch):
    _, _, step, found, _, recovery = made
    monkeypatch.setattr("graphopt.packing.recovery.UPDATES", 30)
    for q, again in zip(*(recovery.trained(found, step) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(q, again)


def test_one_sample_is_not_enough():
    from graphopt.packing.recovery import Recovery

    model = parse_model(TEXT, inputs={"x": ("N", 24)}, constants=WEIGHTS)
    layers = layers_of(model, [{"x": X[:64]}], 0, silent)
    one = Recovery(model, model, layers, Samples([{"x": X[:1]}]), 0, silent)
    assert "two samples" in one.unable
