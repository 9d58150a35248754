"""Svd: large weights at random, and what timing on the target decides."""

import numpy as np
import pytest
from graphopt.passes.svd import Svd, spectrum

from graphopt.backend import Timing
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.target import Target
from graphopt.testing import parse_model

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("shape", [(90, 120), (120, 90)])
def test_randomized_svd_is_within_one_percent_of_the_optimum(shape, aware, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(spectrum, "LARGE", 16)
    rows, columns = shape
    decay = np.geomspace(1, 1e-3, min(shape))
    left = np.linalg.qr(RNG.standard_normal((rows, rows)))[0][:, : len(decay)]
    right = np.linalg.qr(RNG.standard_normal((columns, columns)))[0][:, : len(decay)]
    matrix = ((left * decay) @ right.T).astype(np.float32)
    chol = np.tril(RNG.standard_normal((rows, rows))) + 3 * np.eye(rows) if aware else None
    found = spectrum.decompose(matrix, chol=chol, wanted=0.9, seed=1)
    seen = matrix.astype(np.float64) if chol is None else chol.T @ matrix
    values = np.linalg.svd(seen, compute_uv=False)
    for rank in (3, 10):
        best = np.square(values[rank:]).sum() / np.square(values).sum()
        assert found.errors()[rank] == pytest.approx(best, rel=0.02)
        basis = found.basis(matrix, rank)
        lost = np.linalg.norm(seen - seen @ basis @ basis.T) ** 2 / np.square(values).sum()
        assert lost == pytest.approx(best, rel=0.02)


def test_a_flat_spectrum_is_given_up_before_all_of_it_is_computed(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(spectrum, "LARGE", 16)
    matrix = np.linalg.qr(RNG.standard_normal((600, 600)))[0].astype(np.float32)
    found = spectrum.decompose(matrix, wanted=0.9, useful=300)
    assert len(found.energies) < 300


class Stopwatch:
    """Pairs always take this much longer than the layer."""

    def __init__(self, ratio):
        self.ratio, self.calls = ratio, 0

    def __call__(self, a, b, feeds, seconds):
        assert run(a, feeds)["a"].shape == run(b, feeds)["a"].shape
        self.calls += 1
        return Timing(1.0, self.ratio, self.ratio, (self.ratio, self.ratio), 0.0, 9)


def two_layers():
    rng = np.random.default_rng(5)
    u = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 40))
    constants = {"u": u.astype(np.float32), "v": u.T.astype(np.float32)}
    text = "a = MatMul(x, u)  b = Relu(a)  y = MatMul(b, v)"
    return parse_model(text, inputs={"x": ("n", 40)}, constants=constants)


@pytest.mark.parametrize(("ratio", "edits"), [(0.5, 2), (1.5, 0), (1.0, 0)])
@pytest.mark.parametrize("one", [Svd(energy=0.999), Svd(ratio=0.5)])
def test_layers_whose_factors_measure_no_faster_are_left_alone(ratio, edits, one):
    watch = Stopwatch(ratio)
    target = Target("t")
    model = two_layers()
    ctx = Context(model, target=target, pass_name="svd", timer=watch)
    found = one.run(model, ctx)
    assert (found > 0) == (edits > 0)
    assert watch.calls >= 1
    if not edits:
        assert "measured no faster on t" in ctx.refusals[-1].reason
    else:
        assert watch.calls == 1  # equal layers at one rank are timed once
    again = two_layers()
    replay = Context(again, target=target, pass_name="svd", timer=watch, facts=ctx.facts)
    calls = watch.calls
    assert one.run(again, replay) == found
    assert watch.calls == calls


def test_where_nothing_can_be_timed_nothing_is_recorded():
    model = two_layers()
    ctx = Context(model, target=Target("t"))
    assert Svd(energy=0.999).run(model, ctx) == 2
    assert ctx.facts == {}
