"""Byte planes: any bits come back; exponents cost what they carry."""

import ml_dtypes
import numpy as np
import pytest

from graphopt.entropy import planes
from graphopt.entropy.planes import pack_numbers, unpack_numbers

pytest.importorskip("constriction")


def ratio(array):
    data = np.ascontiguousarray(array).tobytes()
    packed = pack_numbers(data, array.dtype.itemsize)
    assert unpack_numbers(memoryview(packed), array.dtype.itemsize, len(data)) == data
    return len(packed) / len(data)


def normal(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize(
    ("kind", "most"), [("f4", 0.84), ("f2", 0.88), ("f8", 0.94), (ml_dtypes.bfloat16, 0.70)]
)
def test_weights(kind, most):
    assert ratio(normal(100_000).astype(kind)) < most


def test_rows_of_different_scale_have_tables_of_their_own():
    rows = normal(400 * 512).reshape(400, 512)
    scaled = rows * np.exp2(np.repeat([-9, -3, 0, 5], 100)[:, None])
    assert ratio(scaled.astype("f4")) < ratio(rows.astype("f4")) + 0.01


def test_large_planes_are_coded_for_speed_where_it_costs_little(monkeypatch):
    weights = normal(200_000).astype("<f4").tobytes()
    small = pack_numbers(weights, 4)
    monkeypatch.setattr(planes, "_LARGE", 200_000)
    quick = pack_numbers(weights, 4)
    assert (small[4], quick[4]) == (planes._CODED, planes._TEXT)
    assert len(small) < len(quick) < len(small) + 0.004 * len(weights)
    assert unpack_numbers(memoryview(quick), 4, len(weights)) == weights
    rows = normal(200_000).reshape(400, 500) * np.exp2(np.arange(400) % 40 - 20)[:, None]
    assert pack_numbers(rows.astype("<f4").tobytes(), 4)[4] == planes._CODED


def test_floats_that_were_halves():
    assert ratio(normal(50_000).astype("f2").astype("f4")) < 0.5


@pytest.mark.parametrize("n", [0, 1, 2, 31, 511, 513, 1025])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_any_bits(n, width):
    data = np.random.default_rng(n).bytes(n * width)
    packed = pack_numbers(data, width)
    assert unpack_numbers(memoryview(packed), width, len(data)) == data


def test_special_floats():
    ratio(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45] * 100, "f4"))


def test_small_integers():
    q = np.clip(np.rint(normal(100_000) * 3), -127, 127).astype(np.int8)
    assert ratio(q) < 0.46
