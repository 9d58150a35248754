"""Lines that connectionist temporal classification writes: what leaves the text as it is."""

import numpy as np
import pytest

from graphopt.verification.text import ahead_in_text, blank_of, read

BLANK = 0
#: A line and another with the same text: a letter sooner, later, longer, shorter; a blank between.
SAME = [
    ([0, 1, 0, 0, 2, 0], [0, 1, 0, 2, 0, 0]),
    ([0, 1, 0, 0, 2, 0], [0, 0, 1, 0, 2, 0]),
    ([0, 1, 1, 0, 2, 0], [0, 0, 1, 0, 2, 0]),
    ([0, 1, 1, 0, 2, 0], [0, 1, 0, 0, 2, 0]),
    ([0, 1, 0, 2, 0, 0], [0, 1, 1, 2, 0, 0]),
    ([0, 1, 0, 2, 0, 0], [0, 1, 2, 2, 0, 0]),
    ([0, 1, 1, 2, 2, 0], [0, 1, 0, 2, 2, 0]),
]
OTHER = [
    ([0, 1, 0, 0, 2, 0], [0, 1, 0, 0, 3, 0]),
    ([0, 1, 0, 0, 2, 0], [0, 1, 0, 0, 0, 0]),
    ([0, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0]),  # the blank told two letters from one
    ([0, 1, 0, 0, 0, 0], [0, 1, 0, 3, 0, 0]),
]


def scores(labels):
    """Sure of these; what looks like a letter is likelier there than the blank."""
    made = np.full((1, len(labels), 5), -9.0)
    for k, label in enumerate(labels):
        made[0, k, label] = 9.0
        made[0, k, 4] = -3.0 if label else -9.0
    return made


@pytest.mark.parametrize(("line", "other"), SAME)
def test_what_says_the_same_is_ahead_everywhere(line, other):
    np.testing.assert_array_equal(read(np.array(line), BLANK), read(np.array(other), BLANK))
    assert (ahead_in_text(scores(other), np.array([line]), BLANK, np.asarray) > 0).all()


@pytest.mark.parametrize(("line", "other"), OTHER)
def test_another_text_is_behind_somewhere(line, other):
    assert list(read(np.array(line), BLANK)) != list(read(np.array(other), BLANK))
    assert (ahead_in_text(scores(other), np.array([line]), BLANK, np.asarray) < 0).any()


def test_the_blank_is_the_first_or_the_last_label_and_frequent():
    line = np.array([[0, 1, 0, 0, 2, 0]])
    assert blank_of([line], 5) == 0
    assert blank_of([4 - line], 5) == 4
    assert blank_of([line + 1], 5) is None
    assert blank_of([np.array([[0, 1, 2, 3, 4, 5]])], 6) is None
