"""Polynomials: equal sums are equal data, and what is not equal stays apart."""

from fractions import Fraction

import pytest

from graphopt.analyses.shapes.symbolic import symbol
from graphopt.proving.polynomials import Unprovable
from graphopt.proving.scalars import Algebra


@pytest.fixture
def a():
    return Algebra()


def element(a, serial, *index, constant=False):
    return a.atom(a.made("elem", (serial, constant), index))


def test_sums_do_not_depend_on_the_names_and_the_order_of_their_variables(a):
    i = a.ranges.variable(5, "i")
    k, m = a.ranges.variable(7, "k"), a.ranges.variable(7, "m")
    p = a.sum(a.mul(element(a, 1, i, k), element(a, 2, k)), [k])
    q = a.sum(a.mul(element(a, 2, m), element(a, 1, i, m)), [m])
    assert p == q
    both = a.sum(a.sum(element(a, 3, k, m), [k]), [m])
    assert both == a.sum(a.sum(element(a, 3, k, m), [m]), [k])
    assert p != a.sum(a.mul(element(a, 1, k, i), element(a, 2, k)), [k])


def test_a_sum_over_what_is_not_in_it_counts(a):
    n = symbol("n")
    i, k = a.ranges.variable(3, "i"), a.ranges.variable(n, "k")
    x = element(a, 1, i)
    assert a.sum(x, [a.ranges.variable(4, "j")]) == a.scale(x, 4)
    assert a.sum(x, [k]) == a.mul(a.size(n), x)


def test_a_quotient_of_equals_is_one_only_where_they_are_not_zero(a):
    x = element(a, 1)
    assert a.mul(x, a.power(x, Fraction(-1))) != a.number(1)
    e = a.exp(x)
    assert a.mul(e, a.power(e, Fraction(-1))) == a.number(1)
    with pytest.raises(Unprovable, match="zero"):
        a.power((), Fraction(-1))


def test_roots_are_not_undone(a):
    x, half = element(a, 1), Fraction(1, 2)
    assert a.power(a.mul(x, x), half) != x
    root = a.power(x, half)
    assert a.mul(root, root) != x


def test_nested_maxima_keep_their_variables_apart(a):
    """Over an inner sum they once shared a name, which made a diagonal of a square."""
    i, j, k = (a.ranges.variable(4, n) for n in "ijk")
    p = a.sum(a.mul(element(a, 1, i, k), element(a, 2, k, j)), [k])
    nested = a.over("ReduceMax", a.over("ReduceMax", p, [j]), [i])
    assert nested == a.over("ReduceMax", a.over("ReduceMax", p, [i]), [j])
    ((atom, _),) = nested[0][0].factors
    assert len({n for n, _ in atom.bound}) == 2
    assert nested != a.over("ReduceMax", a.over("ReduceMin", p, [j]), [i])
    diagonal = a.over("ReduceMax", a.renamed(p, {"j": i}), [i])
    assert nested != diagonal


def test_indicators_that_exclude_each_other(a):
    i = a.ranges.variable(9, "i")
    left, right = a.inside(i, 4), a.inside(i - 4, 5)
    assert a.mul(left, right) == ()
    assert a.mul(left, left) == left
    assert a.mul(a.inside(i, 5), right) != ()
    assert a.inside(i, 9) == a.number(1)
    assert a.mul(a.inside(i - 1, 2), a.inside(i, 4)) == a.inside(i - 1, 2)
    assert a.mul(a.inside(i - 3, 2), a.inside(i, 4)) != a.inside(i - 3, 2)


def test_functions_of_a_concatenation(a):
    i = a.ranges.variable(9, "i")
    x, z = element(a, 1, i), element(a, 2, i)
    left, right = a.inside(i, 4), a.inside(i - 4, 5)
    joined = a.add(a.mul(left, x), a.mul(right, z))
    apart = [a.mul(r, a.function("cos", p)) for r, p in ((left, x), (right, z))]
    assert a.function("cos", joined) == a.add(*apart)
    # zeros elsewhere have a cosine of 1
    hole = a.add(a.mul(left, x), a.mul(a.inside(i - 5, 4), z))
    overlap = a.add(a.mul(left, x), a.mul(a.inside(i - 3, 6), z))
    for p in (hole, overlap, a.mul(left, x)):
        assert a.function("cos", p)[0][0].factors[0][0].data == ("cos",)


def test_a_sum_over_two_axes_at_once(a):
    line = a.ranges.variable(6, "line")
    i, j = a.ranges.variable(2, "i"), a.ranges.variable(3, "j")
    flat = element(a, 1, a.ranges.divide(line, 3), a.ranges.modulo(line, 3))
    assert a.sum(flat, [line]) == a.sum(element(a, 1, i, j), [i, j])
    assert a.sum(flat, [line]) != a.sum(element(a, 1, j, i), [i, j])


def test_logarithms_of_products(a):
    i, k = a.ranges.variable(3, "i"), a.ranges.variable(3, "k")
    x, z = element(a, 1, k), element(a, 2, i)
    assert a.log(a.mul(a.exp(z), a.sum(a.exp(x), [k]))) == a.add(z, a.log(a.sum(a.exp(x), [k])))
    assert a.log(a.sum(a.mul(a.exp(x), x), [k]))[0][0].factors[0][0].data == ("log",)
