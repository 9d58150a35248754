import numpy as np
import pytest

from graphopt.analyses.linear import linear_of
from graphopt.calibration.moments import Moments, patches, rows_of, taps
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_moments_add_up_over_parts():
    f, y = normal(2, 100, 5), normal(2, 100, 3)
    whole, parts, more = (Moments.zero(2, 5, 3) for _ in range(3))
    whole.add(f, y)
    parts.add(f[:, :30], y[:, :30])
    more.add(f[:, 30:], y[:, 30:])
    both = parts + more
    # float32 sums of 100 products of order 1, in another order
    for name in ("ff", "fy", "yy", "total"):
        np.testing.assert_allclose(getattr(both, name), getattr(whole, name), atol=1e-3)
    assert both.rows == whole.rows == 100
    np.testing.assert_allclose(whole.mean, f.mean(1), atol=1e-5)
    np.testing.assert_allclose(whole.covariance()[0], np.cov(f[0].T, bias=True), atol=1e-5)


CONVS = [
    "pads=[1, 1, 1, 1]",
    "strides=[2, 3], dilations=[1, 2], pads=[0, 2, 1, 1]",
    'auto_pad="SAME_UPPER", strides=[2, 2]',
    'auto_pad="SAME_LOWER", strides=[1, 3]',
    'auto_pad="VALID"',
]


@pytest.mark.parametrize("attributes", CONVS)
def test_a_convolution_is_its_weight_times_its_patches(attributes):
    x, w = normal(2, 3, 7, 8), normal(5, 3, 3, 2)
    model = parse_model(f"y = Conv<{attributes}>(x, w)", inputs={"x": x}, constants={"w": w})
    expected = np.moveaxis(run(model, {"x": x})["y"], 1, -1).reshape(-1, 5)
    op = linear_of(model.graph[0])
    rows = rows_of(op, x, 10_000, RNG)
    np.testing.assert_allclose(rows @ op.matrix()[0].T, expected, atol=1e-5)
    some = rows_of(op, x, 7, np.random.default_rng(3))
    chosen = np.sort(np.random.default_rng(3).choice(len(rows), 7, replace=False))
    np.testing.assert_array_equal(some, rows[chosen])


def test_patches_of_groups_and_of_some_positions():
    x, w = normal(2, 4, 6), normal(6, 2, 3)
    model = parse_model("y = Conv<group=2>(x, w)", inputs={"x": x}, constants={"w": w})
    y = run(model, {"x": x})["y"]
    op = linear_of(model.graph[0])
    table = taps(op.node, op.kernel, (6,), (4,))[[0, 3]]
    rows = patches(x, table, 2)
    made = np.einsum("grf,gof->rgo", rows, op.matrix()).reshape(2, 2, 6)
    np.testing.assert_allclose(made, np.moveaxis(y, 1, -1)[:, [0, 3]], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "x", "w"),
    [
        ("y = MatMul(x, w)", (2, 5, 4), (4, 3)),
        ("y = MatMul(w, x)", (2, 4, 5), (3, 4)),
        ("y = Gemm<transA=1>(x, w)", (4, 5), (4, 3)),
        ("y = Gemm<transB=1>(x, w)", (5, 4), (3, 4)),
    ],
)
def test_a_product_is_its_weight_times_its_rows(text, x, w):
    x, w = normal(*x), normal(*w)
    model = parse_model(text, inputs={"x": x}, constants={"w": w})
    y = run(model, {"x": x})["y"]
    op = linear_of(model.graph[0])
    expected = np.moveaxis(y, op.y_axis, -1).reshape(-1, 3)
    made = rows_of(op, x, 100, RNG) @ op.matrix()[0].T
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_features_that_hardly_vary_about_a_large_mean_have_a_positive_definite_covariance():
    rng = np.random.default_rng(0)
    moments = Moments.zero(1, 200)
    for _ in range(20):
        moments.add((3 + 1e-5 * rng.standard_normal((1, 50, 200))).astype(np.float32))
    (covariance,) = moments.covariance()
    assert np.linalg.eigvalsh(covariance)[0] > 0
