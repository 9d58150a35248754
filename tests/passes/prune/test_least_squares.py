import numpy as np
from graphopt.passes.prune.least_squares import LEAF, Gram, error, fit_weighted, inverse, solve

from graphopt.calibration.moments import Moments


def rows(n, features, outputs, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((1, outputs, features))
    f = rng.standard_normal((1, n, features)).astype(np.float32)
    y = f @ w.transpose(0, 2, 1) + noise * rng.standard_normal((1, n, outputs))
    return f, y.astype(np.float32), w


def test_error_is_the_sum_of_squares():
    f, y, w = rows(100, 5, 3, noise=0.5)
    m = Moments.zero(1, 5, 3)
    m.add(f, y)
    expected = ((y - f @ w.transpose(0, 2, 1)) ** 2).sum(axis=1)
    np.testing.assert_allclose(error(m, w), expected, rtol=1e-4)


def test_without_a_ridge_it_is_least_squares():
    f, y, w = rows(200, 5, 3, noise=0.5)
    m = Moments.zero(1, 5, 3)
    m.add(f, y)
    best = np.linalg.lstsq(f[0], y[0], rcond=None)[0].T
    np.testing.assert_allclose(solve(m, w * 0, 0.0, 0)[0], best, atol=1e-4)


def test_an_infinite_ridge_keeps_the_prior():
    f, y, w = rows(50, 5, 3)
    m = Moments.zero(1, 5, 3)
    m.add(f, y)
    np.testing.assert_array_equal(solve(m, w + 1, np.inf, 0), w + 1)


def test_fit_recovers_weight_and_bias():
    f, y, w = rows(400, 6, 4)
    gram = Gram(1, 6, 4, shift=True)
    gram.add(f, y + 3.0, fit=0.8)
    weight, bias, _ = gram.fit(w * 0, None)
    np.testing.assert_allclose(weight, w, atol=1e-2)  # the least ridge is 1e-5
    np.testing.assert_allclose(bias, 3.0, atol=1e-2)


def test_outputs_of_much_variance_do_not_choose_the_ridge_of_the_others():
    f, y, w = rows(400, 60, 9)
    y[:, :, 0] = 100 * normal_rows(400, seed=9)  # noise: for it alone the best weights are none
    w[:, 0] = 0
    gram = Gram(1, 60, 9, shift=False)
    gram.add(f, y, fit=0.8)
    _, _, ridge = gram.fit(w * 0, None)
    assert ridge <= 1e-2


def normal_rows(n, seed):
    return np.random.default_rng(seed).standard_normal((1, n))


def test_too_few_rows_stay_near_the_prior():
    f, y, w = rows(60, 100, 8, noise=3.0)
    gram = Gram(1, 100, 8, shift=False)
    gram.add(f, y, fit=0.5)
    weight, _, ridge = gram.fit(w, None)
    assert ridge >= 0.1
    assert np.linalg.norm(weight - w) < np.linalg.norm(w)


def test_inverse_by_halves_is_the_inverse():
    """Also where fewer rows than features leave all but the ridge singular."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 2 * LEAF + 77))
    a = x.T @ x / len(x) + 1e-4 * np.eye(x.shape[1])
    found = inverse(a)
    np.testing.assert_allclose(found @ a, np.eye(len(a)), atol=1e-8)


def test_weighted_fit_minds_the_rows_that_count():
    """Half of the rows follow another law, and count a hundredth."""
    f, y, _ = rows(400, 6, 3)
    y[:, :200] = 5 * y[:, :200] + 1
    weights = np.ones_like(y[0])
    weights[:200] = 1e-2
    gram = Gram(1, 6, 3, shift=True)
    gram.add(f, y, 0.8)
    start, shift, _ = gram.fit(np.zeros((1, 3, 6)), None)
    found, bias = fit_weighted(
        f[0], y[0], weights, (start[0], shift), (np.zeros((3, 6)), np.zeros(3)), 1e-5
    )

    def off(w, b):
        return (np.square(y[0] - f[0] @ w.T - b)[200:]).mean()

    assert off(found, bias) < 0.2 * off(start[0], shift)
