"""Flips: what other inputs are likely to decide otherwise, beside what they do."""

import numpy as np
import pytest

from graphopt.execution.runtime import run_each
from graphopt.pipeline.referee import Judging
from graphopt.testing import parse_model
from graphopt.verification.agreement import is_text
from graphopt.verification.flips import flips
from graphopt.verification.guard import Guard
from graphopt.verification.strain import strain


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def guard(text, want, limit=0.01):
    model = parse_model(text, inputs={"x": (4, 8)})
    return Guard(model, [{"y": w} for w in want], [{}], limit)


CASES = [
    ("y = Softmax(x)", softmax, lambda y: y.argmax(-1)),
    ("y = Sigmoid(x)", lambda x: 1 / (1 + np.exp(-x[:, :1])), lambda y: y > 0.5),
]


@pytest.mark.parametrize(("text", "said", "decided"), CASES)
@pytest.mark.parametrize("size", [0.05, 0.2, 0.8])
def test_few_samples_tell_how_many_of_many_flip(text, said, decided, size):
    rng = np.random.default_rng(0)
    many = rng.normal(size=(200_000, 8)) * 4
    noise = size * rng.normal(size=many.shape)
    truth = float(np.mean(decided(said(many)) != decided(said(many + noise))))
    found = [
        flips(guard(text, [said(many[part])]), [{"y": said((many + noise)[part])}]) * 0.01
        for part in np.split(np.arange(128 * 200), 200)
    ]
    assert truth < np.median(found) < 2.5 * truth + 0.01
    assert np.mean(np.array(found) > 0.5 * truth) > 0.9, "few parts see much too little"


@pytest.mark.parametrize("seed", range(6))
def test_a_near_tie_among_few_samples_is_no_rule(seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(72, 8)) * 4
    noise = 0.01 * rng.normal(size=rows.shape)

    def found(rows):
        return flips(guard("y = Softmax(x)", [softmax(rows)]), [{"y": softmax(rows + noise)}])

    tie = rows.copy()
    tie[0, :2] = rows[0].max() + np.array([1.0, 1.0 + 1e-7])
    assert found(tie) < 1
    assert found(tie) < found(rows) + 0.5


def test_what_does_not_come_near_a_margin_flips_nothing():
    rows = np.full((64, 3), [4.0, 0.0, 0.0]) + np.random.default_rng(0).normal(size=(64, 3)) / 9
    judge = guard("y = Softmax(x)", [softmax(rows)])
    assert flips(judge, [{"y": softmax(rows * 0.7)}]) == 0
    assert flips(judge, [{"y": softmax(-rows)}]) > 90
    assert flips(judge, [{"y": softmax(rows)[:3]}]) == pytest.approx(100)


def test_outputs_that_decide_on_the_same_rows_add_up():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(128, 5))
    moved = rows + 0.1 * rng.normal(size=rows.shape)
    model = parse_model("y = Softmax(x)  z = Softmax(x)", inputs={"x": (128, 5)})
    both = Guard(model, [{"y": softmax(rows), "z": softmax(rows)}], [{}])
    one = flips(both, [{"y": softmax(moved), "z": softmax(rows)}])
    assert flips(both, [{"y": softmax(moved), "z": softmax(moved)}]) == pytest.approx(2 * one)


def written(labels, classes=6, sure=8.0):
    return softmax(np.eye(classes)[labels] * sure)


def test_a_letter_that_ends_one_step_later_is_the_same_text():
    text = np.array([[0, 0, 1, 1, 0, 2, 2, 0, 3, 0, 0, 4]] * 32)
    assert is_text([text])
    later = text.copy()
    later[:, 3] = 0  # the 1 has one step less
    other = text.copy()
    other[:, 8] = 5  # another letter
    judge = guard("y = Softmax(x)", [written(text)])
    assert flips(judge, [{"y": written(later)}]) == 0
    assert flips(judge, [{"y": written(other)}]) > 90


def test_labels_that_last_are_no_text():
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 4, (3, 12)), 20, axis=1)
    moved = frames.copy()
    moved[:, 100] = (frames[:, 100] + 1) % 4
    judge = guard("y = Softmax(x)", [written(frames, 4)])
    (found,) = judge.judge([{"y": written(moved, 4)}]).values()
    assert (found.kind, found.disagreements, found.n) == ("scores", 3, 720)
    assert not is_text([rng.integers(0, 2, (3, 12))]), "two classes"


def test_chances_that_look_settled_have_margins_too():
    rng = np.random.default_rng(0)
    rows = 40 * rng.normal(size=(64, 4))
    judge = guard("y = Softmax(x)", [softmax(rows)])
    assert flips(judge, [{"y": softmax(rows + 10 * rng.normal(size=rows.shape))}]) > 3
    assert flips(judge, [{"y": softmax(rows + 0.1 * rng.normal(size=rows.shape))}]) < 1


@pytest.mark.parametrize("operator", ["Softmax", "Sigmoid"])
def test_answers_beyond_what_float32_shows_are_judged_by_their_logits(operator):
    """p = 1 and 0 whatever becomes of z: only the step before tells how near the edge it is."""
    rng = np.random.default_rng(0)
    model = parse_model(f"z = Neg(x)  y = {operator}(z)", inputs={"x": (4, 2)})
    signs = rng.choice((-1, 1), (32, 4, 1)) * np.array([1, -1])
    feeds = [{"x": (s * rng.uniform(200, 900, (4, 1))).astype(np.float32)} for s in signs]
    want = list(run_each(model, feeds))
    assert all(set(np.unique(run["y"])) == {0, 1} for run in want)
    judge = Guard(model, want, feeds)
    noise = [rng.normal(size=(4, 2)) for _ in feeds]

    def found(size):
        with judge.opened(model) as predict:
            moved = [
                {"x": (f["x"] + size * n).astype(np.float32)}
                for f, n in zip(feeds, noise, strict=True)
            ]
            made = list(map(predict, moved))
        return flips(judge, made), strain(judge, made)

    assert max(found(0.1)) < 0.1
    few, strained = found(100)  # hardly one of these answers changes, but others would
    assert few > 0.3
    assert strained > 1
    assert min(found(300)) > 3


@pytest.mark.parametrize(("size", "least", "most"), [(0.02, 0.9, 1), (0.1, 0, 0.03)])
def test_few_rare_decisions_can_be_kept_and_not_be_fooled(size, least, most):
    """Of 128 chances a dozen are high: a share of .35 % flips (of 1 % that may), and of 1.7 %."""
    rng = np.random.default_rng(0)
    accepted = []
    for _ in range(100):
        logits = rng.normal(-6, 4.7, (128, 1))
        want, got = (1 / (1 + np.exp(-z)) for z in (logits, logits + rng.normal(0, size, (128, 1))))
        judge = guard("y = Sigmoid(x)", [want])
        accepted.append(Judging(judge, 1.0).used([{"y": got}]) <= 1)
    assert least <= np.mean(accepted) <= most


def test_where_one_case_is_not_excused_others_count_in_full():
    """Of 31 a single flip is over; of 32 it is not, and counts by how likely it was."""
    rng = np.random.default_rng(3)
    rows = 5 * rng.choice([-1, 1], (32, 1)) + 0.1 * rng.normal(size=(32, 1))
    near = np.zeros((32, 1))
    rows[0], near[0] = 1e-3, -2e-3

    def found(count):
        want, got = (1 / (1 + np.exp(-z[:count])) for z in (rows, rows + near))
        return Judging(guard("y = Sigmoid(x)", [want]), 1.0).used([{"y": got}])

    assert found(31) > 1 >= found(32)
