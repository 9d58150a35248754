"""Step search: which steps are tried, and which is found."""

import pytest

from graphopt.packing.steps import FINE, HIGHEST, LOWEST, largest, nearest


@pytest.mark.parametrize("limit", [-60, -56, -17, -1, 0, 5, 31, 32])
@pytest.mark.parametrize("start", [None, -20, 0, 7, 32])
def test_the_largest_step_within_the_budget_is_found(limit, start):
    found = limit if limit >= LOWEST * FINE else None
    assert largest(lambda k: k <= limit) == found
    assert nearest(start, lambda k: k <= limit) == found


def test_few_steps_are_tried_from_a_good_start():
    tried = []
    assert nearest(9, lambda k: tried.append(k) or k <= 7) == 7
    assert tried == [9, 8, 7]
    tried.clear()
    assert largest(lambda k: tried.append(k) or k <= 7) == 7
    assert len(tried) <= 5
    assert max(tried) <= HIGHEST * FINE
