import dataclasses

import numpy as np
from graphopt.passes.fuse import Fuse

from graphopt.target import ONNX
from graphopt.testing import check

RNG = np.random.default_rng(11)
BODY = """a = Reshape(x, groups)  n = InstanceNormalization(a, s, t)  c = Reshape(n, back)
    d = Mul(c, g)  y = Add(d, b)"""
CONSTANTS = {
    "groups": np.array([0, 2, -1]),
    "back": np.array([2, 6, 3, 3]),
    "s": RNG.standard_normal(2).astype(np.float32),
    "t": RNG.standard_normal(2).astype(np.float32),
    "g": RNG.standard_normal((6, 1, 1)).astype(np.float32),
    "b": RNG.standard_normal((1, 6, 1, 1)).astype(np.float32),
}
X = {"x": (2, 6, 3, 3)}


def test_group_norm():
    check(
        Fuse(),
        before=BODY,
        after="y = GroupNormalization <num_groups=2, epsilon=9.999999747378752e-06> (x, g, b)",
        inputs=X,
        constants=CONSTANTS,
        opset=21,
    )


def test_where_the_target_has_no_kernel_it_stays():
    target = dataclasses.replace(ONNX, lacks=frozenset({"GroupNormalization"}))
    check(Fuse(), BODY, because="no Group", inputs=X, constants=CONSTANTS, opset=21, target=target)


def test_a_scale_along_another_axis_is_no_group_norm():
    constants = {**CONSTANTS, "g": np.ones((3, 1), np.float32)}
    check(Fuse(), BODY, because="along the channels", inputs=X, constants=constants, opset=21)
