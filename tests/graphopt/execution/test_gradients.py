"""Gradients agree with finite differences, Fisher with divergence; sensitivity with both."""

import numpy as np
import pytest
from graphopt.passes.prune.gradients import gradient_scores

from graphopt import Context
from graphopt.analyses.dims import dimensions
from graphopt.calibration.fisher import fisher
from graphopt.errors import SamplesError, UsageError
from graphopt.execution.gradients import backward
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.testing import parse_model

pytest.importorskip("torch")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((512, 4)).astype(np.float32)
WEIGHTS = {
    "w": RNG.standard_normal((4, 6)).astype(np.float32) / 2,
    "b": RNG.standard_normal(6).astype(np.float32) / 2,
    "v": RNG.standard_normal((6, 5)).astype(np.float32) / 2,
}


def network(**changed):
    """Six hidden units that Tanh makes and 5 classes are read from."""
    text = "a = Gemm(x, w, b)  h = Tanh(a)  y = MatMul(h, v)"
    return parse_model(text, inputs={"x": ("batch", 4)}, constants={**WEIGHTS, **changed})


def log_softmax(z):
    z = z.astype(np.float64)
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def answers(model, x=X):
    return log_softmax(run(model, {"x": x})["y"])


def divergence(model, other):
    """KL of `other` from `model`, in nats a row."""
    p, q = answers(model), answers(other)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def samples(rows=64, **more):
    return Samples([{"x": X[i : i + rows], **{k: a[i : i + rows] for k, a in more.items()}}
                    for i in range(0, len(X), rows)])  # fmt: skip


@pytest.mark.parametrize("labelled", [True, False])
def test_gradients_are_finite_differences(labelled):
    model = network()
    own = answers(model).argmax(1)
    label = RNG.integers(0, 5, len(X)) if labelled else own
    total = dict.fromkeys(WEIGHTS, 0.0)
    loss = rows = 0
    given = samples(label=label) if labelled else samples()
    for step in backward(model, given, loss="own"):
        loss, rows = loss + step.loss, rows + step.rows
        total = {k: total[k] + step.weights[k] for k in WEIGHTS}

    def lost(**changed):
        return -float(answers(network(**changed))[np.arange(len(X)), label].sum())

    assert rows == len(X)
    assert loss == pytest.approx(lost(), rel=1e-5)
    for name, weight in WEIGHTS.items():
        e = RNG.standard_normal(weight.shape).astype(np.float32) * 1e-2
        slope = (lost(**{name: weight + e}) - lost(**{name: weight - e})) / 2
        # float32 sums of 512 rows are good to 1e-5 of the loss, and the slope is about 1e-2 of it
        assert float(np.vdot(total[name], e)) == pytest.approx(slope, rel=2e-2, abs=1e-2)


def test_gradients_of_values_are_finite_differences():
    model, (step,) = network(), list(backward(network(), [{"x": X[:4]}], loss="own", values=["h"]))
    h, gradient = step.values["h"]
    label = answers(model, X[:4]).argmax(1)
    e = RNG.standard_normal(h.shape) * 1e-3

    def lost(h):
        return -log_softmax(h @ WEIGHTS["v"])[np.arange(4), label].sum()

    assert float(np.vdot(gradient, e)) == pytest.approx((lost(h + e) - lost(h - e)) / 2, rel=1e-3)


def test_fisher_is_the_divergence_without_a_unit():
    """1/2 E[gamma^2] d^2 is what scaling a unit by 1 - d adds to the divergence.

    The estimate is a mean of 8 x 128 squares of normal-like numbers: good to sqrt(2/1024) = 4 %; at
    d = 0.05 terms of higher order are of about that size.
    """
    model = network()
    dims = Context(model).get(dimensions).prunable
    (name,) = dims
    draws = [
        gradient_scores("fisher", model, dims, samples(), Context(model, seed=k))[name]
        for k in range(8)
    ]
    for unit, score in enumerate(np.mean(draws, axis=0)):
        v = WEIGHTS["v"].copy()
        v[unit] *= 0.95
        assert score * 0.05**2 == pytest.approx(divergence(model, network(v=v)), rel=0.25)


def test_sensitivity_is_the_divergence_that_errors_add():
    """Random errors of relative size r add r^2 times the figure, within what few draws allow.

    The trace is one of 128 draws of 4 rows (about 10 %), and the divergence a mean over 30 errors
    in 24 or 30 dimensions (about 10 %).
    """
    model = network()
    found = fisher(Context(model, samples=samples()))
    assert set(found) == {n.name for n in model.graph if n.op_type != "Tanh"}
    first, last = (found[n.name] for n in model.graph if n.op_type != "Tanh")
    assert first.activation == 0  # a model input: nothing before it can be in error

    def added(name):
        weight, errors = WEIGHTS[name], []
        for _ in range(30):
            e = RNG.standard_normal(weight.shape)
            e *= 0.05 * np.linalg.norm(weight) / np.linalg.norm(e)
            errors.append(divergence(model, network(**{name: (weight + e).astype(np.float32)})))
        return float(np.mean(errors)) / 0.05**2

    assert last.weight == pytest.approx(added("v"), rel=0.35)
    assert first.weight == pytest.approx(added("w") + added("b"), rel=0.35)
    h = np.tanh(X @ WEIGHTS["w"] + WEIGHTS["b"])
    e = RNG.standard_normal(h.shape)
    e *= 0.05 * np.linalg.norm(h) / np.linalg.norm(e)
    p, q = log_softmax(h @ WEIGHTS["v"]), log_softmax((h + e) @ WEIGHTS["v"])
    assert last.activation == pytest.approx((np.exp(p) * (p - q)).sum(1).mean() / 0.05**2, rel=0.35)


def test_outputs_that_are_no_scores_are_compared_by_squares():
    """y = x w, a 3-d output: 1/2 |x e|^2 / var(y) a row of 3 positions."""
    w = RNG.standard_normal((4, 6)).astype(np.float32)
    x = RNG.standard_normal((400, 3, 4)).astype(np.float32)
    model = parse_model("y = MatMul(x, w)", inputs={"x": ("batch", 3, 4)}, constants={"w": w})
    ctx = Context(model, samples=Samples([{"x": x}]))
    (found,) = fisher(ctx).values()
    mean_square = float((x**2).sum(axis=(1, 2)).mean() / 4)  # of one feature, over 3 positions
    want = (w**2).sum() * mean_square / (2 * x[:4].dot(w).var())
    assert found.weight == pytest.approx(want, rel=0.2)


def test_a_weight_read_transposed_is_as_sensitive():
    w = RNG.standard_normal((4, 6)).astype(np.float32)
    given = Samples([{"x": RNG.standard_normal((40, 3, 4)).astype(np.float32)}])
    inputs = {"x": ("batch", 3, 4)}
    found = []
    for text, held in (("y = MatMul(x, w)", w), ("t = Transpose(w)  y = MatMul(x, t)", w.T)):
        model = parse_model(text, inputs=inputs, constants={"w": np.ascontiguousarray(held)})
        (one,) = fisher(Context(model, samples=given)).values()
        found.append(one.weight)
    assert found[0] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_what_is_missing_is_said():
    with pytest.raises(UsageError, match="needs samples"):
        fisher(Context(network()))
    label = np.full(len(X), 5)
    with pytest.raises(SamplesError, match="classes up to 5"):
        next(backward(network(), samples(label=label), loss="own"))
    model = parse_model("y = ArgMax(x)", inputs={"x": (2, 3)})
    with pytest.raises(UsageError, match="no output"):
        next(backward(model, [{"x": X[:2, :3]}], loss="drawn"))
