import numpy as np

from graphopt.samples.leaves import LARGEST, dead_leaves


def drawn(*shape, seed=0):
    return dead_leaves(shape, np.random.default_rng(seed))


def test_images_are_scaled_as_models_are_fed():
    x = drawn(64, 3, 32, 48)
    assert x.shape == (64, 3, 32, 48)
    assert x.dtype == np.float32
    assert abs(x).max() <= LARGEST
    assert abs(x.mean()) < 0.1
    assert 0.7 < x.std() < 1.2


def test_neighbours_are_alike_but_for_edges():
    steps = np.abs(np.diff(drawn(64, 1, 64, 64), axis=3))
    assert np.median(steps) < 0.25
    assert np.quantile(steps, 0.99) > 1


def test_the_same_seed_draws_the_same():
    np.testing.assert_array_equal(drawn(3, 1, 16, 16), drawn(3, 1, 16, 16))
    assert (drawn(1, 1, 16, 16) != drawn(1, 1, 16, 16, seed=1)).any()


def test_images_without_a_pixel_are_empty():
    assert dead_leaves((1, 4, 0, 64), np.random.default_rng(0)).shape == (1, 4, 0, 64)
