import itertools

import numpy as np
import pytest

from graphopt.knapsack import left_out, lower_hull, marginal_steps, slope


def spend(costs, budget):
    """Steps of rising cost, each gaining 1; the layers that go on until the budget is spent."""
    at = dict.fromkeys(costs, 0)
    left = budget

    def price(key):
        return costs[key][at[key]] if at[key] < len(costs[key]) else None

    for key in marginal_steps(costs, price):
        if price(key) > left:
            break
        left -= price(key)
        at[key] += 1
    return at


@pytest.mark.parametrize("seed", range(5))
def test_on_convex_options_no_choice_gains_more_for_what_was_spent(seed):
    rng = np.random.default_rng(seed)
    costs = {k: sorted(rng.integers(1, 50, 4).tolist()) for k in "abc"}
    at = spend(costs, 60)
    spent = sum(sum(costs[k][:n]) for k, n in at.items())
    others = itertools.product(range(5), repeat=3)
    able = [
        c for c in others if sum(sum(costs[k][:n]) for k, n in zip("abc", c, strict=True)) <= spent
    ]
    assert max(sum(c) for c in able) == sum(at.values())


def test_equal_prices_go_in_order_and_a_price_that_rose_waits():
    prices = {"b": 1.0, "a": 1.0, "c": 2.0}
    order = []
    for key in marginal_steps(prices, lambda k: prices.get(k)):
        order.append(key)
        del prices[key]
        if key == "b":
            prices["a"] = 3.0  # as if taking b made a dearer
    assert order == ["b", "c", "a"]


def test_negative_prices_end_too():
    left = {"a": -5.0, "b": -5.0, "c": 0.0}
    order = []
    for key in marginal_steps(list(left), lambda k: left.get(k)):
        order.append(key)
        del left[key]
    assert order == ["a", "b", "c"]


def test_the_hull_leaves_out_what_a_mix_of_others_beats():
    points = [(10.0, 0.0), (8.0, 5.0), (6.0, 4.0), (6.0, 9.0), (3.0, 20.0), (2.0, 20.0)]
    assert lower_hull(points) == [(10.0, 0.0), (6.0, 4.0), (2.0, 20.0)]
    assert slope((10.0, 0.0), (6.0, 4.0)) == 1.0


def test_what_does_not_fit_keeps_no_others_out():
    cost = {"large": 8.0, "small": 1.0, "middle": 2.0}
    found = left_out(list(cost), cost)
    assert found == [
        [],
        ["middle"],
        ["small", "middle"],
        ["large"],
        ["large", "middle"],
        ["large", "small", "middle"],
    ]
    assert left_out([], {}) == [[]]


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_every_start_of_the_order_is_among_what_is_taken(count):
    rng = np.random.default_rng(count)
    order = list(range(count))
    cost = dict(zip(order, rng.exponential(1, count).tolist(), strict=True))
    found = left_out(order, cost)
    assert found[0] == []
    assert found[-1] == order
    assert len(found) <= 2 * count + 1
    for k in order:
        assert order[k:] in found
