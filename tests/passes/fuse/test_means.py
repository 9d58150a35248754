import dataclasses

import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.target import ONNX
from graphopt.testing import check

SLOW = dataclasses.replace(ONNX, slow=frozenset({"ReduceMean[1,rows,columns]"}))
AXIS = {"a": np.array([1], np.int64)}


@pytest.mark.parametrize("keep", [0, 1])
def test_a_mean_over_the_rows_of_one_matrix_loses_its_leading_axis(keep):
    back = ["", "  y = Reshape(m, t)"][keep]
    check(
        Fuse(),
        before=f"y = ReduceMean <keepdims={keep}> (x, a)",
        after=f"r = Reshape(x, s)  {'m' if keep else 'y'} = ReduceMean <keepdims=1> (r, b){back}",
        inputs={"x": (1, 5, 7)},
        constants=AXIS,
        target=SLOW,
    )


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 7)])
def test_other_means_stay(shape):
    check(
        Fuse(),
        before="y = ReduceMean <keepdims=0> (x, a)",
        unchanged=True,
        inputs={"x": shape},
        constants=AXIS,
        target=SLOW,
    )


def test_a_mean_stays_where_the_target_does_not_mind():
    check(
        Fuse(),
        before="y = ReduceMean <keepdims=0> (x, a)",
        unchanged=True,
        inputs={"x": (1, 5, 7)},
        constants=AXIS,
    )
