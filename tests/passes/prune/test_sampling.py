import numpy as np
from graphopt.passes.prune.sampling import enough_of

from graphopt.samples import Samples


def test_few_samples_are_all_taken_and_many_evenly():
    few = Samples([{"x": np.zeros((32, 3))}] * 64)
    assert enough_of(few) is few
    many = Samples([{"x": np.full((32, 3), k)} for k in range(640)])
    chosen = enough_of(many)
    for _ in range(2):
        numbers = [int(feeds["x"][0, 0]) for feeds in chosen]
        assert len(numbers) == 64
        assert numbers[0] == 0
        assert numbers[-1] == 639
        assert max(np.diff(numbers)) <= 11
