import dataclasses

import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.target import ONNX
from graphopt.testing import check

SLOW = dataclasses.replace(ONNX, slow=frozenset({"SkipLayerNormalization"}))
NORM = {"g": np.float32([1, 2, 3]), "b": np.float32([3, 2, 1])}
BEFORE = "s = Add(x, z)  n = LayerNormalization(s, g, b)  y = Mul(n, s)"


def test_a_sum_before_a_norm_is_no_add_where_the_fused_operator_is_slow():
    after = "s = Sum(x, z)  n = LayerNormalization(s, g, b)  y = Mul(n, s)"
    inputs = {"x": (2, 3), "z": (2, 3)}
    check(Fuse(), BEFORE, after, target=SLOW, constants=NORM, inputs=inputs)


def test_it_stays_an_add_elsewhere():
    check(Fuse(), BEFORE, target=ONNX, constants=NORM, unchanged=True)


def test_a_bias_stays_an_add():
    constants = {**NORM, "z": np.float32([1, 2, 3])}
    check(Fuse(), BEFORE, target=SLOW, constants=constants, unchanged=True)


SLOW_MEANS = dataclasses.replace(ONNX, slow=frozenset({"ReduceMean[1,rows,columns]"}))
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
        target=SLOW_MEANS,
    )


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 7)])
def test_other_means_stay(shape):
    check(
        Fuse(),
        before="y = ReduceMean <keepdims=0> (x, a)",
        unchanged=True,
        inputs={"x": shape},
        constants=AXIS,
        target=SLOW_MEANS,
    )


def test_a_mean_stays_where_the_target_does_not_mind():
    check(
        Fuse(),
        before="y = ReduceMean <keepdims=0> (x, a)",
        unchanged=True,
        inputs={"x": (1, 5, 7)},
        constants=AXIS,
    )
