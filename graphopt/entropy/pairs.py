"""Pairs of neighbours as one symbol: half the coder's work, and the contexts of each by itself.

Magnitudes up to NEAR - 1 are told apart, NEAR stands for all larger ones. The second of two has the
class that the first one makes likely, so that the frequencies of pairs follow from those of single
integers, which are all that a pack holds:

    f(a, b | class)  =  f(a | class) f(+-b | class after a) / f(class after a)

with the sign of a: what follows something is likely to have its sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["LEVELS", "NEAR", "NEARS", "NONE", "PAIRS", "VALUES", "apart", "joint"]

Array = np.ndarray[Any, Any]

#: Classes by what rows and columns say, and by known taps: none of this group, 0, few to many.
LEVELS, KNOWN = 19, 5
#: Magnitudes from here on are one symbol; how many there are.
NEAR = 3
NEARS = 2 * NEAR + 1
#: Classes of single integers; the last: one that is not zero, since its group is not.
VALUES = LEVELS * KNOWN + 1
#: Classes of pairs: kinds by levels, then kinds 0 and 1 where one of the two is not zero.
NONE = LEVELS * KNOWN
PAIRS = NONE + 2 * LEVELS
#: The kind after a magnitude, by the kind before.
_AFTER = np.array([[1, 3, 4, 4], [1, 2, 2, 2], [2, 2, 3, 3], [3, 3, 3, 3], [4, 4, 4, 4]])
#: The class of the first of each class of pairs, and of the second by the first.
_FIRST = np.arange(PAIRS) - np.repeat([0, NONE], [NONE, 2 * LEVELS])
_SIZES = np.abs(np.arange(NEARS) - NEAR)
_SECOND = LEVELS * _AFTER[_FIRST // LEVELS][:, _SIZES] + (_FIRST % LEVELS)[:, None]
_SECOND[NONE:, NEAR] = VALUES - 1


def joint(near: Array) -> Array:
    """Frequencies of pairs [PAIRS, NEARS^2] float64, of those of integers [VALUES, NEARS]."""
    sums = np.maximum(near.sum(axis=1), 1)
    after = near[_SECOND]
    after[:, :NEAR] = after[:, :NEAR, ::-1]
    # integers below 2^24, so that products are exact
    both = near[_FIRST].astype(np.float64)[:, :, None] * after
    made: Array = (both / sums[_SECOND][:, :, None]).reshape(PAIRS, -1)
    return made


def apart(counts: Array) -> Array:
    """Counts of integers [VALUES, NEARS], of those of pairs [PAIRS, NEARS^2]."""
    counts = counts.reshape(PAIRS, NEARS, NEARS)
    made = np.zeros((VALUES, NEARS), np.int64)
    np.add.at(made, _FIRST, counts.sum(axis=2))
    np.add.at(made, _SECOND[:, NEAR:], counts[:, NEAR:])
    np.add.at(made, _SECOND[:, :NEAR], counts[:, :NEAR, ::-1])
    return made
