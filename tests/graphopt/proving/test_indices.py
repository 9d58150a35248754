"""Index arithmetic beside NumPy's."""

import itertools

import numpy as np
import pytest

from graphopt.analyses.shapes.symbolic import symbol
from graphopt.proving.indices import Ranges, reshaped

SHAPES = [
    s
    for n in (1, 2, 3, 4)
    for s in itertools.product((1, 2, 3, 4, 6), repeat=n)
    if np.prod(s) in (6, 12, 24)
]


@pytest.mark.parametrize("seed", range(300))
def test_reshaped_is_row_major(seed):
    rng = np.random.default_rng(seed)
    new = SHAPES[rng.integers(len(SHAPES))]
    fitting = [s for s in SHAPES if np.prod(s) == np.prod(new)]
    old = fitting[rng.integers(len(fitting))]
    ranges = Ranges()
    index = [ranges.variable(d, f"i{k}") for k, d in enumerate(new)]
    found = reshaped(index, new, old, ranges)
    assert found is not None
    grid = dict(zip([f"i{k}" for k in range(len(new))], np.indices(new), strict=True))
    at = [np.broadcast_to(ranges.values(e, grid), new) for e in found]
    array = np.arange(np.prod(old)).reshape(old)
    assert np.array_equal(array[tuple(at)], array.reshape(new))


@pytest.mark.parametrize("seed", range(100))
def test_quotients_and_rests_are_exact(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 6, 3)
    ranges = Ranges()
    variables = [ranges.variable(int(s), f"i{k}") for k, s in enumerate(sizes)]
    e = int(rng.integers(0, 7))
    for v in variables:
        e = e + v * int(rng.integers(0, 13))
    grid = dict(zip(("i0", "i1", "i2"), np.indices(sizes), strict=True))
    first, second = (int(x) for x in rng.integers(1, 9, 2))
    once, value = ranges.divide(e, first), ranges.values(e, grid)
    pairs = [
        (once, value // first),
        (ranges.modulo(e, first), value % first),
        (ranges.divide(once, second), value // first // second),
        (ranges.modulo(once, second), value // first % second),
    ]
    inner = ranges.modulo(e, first * second)
    whole, rest = ranges.divide(inner, first), ranges.modulo(inner, first)
    pairs += [
        (whole, value % (first * second) // first),
        (rest, value % (first * second) % first),
        (ranges.joined(whole * first + rest), value % (first * second)),
    ]
    for made, wanted in pairs:
        assert (ranges.values(made, grid) == wanted).all()


def test_the_rest_of_a_quotient_has_one_form():
    ranges, n = Ranges(), symbol("n")
    i = ranges.variable(n, "i")
    assert ranges.divide(ranges.modulo(i, 16), 4) == ranges.modulo(ranges.divide(i, 4), 4)
    assert ranges.modulo(ranges.modulo(i, 16), 4) == ranges.modulo(i, 4)


def test_sizes_that_are_names_divide_where_it_shows():
    ranges, n = Ranges(), symbol("n")
    i, j = ranges.variable(n, "i"), ranges.variable(4, "j")
    assert ranges.divide(i * 4 + j, 4) == i
    assert ranges.modulo(i * 4 + j, 4) == j
    assert ranges.divide(j * n + i, n) == j
    assert ranges.within(i, n) is True
    assert ranges.within(i + n, n) is False
    assert ranges.within(i, n - 1) is None


def test_a_quotient_and_its_rest_are_the_whole_again():
    ranges = Ranges()
    i = ranges.variable(10, "i")
    q, r = ranges.divide(i, 3), ranges.modulo(i, 3)
    assert ranges.joined(q * 3 + r) == i
    assert ranges.joined(q * 3 + r * 2) != i + r
    assert ranges.joined(q * 2 + r) == q * 2 + r


def test_sizes_that_do_not_show_what_belongs_together():
    a, b = map(symbol, "ab")
    ranges = Ranges()
    index = [ranges.variable(d, f"i{k}") for k, d in enumerate((a, b))]
    assert reshaped(index, (a, b), (b, a), ranges) is not None  # as many elements in all
    assert reshaped([*index, 0], (a, b, 1), (1, a, b), ranges) == (0, *index)
    assert reshaped([index[0], 0], (a, 1), (a,), ranges) == (index[0],)


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_positions_of_padding_are_numpys(mode):
    ranges = Ranges()
    i = ranges.variable(12, "i")
    at = ranges.padded(mode, i - 3, 5)
    wanted = np.pad(np.arange(5), (3, 4), mode)
    assert np.array_equal(ranges.values(at, {"i": np.arange(12)}), wanted)
    assert [ranges.substituted(at, {"i": k}) for k in range(12)] == wanted.tolist()
    # inside of what was there it is the position itself
    j = ranges.variable(5, "j")
    assert ranges.substituted(at, {"i": j + 3}) == j
    assert ranges.padded(mode, i - 3, 1) == 0
    n = symbol("n")
    assert ranges.variables(ranges.padded(mode, i - 3, n)) == {"i"}
    # it is no rest of a division, nor a quotient
    assert ranges.modulo(at, 5) == at
    assert ranges.parted([at], "i") is None
