"""Step search: which steps are tried, and which is found."""

import pytest

from graphopt.packing.steps import FINE, HIGHEST, LOWEST, largest, nearest


@pytest.mark.parametrize("limit", [-120, -112, -111, -33, -1, 0, 5, 31, 63, 64])
@pytest.mark.parametrize("start", [None, -20, 0, 7, 64])
def test_the_largest_step_within_the_budget_is_found(limit, start):
    found = limit if limit >= LOWEST * FINE else None
    assert largest(lambda k: k <= limit) == found
    assert nearest(start, lambda k: k <= limit) == found


def test_few_steps_are_tried_from_a_good_start():
    tried = []
    assert nearest(9, lambda k: tried.append(k) or k <= 7) == 7
    assert tried == [9, 7, 8]
    tried.clear()
    assert largest(lambda k: tried.append(k) or k <= 7) == 7
    assert len(tried) <= 6
    assert max(tried) <= HIGHEST * FINE
