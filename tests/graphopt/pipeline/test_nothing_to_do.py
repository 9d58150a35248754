"""A pass that did nothing says why."""

import numpy as np
import pytest

from graphopt import optimize
from graphopt.testing import parse_model

NO_WEIGHTS = ("t = Transpose(x) y = MatMul(x, t)", {})
SMALL = ("y = MatMul(x, w)", {"w": np.ones((8, 8), np.float32)})
INTEGER = (
    "q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) f = Cast <to = 1> (i) "
    "y = Mul(f, s)",
    {"w": np.ones((8, 8), np.int8)},
)


@pytest.mark.parametrize(
    ("text", "spec", "why"),
    [
        (NO_WEIGHTS, "int8", "no layer to quantize: no product, convolution, LSTM or table"),
        (NO_WEIGHTS, "prune", "no dimension is free to prune"),
        (NO_WEIGHTS, "svd", "no layer has weights to factor"),
        (NO_WEIGHTS, "svd(ratio=0.5)", "no layer has weights to factor"),
        (NO_WEIGHTS, "weight_only", "no product reads a matrix of weights"),
        (INTEGER, "int8", "quantized already: start from the float model"),
        (SMALL, "svd", "none of the 1 layers with weights would be cheaper as factors"),
        (
            SMALL,
            "int8(layers=(('*', 'float'),))",
            "all 1 layers stay float, 1 of them because: layers= says so",
        ),
    ],
)
def test_the_step_says_why(text, spec, why):
    model = parse_model(text[0], inputs={"x": (8, 8)}, constants=text[1])
    (step,) = optimize(model, spec, measure=False).report.steps
    assert step.status == "unchanged"
    assert step.reason.startswith(why)


def test_a_ratio_below_one_unit_is_said():
    weights = {"w": np.eye(8, dtype=np.float32), "v": np.eye(8, dtype=np.float32)}
    model = parse_model(
        "a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)", inputs={"x": (8, 8)}, constants=weights
    )
    (step,) = optimize(model, "prune(ratio=0.01)", measure=False).report.steps
    assert (step.status, step.reason) == (
        "unchanged",
        "no dimension can lose 0.01 of the macs",
    )
