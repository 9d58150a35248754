import itertools

import numpy as np
import pytest
from graphopt.passes.prune.choice import Curve, allowed_counts, choose
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analyses.dims import Dimension, Member
from graphopt.analyses.dims.cost_model import Work


def dimension(size, width=1):
    positions = np.repeat(np.arange(size), width)
    return Dimension(
        "d", size, "channels", "inner", (Member("n", "w", 0, "writes", positions, True),)
    )


def chain(sizes):
    """Work of a chain of matrices: size k times size k + 1, each a dimension of its own."""
    names = [f"d{k}" for k in range(len(sizes))]
    terms = [
        (float(a * b), (((1.0, (m,)),), ((1.0, (n,)),)))
        for (a, b), (m, n) in zip(itertools.pairwise(sizes), itertools.pairwise(names), strict=True)
    ]
    return names, Work(sum(t[0] for t in terms) * 1.25, terms)


@given(
    st.lists(st.integers(4, 40), min_size=2, max_size=5),
    st.floats(0.0, 0.6),
    st.booleans(),
    st.integers(0, 9),
)
def test_reaches_the_ratio_and_little_more(sizes, ratio, uniform, seed):
    names, work = chain(sizes)
    rng = np.random.default_rng(seed)
    curves = {n: Curve.of_scores(rng.random(s)) for n, s in zip(names, sizes, strict=True)}
    counts = {n: allowed_counts(dimension(s), 1, 0.0, s) for n, s in zip(names, sizes, strict=True)}
    kept = choose(curves, counts, work, ratio, uniform=uniform)
    left = work.left({n: kept[n] / s for n, s in zip(names, sizes, strict=True)})
    goal = work.total * (1 - ratio)
    step = max(work.saved({}, n, 1 - 1 / s) for n, s in zip(names, sizes, strict=True))
    if uniform:  # all dimensions move a unit at once
        step = sum(work.saved({}, n, 1 - 1 / s) for n, s in zip(names, sizes, strict=True))
    assert abs(left - goal) <= step


def test_a_step_that_overshoots_gives_way_to_a_smaller_one():
    work = Work(20.0, [(10.0, (((1.0, ("a",)),),)), (10.0, (((1.0, ("b",)),),))])
    curves = {"a": Curve.of_scores(np.full(32, 0.5)), "b": Curve.of_scores(np.ones(32))}
    assert choose(curves, {"a": [32, 16], "b": [32, 28, 24]}, work, 0.1) == {"a": 32, "b": 24}
    curves["a"] = Curve.of_scores(np.full(32, 0.1))  # but not to one that costs ten times as much
    assert choose(curves, {"a": [32, 16], "b": [32, 28, 24]}, work, 0.1) == {"a": 32, "b": 32}
    assert choose(curves, {"a": [32, 16], "b": [32, 28, 24]}, work, 0.2) == {"a": 16, "b": 32}
    assert choose(curves, {"a": [32, 16], "b": [32]}, work, 0.1) == {"a": 32, "b": 32}
    assert choose(curves, {"a": [32, 16], "b": [32]}, work, 0.2) == {"a": 16, "b": 32}


def test_takes_what_costs_least_per_work():
    work = Work(20.0, [(10.0, (((1.0, ("a",)),),)), (10.0, (((1.0, ("b",)),),))])
    curves = {"a": Curve.of_scores(np.ones(10)), "b": Curve.of_scores(np.full(10, 1e-3))}
    counts = {key: list(range(10, 1, -1)) for key in curves}
    assert choose(curves, counts, work, 0.4) == {"a": 10, "b": 2}
    assert choose(curves, counts, work, 0.4, uniform=True) == {"a": 6, "b": 6}


def test_what_cannot_be_reached_goes_as_far_as_it_may():
    work = Work(100.0, [(10.0, (((1.0, ("a",)),),))])
    curves = {"a": Curve.of_scores(np.ones(10))}
    assert choose(curves, {"a": [10, 8, 6]}, work, 0.9) == {"a": 6}
    assert choose(curves, {"a": [10, 8, 6]}, work, 0.9, uniform=True) == {"a": 6}


def test_a_fixed_count_counts_from_the_start():
    work = Work(20.0, [(10.0, (((1.0, ("a",)),),)), (10.0, (((1.0, ("b",)),),))])
    curves = dict.fromkeys("ab", Curve.of_scores(np.ones(10)))
    assert choose(curves, {"a": [5], "b": list(range(10, 1, -1))}, work, 0.25) == {"a": 5, "b": 10}


def test_nothing_goes_at_ratio_zero():
    names, work = chain([8, 8])
    curves = {n: Curve.of_scores(np.zeros(8)) for n in names}
    counts = {key: [8, 4] for key in names}
    assert choose(curves, counts, work, 0.0) == dict.fromkeys(names, 8)
    assert choose(curves, counts, work, 0.0, uniform=True) == dict.fromkeys(names, 8)


@pytest.mark.parametrize(
    ("size", "width", "multiple", "floor", "expected"),
    [
        (10, 1, 1, 0.0, [10, 9, 8, 7, 6, 5, 4, 3, 2]),
        (10, 1, 1, 0.75, [10, 9, 8]),
        (64, 1, 8, 0.5, [64, 56, 48, 40, 32]),
        (48, 1, 8, 0.5, [48, 40, 32, 24]),
        (30, 1, 8, 0.7, [30, 28, 24]),
        (12, 64, 8, 0.5, [12, 11, 10, 9, 8, 7, 6]),  # heads of 64: any number is a multiple of 8
        (12, 4, 8, 0.5, [12, 10, 8, 6]),
        (16, 4, 8, 0.5, [16, 14, 12, 10, 8]),
        (8, 1, 8, 0.0, [8, 6, 4, 2]),  # one step of 8 would leave nothing
        (2, 1, 1, 0.0, [2, 1]),
    ],
)
def test_counts_are_what_the_target_likes(size, width, multiple, floor, expected):
    assert allowed_counts(dimension(size, width), multiple, floor, size) == expected


def test_kept_units_are_in_their_order():
    curve = Curve.of_scores(np.array([3.0, 1.0, 2.0, 5.0]))
    assert curve.kept(2).tolist() == [0, 3]
    assert curve.kept(4).tolist() == [0, 1, 2, 3]


def test_counts_are_shares_and_steps_of_the_source():
    """What is left of 64 units after a round: the floor and the step stay those of 64."""
    assert allowed_counts(dimension(24), 8, 0.25, 64) == [24, 16]
    assert allowed_counts(dimension(8), 8, 0.0, 32) == [8]
    assert allowed_counts(dimension(6), 1, 0.1, 64) == [6]
