"""The knapsack against enumeration."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.searching.solver import Knapsack


def best(costs, losses, budget):
    """The least cost by trying everything."""
    found = [
        sum(c[k] for c, k in zip(costs, choice, strict=True))
        for choice in itertools.product(*(range(len(c)) for c in costs))
        if sum(lo[k] for lo, k in zip(losses, choice, strict=True)) <= budget
    ]
    return min(found, default=None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 2.0))
def test_is_as_cheap_as_the_best_of_all_choices(seed, budget):
    rng = np.random.default_rng(seed)
    costs = [rng.random(n) for n in rng.integers(1, 5, 4)]
    losses = [np.r_[0.0, rng.random(len(c) - 1)] for c in costs]
    chosen = Knapsack.of(costs, losses).solve(budget)
    spent = sum(lo[k] for lo, k in zip(losses, chosen, strict=True))
    cost = sum(c[k] for c, k in zip(costs, chosen, strict=True))
    assert spent <= budget + 1e-9
    assert cost == pytest.approx(best(costs, losses, budget), abs=4 * 4 / 4000)


def test_an_option_that_cannot_be_had_is_never_taken():
    costs = [np.array([1.0, 0.1, 0.2]), np.array([1.0, np.inf])]
    losses = [np.array([0.0, np.inf, 0.5]), np.array([0.0, 0.0])]
    assert Knapsack.of(costs, losses).solve(10.0) == (2, 0)


def test_a_budget_that_nothing_meets_gives_none():
    assert Knapsack.of([np.array([1.0])], [np.array([0.5])]).solve(0.4) is None


def test_one_table_answers_every_budget():
    costs = [np.array([3.0, 2.0, 1.0])] * 2
    losses = [np.array([0.0, 1.0, 3.0])] * 2
    solved = Knapsack.of(costs, losses)
    assert solved.solve(0.0) == (0, 0)
    assert sorted(solved.solve(1.0)) == [0, 1]
    assert solved.solve(2.0) == (1, 1)
    assert solved.solve(6.0) == (2, 2)
