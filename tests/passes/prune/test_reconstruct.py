import numpy as np
from graphopt.passes.prune import reconstruct
from graphopt.passes.prune.reconstruct import DAMPING, LARGE, ROUNDING, Reader, eliminate


def reader(size, width=1, outputs=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((500, size * width)) @ rng.standard_normal((size * width,) * 2)
    w = rng.standard_normal((outputs, size * width))
    return x - x.mean(0), w, np.repeat(np.arange(size), width)


def residual(x, w, units, gone):
    """Error per row of the best W on what is left, by least squares on the data itself."""
    y, left = x @ w.T, x[:, ~np.isin(units, gone)]
    return ((y - left @ np.linalg.lstsq(left, y, rcond=None)[0]) ** 2).sum() / len(x)


def test_costs_are_those_of_least_squares():
    x, w, units = reader(6, width=3)
    curve = eliminate([Reader(w, x.T @ x / len(x), units, 1.0)], 6, 2)
    scale = curve.cost[-1]
    for k in range(1, 4):
        # the damping of 1e-3 of the mean variance is all that tells them apart
        expected = residual(x, w, units, curve.order[:k])
        assert abs(curve.cost[k] - expected) < 0.02 * expected + 1e-3 * scale


def test_the_first_unit_is_the_cheapest():
    x, w, units = reader(8)
    curve = eliminate([Reader(w, x.T @ x / len(x), units, 1.0)], 8, 2)
    costs = [residual(x, w, units, [u]) for u in range(8)]
    assert costs[curve.order[0]] <= min(costs) * 1.05


def test_a_combination_of_others_costs_nothing():
    x, w, units = reader(6)
    x[:, 3] = x[:, 0] - 2 * x[:, 5]
    curve = eliminate([Reader(w, x.T @ x / len(x), units, 1.0)], 6, 2)
    assert curve.order[0] in (0, 3, 5)
    assert curve.cost[1] < 0.01 * curve.cost[-1]


def test_readers_add_up_and_units_of_none_stay():
    x, w, units = reader(6)
    rest = np.where(units == 2, -1, units)
    one = Reader(w, x.T @ x / len(x), rest, 1.0)
    curve = eliminate([one, one], 6, 2)
    alone = eliminate([one], 6, 2)
    assert curve.order[0] == alone.order[0] == 2  # nothing reads it
    np.testing.assert_allclose(curve.cost[:4], 2 * alone.cost[:4])


def test_curves_are_permutations_that_never_fall():
    x, w, units = reader(130)
    curve = eliminate([Reader(w, x.T @ x / len(x), units, 1.0)], 130, 4)
    assert sorted(curve.order) == list(range(130))
    assert len(curve.cost) == 131
    assert (np.diff(curve.cost) >= 0).all()


def test_units_of_unequal_width_leave_together():
    x, w, _ = reader(6, width=2)
    units = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 4, 5, 5])
    curve = eliminate([Reader(w, x.T @ x / len(x), units, 1.0)], 6, 2)
    for k in range(1, 4):
        expected = residual(x, w, units, curve.order[:k])
        assert abs(curve.cost[k] - expected) < 0.02 * expected + 1e-3 * curve.cost[-1]


def test_moments_that_float32_left_indefinite_still_give_an_order():
    x, w, units = reader(40, width=3)
    basis = np.linalg.svd(x, full_matrices=False)[2]
    h = x.T @ x / len(x)
    h -= (basis[-1] @ h @ basis[-1] + 1e-7 * np.trace(h)) * np.outer(basis[-1], basis[-1])
    curve = eliminate([Reader(w, h, units, 1.0)], 40, 2)
    assert np.linalg.eigvalsh(h)[0] < 0
    assert sorted(curve.order) == list(range(40))
    assert np.isfinite(curve.cost).all()
    assert curve.cost[-1] > 0


def test_wide_ill_conditioned_moments_keep_their_costs():
    """Fewer rows than features: only the damping separates them."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((300, 900)), rng.standard_normal((5, 900))
    h, units = x.T @ x / len(x), np.repeat(np.arange(100), 9)
    curve = eliminate([Reader(w, h, units, 1.0)], 100, 2)
    damped = h + (DAMPING / len(h) + ROUNDING) * np.trace(h) * np.eye(len(h))
    for k in (2, 50, 90):  # two leave at a time
        gone = np.isin(units, curve.order[:k])
        inner = np.linalg.inv(np.linalg.inv(damped)[np.ix_(gone, gone)])
        expected = np.einsum("mr,rs,ms->", w[:, gone], inner, w[:, gone], optimize=True)
        assert abs(curve.cost[k] / expected - 1) < 1e-6


def test_large_inverses_are_of_float32_where_those_are_exact():
    """Within the share asked for; a matrix that float32 cannot invert is inverted in float64."""
    x, w, units = reader(LARGE // 8, width=8)
    x += np.random.default_rng(1).standard_normal(x.shape)
    h = x.T @ x / len(x) + np.eye(LARGE)
    curve = eliminate([Reader(w, h, units, 1.0)], LARGE // 8, 2)
    damped = h + (DAMPING / len(h) + ROUNDING) * np.trace(h) * np.eye(len(h))
    found = reconstruct._inverse(damped.astype(np.float32))
    assert found.dtype == np.float32
    for k in (2, 64, 120):  # two leave at a time
        gone = np.isin(units, curve.order[:k])
        inner = np.linalg.inv(np.linalg.inv(damped)[np.ix_(gone, gone)])
        expected = np.einsum("mr,rs,ms->", w[:, gone], inner, w[:, gone], optimize=True)
        assert abs(curve.cost[k] / expected - 1) < reconstruct.EXACT
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((LARGE, LARGE)))
    values = np.geomspace(1, 1e-6, LARGE)
    hard = ((q * values) @ q.T).astype(np.float32)
    ours, exact = reconstruct._inverse(hard), np.linalg.inv(hard.astype(np.float64))
    assert np.linalg.norm(ours - exact) < 1e-3 * np.linalg.norm(exact)


def test_costs_that_are_no_numbers_end_in_an_order_all_the_same():
    """Moments with a negative eigenvalue, of which no least squares exist."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    values = np.geomspace(1, 1e-6, 40) * np.where(np.arange(40) % 3, 1, -0.3)
    reader = Reader(rng.standard_normal((8, 40)), (q * values) @ q.T, np.arange(40), 1.0)
    with np.errstate(all="ignore"):
        curve = eliminate([reader], 40, 2)
    assert sorted(curve.order.tolist()) == list(range(40))
    assert np.isfinite(curve.cost).all()
    assert (np.diff(curve.cost) >= 0).all()
