"""Constants of the new side that take numbers out of the range of float32."""

import numpy as np
import pytest

from graphopt.context import Edit
from graphopt.proving.evidence import examine
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
X = {"x": ("N", 4, 8, 8)}


def verdict(before, after, constants, changed):
    """Of an edit that makes `after` of `before`."""
    one = parse_model(before, inputs=X, constants=constants)
    two = parse_model(after, inputs=X, constants=changed)
    return examine(one, two, [Edit("rule", n.name) for n in two.graph]).edits[-1][1]


def weights(least):
    """Of a convolution, one of them this small."""
    w = RNG.standard_normal((4, 4, 1, 1)).astype(np.float32)
    w[1, 2] = least
    return w


@pytest.mark.parametrize("least", [1e-3, 1e-20, 5.95e-30, 9.5e-41])
def test_a_scale_in_weights_is_proved_however_small_some_are(least):
    w = weights(least)
    s, b = np.float32([1.1041139]), RNG.standard_normal(4).astype(np.float32)
    found = verdict(
        "c = Conv(x, w, b)  y = Mul(c, s)", "y = Conv(x, w, b)", {"w": w, "b": b, "s": s},
        {"w": w * s, "b": b * s},
    )  # fmt: skip
    assert found == "proved"


def test_a_batch_norm_in_weights_is_proved_however_small_some_are():
    w, v = weights(1e-20), np.float32([1, 2, 3, 4])
    norm = {"g": v / 100, "b": v, "m": v - 2, "v": v * 1e4}
    g = norm["g"] / np.sqrt(norm["v"] + np.float32(1e-5))
    found = verdict(
        "c = Conv(x, w)  y = BatchNormalization(c, g, b, m, v)", "y = Conv(x, w, b)",
        {"w": w, **norm}, {"w": w * g.reshape(4, 1, 1, 1), "b": norm["b"] - norm["m"] * g},
    )  # fmt: skip
    assert found == "proved"


def test_a_small_constant_that_the_source_does_not_have_is_run():
    """What underflows on the way is nothing that a normal form of the real numbers sees."""
    a, b = np.float32([1e-30]), np.float32([1e30])
    found = verdict(
        "y = Relu(x)", "s = Mul(x, a)  t = Mul(s, b)  y = Relu(t)", {}, {"a": a, "b": b}
    )
    assert found != "proved"


def test_two_scales_whose_product_has_few_digits_are_run():
    a = np.float32([3.3e-21])
    found = verdict("s = Mul(x, a)  y = Mul(s, a)", "y = Mul(x, c)", {"a": a}, {"c": a * a})
    assert found != "proved"


def test_a_variance_that_is_none_is_no_fault_of_the_proof():
    w, one = weights(1.0), np.ones(4, np.float32)
    norm = {"g": one, "b": one, "m": one, "v": np.float32([1, -1, 2, 0])}
    text = "c = Conv(x, w)  y = BatchNormalization<epsilon=0.0>(c, g, b, m, v)"
    assert verdict(text, "y = Conv(x, w)", {"w": w, **norm}, {"w": 2 * w}) != "proved"
