"""Pairs: frequencies of two integers are those of the first times those of the second after it."""

import numpy as np

from graphopt.entropy.pairs import LEVELS, NEAR, NEARS, NONE, PAIRS, VALUES, apart, joint


def test_pairs_have_the_frequencies_of_the_first_and_exclude_what_cannot_be():
    near = np.random.default_rng(0).integers(1, 900, (VALUES, NEARS)).astype(np.float64)
    near[-1, NEAR] = 0  # a group that is not zero throughout has one that is not
    both = joint(near).reshape(PAIRS, NEARS, NEARS)
    first = both.sum(axis=2)
    assert np.allclose(first[:NONE], near[:NONE], rtol=1e-12)
    assert np.allclose(first[NONE:], near[: 2 * LEVELS], rtol=1e-12)
    assert (both[NONE:, NEAR, NEAR] == 0).all()
    assert (both[:NONE] > 0).all()


def test_counts_of_pairs_are_those_of_their_integers():
    counts = np.zeros((PAIRS, NEARS**2), np.int64)
    level, zero, one = 7, NEAR, NEAR + 1
    counts[level, one * NEARS + zero] = 5  # nothing known before: kind 0
    counts[NONE + LEVELS + level, zero * NEARS + one] = 3  # the last two of zeros: kind 1
    made = apart(counts)
    assert made[level, one] == 5
    assert made[3 * LEVELS + level, zero] == 5  # after a 1: kind 3
    assert made[LEVELS + level, zero] == 3
    assert made[VALUES - 1, one] == 3
    assert made.sum() == 16


def test_what_follows_something_is_counted_by_whether_it_has_its_sign():
    counts = np.zeros((PAIRS, NEARS**2), np.int64)
    level, minus, plus = 7, NEAR - 1, NEAR + 1
    counts[level, minus * NEARS + minus] = 5
    counts[level, plus * NEARS + plus] = 3
    counts[level, minus * NEARS + plus] = 2
    made = apart(counts)
    assert made[level, [minus, plus]].tolist() == [7, 3]
    assert made[3 * LEVELS + level, [minus, plus]].tolist() == [2, 8]
    near = np.ones((VALUES, NEARS))
    near[3 * LEVELS + level, plus] = 8
    both = joint(near).reshape(PAIRS, NEARS, NEARS)[level]
    assert both[plus, plus] == both[minus, minus] == 8 * both[plus, minus] == 8 * both[minus, plus]
