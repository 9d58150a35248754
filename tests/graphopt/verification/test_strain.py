"""Strain: what small changes use of the guard's limits, before a decision flips."""

import numpy as np
import pytest

from graphopt.testing import parse_model
from graphopt.verification.guard import Guard
from graphopt.verification.strain import strain

RNG = np.random.default_rng(0)


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def guard(text, want, **options):
    return Guard(parse_model(text, inputs={"x": (4, 8)}), [{"y": w} for w in want], [{}], **options)


ROWS = RNG.normal(size=(4096, 8)) * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("y = Softmax(x)", softmax),
        ("y = Sigmoid(x)", lambda x: 1 / (1 + np.exp(-x[:, :1]))),
        ("y = Relu(x)", lambda x: x[:, :3] * [1, 10, 1000]),
        ("y = Relu(x)", lambda x: x),
    ],
)
def test_small_errors_that_know_nothing_of_each_other_add_up(text, said):
    judge = guard(text, [said(ROWS)])
    a, b = (0.02 * RNG.normal(size=ROWS.shape) for _ in range(2))
    alone = [strain(judge, [{"y": said(ROWS + e)}]) for e in (a, b)]
    assert min(alone) > 0, "no decision need flip"
    assert strain(judge, [{"y": said(ROWS + a + b)}]) == pytest.approx(sum(alone), rel=0.35)
    assert strain(judge, [{"y": said(ROWS)}]) == 0


def test_of_two_changes_that_flip_nothing_the_one_nearer_to_it_strains_more():
    want = softmax(np.float64([[1.0, 0.9, 0.0]] * 40))
    judge = guard("y = Softmax(x)", [want])
    near = softmax(np.float64([[0.95, 0.94, 0.0]] * 40))  # the edge of every decision
    far = softmax(np.float64([[1.0, 0.9, 0.4]] * 40))  # more in all, but not of what is decided
    assert np.abs(far - want).sum() > np.abs(near - want).sum()
    assert judge.judge([{"y": near}])["y"].over == judge.judge([{"y": far}])["y"].over == 0
    assert strain(judge, [{"y": near}]) > 50 * strain(judge, [{"y": far}])


def test_another_shape_strains_as_much_as_can_be():
    judge = guard("y = Softmax(x)", [softmax(ROWS)])
    assert strain(judge, [{"y": softmax(ROWS)[:5]}]) == pytest.approx(100)


@pytest.mark.parametrize("seed", range(8))
def test_a_near_tie_among_few_samples_does_not_decide_which_error_is_larger(seed):
    rng = np.random.default_rng(seed)
    rows, noise = rng.normal(size=(2, 128, 5))
    rows[0] = [2.0, 2.0 + 1e-6, 0, 0, 0]
    small, large = (softmax(rows + size * noise) for size in (0.01, 0.013))
    judge = guard("y = Softmax(x)", [softmax(rows)])
    ratio = strain(judge, [{"y": large}]) / strain(judge, [{"y": small}])
    assert ratio == pytest.approx(1.3**2, rel=0.02)


def test_a_line_strains_as_all_its_steps_do():
    lines = softmax(RNG.normal(size=(8, 50, 5)) * 3)
    moved = softmax(np.log(lines) + 0.3 * RNG.normal(size=lines.shape))
    rows = guard("y = Softmax(x)", [lines.reshape(-1, 5)])
    whole = guard("y = Softmax(x)", [lines])
    few = strain(rows, [{"y": moved.reshape(-1, 5)}])
    assert few < strain(whole, [{"y": moved}]) < 50 * few
