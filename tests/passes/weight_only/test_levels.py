"""Accuracy levels: how often the largest output stays when activations are rounded to 8 bits."""

import numpy as np
import pytest
from graphopt.passes.weight_only import WeightOnly
from graphopt.passes.weight_only.levels import agreement, told

from graphopt.context import Context
from graphopt.graph.provenance import why
from graphopt.samples import Samples
from graphopt.target import Target
from graphopt.testing import parse_model

ROUNDS = Target("r", operators=frozenset({"com.microsoft:MatMulNBits"}))
RNG = np.random.default_rng(0)
W = RNG.standard_normal((192, 128)).astype(np.float32)
X = RNG.standard_normal((40, 192)).astype(np.float32)


def run(x, target=ROUNDS, samples=True):
    model = parse_model("y = MatMul(x, w)", inputs={"x": ("N", 192)}, constants={"w": W})
    ctx = Context(model, target=target, samples=Samples([{"x": x}]) if samples else None)
    WeightOnly().run(model, ctx)
    return model, ctx


def test_the_share_is_that_of_the_runtime():
    model, ctx = run(X)
    share = agreement(model.graph[0], X)
    assert 0.9 < share <= 1
    assert f"MatMul_0 {share:.3g}" in ctx.notes[0]
    assert why(model.graph[0]).endswith(f"one largest output in {share:.3g} of the rows")


def test_a_block_with_one_large_number_loses_the_others():
    x = X * np.float32(1e-3)
    x[:, ::64] = 10 * X[:, ::64]
    w = W.copy()
    w[::64] = 0
    model = parse_model("y = MatMul(x, w)", inputs={"x": ("N", 192)}, constants={"w": w})
    WeightOnly().run(model, Context(model, target=ROUNDS))
    assert agreement(model.graph[0], x) < 0.2


@pytest.mark.parametrize(
    ("target", "samples"),
    [(ROUNDS, False), (Target("f", operators=ROUNDS.operators, int8=None), True)],
)
def test_nothing_is_told_without_samples_or_rounding(target, samples):
    assert not any("accuracy" in n for n in run(X, target, samples)[1].notes)


def test_a_note_names_the_least_first_and_bounds_the_rest():
    note = told([(f"n{k}", 1 - k / 100) for k in range(20)])
    assert note.index("n19 0.81") < note.index("n18 0.82")
    assert "n3 " not in note
    assert "0.97 or more elsewhere" in note
