"""Random operators draw the same numbers in two models that are compared."""

import numpy as np
import pytest
from graphopt.passes.prune import Prune

from graphopt import Context, Samples, optimize
from graphopt.execution.runtime import run_each
from graphopt.testing import parse_model

W = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
DRAWS = {
    "normal": "r = RandomNormalLike(x)",
    "uniform": "r = RandomUniformLike(x)",
    "of a shape": "r = RandomNormal <shape = [4, 8]> ()",
    "bernoulli": "s = Sigmoid(x) r = Bernoulli(s)",
    "inside a branch": (
        "r = If (flag) < then_branch = t () => (float[4, 8] p) { p = RandomNormalLike(x) }, "
        "else_branch = e () => (float[4, 8] q) { q = Neg(x) } >"
    ),
}


def noisy(draw):
    flag = {"flag": "bool"} if "flag" in draw else {}
    return parse_model(
        f"i = Identity(x) {draw} n = Add(i, r) m = MatMul(n, w) a = Add(m, b) y = Identity(a)",
        inputs={"x": (4, 8), **flag},
        constants={"w": W, "b": W[0]},
    )


@pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))
def test_exact_passes_stand_beside_noise_and_do_not_freeze_it(draw):
    model = noisy(draw)
    result = optimize(model, "clean,fold,fuse", measure=False)
    steps = {s.spec: s for s in result.report.steps}
    assert all(s.status != "undone" and not s.undone for s in steps.values())
    kinds = [n.op_type for n in result.model.graph]
    assert "Identity" not in kinds
    draws = [n for n in result.model.graph.all_nodes() if n.op_type.startswith(("Random", "Bern"))]
    assert len(draws) == 1
    assert "seed" not in draws[0].attributes


@pytest.mark.parametrize("optimized", [False, True])
def test_two_sessions_draw_alike_and_two_runs_do_not(optimized):
    model = noisy(DRAWS["normal"])
    feeds = [{"x": np.ones((4, 8), np.float32)}] * 2
    a, b = (list(run_each(model, feeds, optimize=optimized)) for _ in range(2))
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one["y"], other["y"])
    assert not np.array_equal(a[0]["y"], a[1]["y"])


def test_what_is_refitted_behind_noise_is_fitted_to_the_same_noise():
    """Draws of its own on each side look like an error, and a fit shrinks what reads them."""
    rng = np.random.default_rng(1)
    shapes = {"u": (16, 8, 3), "v": (8, 16, 1), "w": (16, 8, 1)}
    model = parse_model(
        "a = Conv <pads=[1, 1]> (x, u) b = Relu(a) c = Conv(b, v) r = RandomNormalLike(c) "
        "n = Add(c, r) y = Conv(n, w)",
        inputs={"x": ("N", 8, "L")},
        constants={k: 0.2 * rng.normal(size=s).astype(np.float32) for k, s in shapes.items()},
    )
    feeds = [{"x": rng.normal(size=(4, 8, 20)).astype(np.float32)} for _ in range(8)]
    want = np.concatenate([run["y"] for run in run_each(model, feeds)])
    errors = []
    for compensate in (False, True):
        cut = model.clone()
        Prune(ratio=0.3, compensate=compensate).run(cut, Context(cut, samples=Samples(feeds)))
        got = np.concatenate([run["y"] for run in run_each(cut, feeds)])
        errors.append(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert errors[1] < errors[0]
