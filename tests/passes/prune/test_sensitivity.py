import numpy as np
import pytest
from graphopt.passes.prune.choice import Curve
from graphopt.passes.prune.sensitivity import _curve


def test_a_measured_curve_keeps_its_shape_between_the_points():
    """cost = share^3, outputs move ten times as far: the first units stay nearly free."""
    share = np.arange(65) / 64
    measured = _curve(Curve(np.arange(64), share**3), [(k, 10 * share[k] ** 3) for k in (16, 48)])
    np.testing.assert_allclose(measured.cost, 10 * share**3)


def test_a_measured_curve_goes_through_what_was_measured_and_never_falls():
    curve = Curve(np.arange(8), np.arange(9) / 8)
    measured = _curve(curve, [(2, 0.3), (4, 0.1), (6, 0.7)])
    assert measured.cost[2] == pytest.approx(0.3)
    assert measured.cost[6] == pytest.approx(0.7)
    assert (np.diff(measured.cost) >= 0).all()


@pytest.mark.parametrize("last", [0.0, 1.0])
def test_units_without_cost_of_their_own_have_a_finite_one(last):
    curve = Curve(np.arange(4), np.array([0.0, 0.0, 0.0, 0.0, last]))
    assert np.isfinite(_curve(curve, [(2, 0.5)]).cost).all()
