import numpy as np
import pytest
from graphopt.passes.prune.readers import _shrink


@pytest.mark.parametrize("rows", [8, 30])
def test_shrinkage_comes_nearer_to_the_true_covariance(rows):
    """Chen et al. (2010): on Gaussian rows OAS beats the sample covariance by far."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((40, 40)) / 8 + np.eye(40)
    true = root @ root.T
    before = after = 0.0
    for _ in range(20):
        x = rng.standard_normal((rows, 40)) @ root.T
        sample = (x.T @ x - rows * np.outer(x.mean(0), x.mean(0))) / rows
        found = sample.copy()
        _shrink(found, rows)
        assert np.trace(found) == pytest.approx(np.trace(sample))
        before += np.linalg.norm(sample - true)
        after += np.linalg.norm(found - true)
    assert after < 0.7 * before


def test_what_never_varies_stays_as_it_is():
    nothing = np.zeros((5, 5))
    _shrink(nothing, 2)
    assert (nothing == 0).all()
