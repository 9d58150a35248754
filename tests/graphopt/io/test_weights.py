"""Weights that are not finite are reported, masks with infinities are not."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.io.weights import warnings_of
from graphopt.testing import parse_model


def weights(**constants: np.ndarray) -> list[str]:
    return warnings_of(
        parse_model("h = MatMul(x, w)  y = Add(h, m)", inputs={"x": (2, 3)}, constants=constants)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_not_finite(bad):
    w = np.ones((3, 3), np.float32)
    w[1, 1] = bad
    (sentence,) = weights(w=w, m=np.zeros(3, np.float32))
    assert "'w'" in sentence
    assert "of 9 values" in sentence


def test_infinite_mask_is_meant():
    m = np.full(3, -np.inf, np.float32)
    assert weights(w=np.ones((3, 3), np.float32), m=m) == []


def test_nan_anywhere_is_wrong():
    (sentence,) = weights(w=np.ones((3, 3), "f4"), m=np.full(3, np.nan, "f4"))
    assert "3 NaN of 3" in sentence


@pytest.mark.parametrize("text", ["y = Where(c, x, m)", "e = Expand(m, s)  y = Where(c, x, e)"])
def test_a_nan_that_where_chooses_is_what_jax_gives_beyond_a_table(text):
    inputs = {"x": (2, 3), "c": np.ones((2, 3), bool)}
    constants = {"m": np.array(np.nan, "f4"), "s": np.array([2, 3])}
    assert warnings_of(parse_model(text, inputs=inputs, constants=constants)) == []
