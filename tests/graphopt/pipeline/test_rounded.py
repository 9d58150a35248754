"""Outputs of which nothing but rounding is left on the samples."""

import numpy as np

from graphopt import optimize
from graphopt.execution.runtime import run
from graphopt.pipeline.verify import ROUNDED
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)


def cancelling(feeds):
    """s (x w) - k, where k is s (x w) of these feeds but for its last digits."""
    w, s = RNG.standard_normal((64, 32)).astype(np.float32), np.float32([1.1041139])
    scaled = "p = MatMul(x, w)  z = Mul(p, s)"
    shapes, constants = {"x": feeds["x"].shape}, {"w": w, "s": s}
    z = run(parse_model(scaled, inputs=shapes, constants=constants), feeds)["z"]
    k = z * np.float32(1 + 2e-7)
    return parse_model(
        f"{scaled}  y = Sub(z, k)",
        inputs=shapes,
        constants={**constants, "k": k.astype(np.float32)},
    )


def test_what_rounding_moves_as_far_is_kept_and_said():
    feeds = {"x": RNG.standard_normal((4, 64)).astype(np.float32)}
    report = optimize(cancelling(feeds), "fuse", samples=[feeds], measure=False).report
    (step,) = report.steps
    assert step.status == "kept"
    assert step.error_vs_source["y"].rel_l2 > 1e-2
    assert ROUNDED in step.notes


def test_ordinary_outputs_are_no_matter_of_rounding():
    feeds = {"x": RNG.standard_normal((4, 64)).astype(np.float32)}
    others = [{"x": RNG.standard_normal((4, 64)).astype(np.float32)}]
    (step,) = optimize(cancelling(feeds), "fuse", samples=others, measure=False).report.steps
    assert step.status == "kept"
    assert ROUNDED not in step.notes
