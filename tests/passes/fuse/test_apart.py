import dataclasses

import numpy as np
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
