import numpy as np
from graphopt.passes.fold import Fold

from graphopt.testing import check


def test_a_size_is_not_shared_with_one_that_died():
    before = """e = Shape <start=0, end=1> (x)  s = Squeeze(e)  u = Unsqueeze(s, zero)
        y = Expand(one, u)  t = Squeeze(e)  z = Range(first, t, step)"""
    constants = {
        "zero": np.array([0]),
        "one": np.ones(1, np.float32),
        "first": np.array(0),
        "step": np.array(1),
    }
    check(Fold(), before, inputs={"x": ("n", 3)}, constants=constants)
