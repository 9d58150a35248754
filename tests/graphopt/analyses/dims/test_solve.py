"""The solver: the finest consistent units, whatever the order of the equations."""

import random

import numpy as np
from hypothesis import given, note, settings
from hypothesis import strategies as st

from graphopt.analyses.dims.solve import solve
from graphopt.analyses.dims.system import System


def partitions(system):
    """Per axis the set of blocks of positions that go together (labels of one unit), by unit."""
    solution = solve(system)
    units = set()
    for labelling in solution.labellings:
        for u in range(labelling.units):
            units.add(
                frozenset(
                    (axis, int(p))
                    for axis, c in enumerate(solution.classes.tolist())
                    if c in labelling.labels
                    for p in np.flatnonzero(labelling.labels[c] == u)
                )
            )
    return units


def live(system, axis):
    """The units seen on one axis, as sets of positions."""
    found = [frozenset(p for a, p in unit if a == axis) for unit in partitions(system)]
    return {f for f in found if f}


def blocks(*groups):
    return {frozenset(g) for g in groups}


def test_products_refine_along_nested_divisors():
    """12 = 3*4 on one side, 6*2 on the other: 3*2*2."""
    s = System()
    whole, a3, b4, c6, d2 = (s.axis(n) for n in (12, 3, 4, 6, 2))
    s.merge(whole, (a3, b4))
    s.merge(whole, (c6, d2))
    assert live(s, a3) == blocks({0}, {1}, {2})
    assert live(s, d2) == blocks({0}, {1})
    assert live(s, c6) >= blocks({0, 1}, {2, 3}, {4, 5})


def test_factorizations_that_do_not_nest_coarsen_by_position():
    """12 = 2*6 read as 6*2: column j of one, row of the other: units are merged until both hold."""
    s = System()
    whole, again = s.axis(12), s.axis(12)
    a2, b6 = s.axis(2), s.axis(6)
    p2, q6 = s.axis(2), s.axis(6)
    s.merge(whole, (a2, b6))
    s.merge(again, (b6, a2))
    s.merge(again, (p2, q6))
    s.freeze(a2, "frozen")
    for unit in live(s, again):
        rows = np.zeros(12, int)
        rows[list(unit)] = 1
        grid = rows.reshape(2, 6)
        assert (grid == grid[0]).all() or not np.ptp(grid, axis=1).any()


def test_a_part_that_is_frozen_leaves_the_rest():
    s = System()
    whole, a, b = s.axis(7), s.axis(3), s.axis(4)
    s.part(a, whole, np.arange(3))
    s.part(b, whole, np.arange(3, 7))
    s.freeze(a, "model input 'x'")
    assert live(s, whole) == blocks({3}, {4}, {5}, {6})


def test_one_dimension_on_two_merged_axes_is_frozen():
    """The Gram matrix of channels, flattened."""
    s = System()
    whole, c = s.axis(9), s.axis(3)
    s.merge(whole, (c, c))
    assert not partitions(s)
    assert "occurs twice" in solve(s).texts[int(solve(s).reasons[0].max())]


def test_a_part_without_labels_does_not_count_as_labelled():
    """Found by the property below: factor b seemed labelled, so c never got its labels."""
    s = System()
    whole, a, b, c, joined = (s.axis(n) for n in (4, 2, 2, 2, 6))
    s.part(whole, joined, np.arange(2, 6))
    s.merge(whole, (a, b))
    s.merge(whole, (c, b))
    s.part(b, joined, np.arange(2))
    assert live(s, c) == blocks({0}, {1})


@st.composite
def systems(draw):
    """Random equations over axes of composite sizes."""
    s = System()
    axes = [
        s.axis(draw(st.sampled_from([2, 3, 4, 6, 8, 12]))) for _ in range(draw(st.integers(4, 9)))
    ]
    for _ in range(draw(st.integers(2, 8))):
        kind = draw(st.sampled_from(["same", "part", "merge", "merge", "freeze"]))
        a = draw(st.sampled_from(axes))
        n = s.sizes[a]
        if kind == "same":
            b = draw(st.sampled_from([x for x in axes if s.sizes[x] == n]))
            s.same(a, b)
        elif kind == "part":
            fits = [x for x in axes if s.sizes[x] > n]
            if fits:
                whole = draw(st.sampled_from(fits))
                start = draw(st.integers(0, s.sizes[whole] - n))
                s.part(a, whole, np.arange(start, start + n))
        elif kind == "merge":
            pairs = [(x, y) for x in axes for y in axes if s.sizes[x] * s.sizes[y] == n]
            if pairs:
                s.merge(a, draw(st.sampled_from(pairs)))
        else:
            at = np.array([draw(st.integers(0, n - 1))])
            s.freeze(a, f"frozen {a}", None if draw(st.booleans()) else at)
    return s


def shuffled(system, seed):
    """The same equations in another order."""
    other = System()
    other.sizes = system.sizes
    for name in ("sames", "parts", "merges", "freezes"):
        listed = list(getattr(system, name))
        random.Random(seed).shuffle(listed)
        setattr(other, name, listed)
    other.sames = [(b, a) if random.Random(seed).random() < 0.5 else (a, b) for a, b in other.sames]
    return other


@settings(max_examples=300, deadline=None)
@given(systems(), st.integers(0, 99))
def test_the_result_does_not_depend_on_the_order_of_equations(system, seed):
    assert partitions(system) == partitions(shuffled(system, seed))


@settings(max_examples=300, deadline=None)
@given(systems(), st.data())
def test_every_choice_of_units_satisfies_every_equation(system, data):
    """Remove random units: parts agree, products stay where all factors stay, frozen stays."""
    note(f"{system.sizes} {system.sames} {system.parts} {system.merges} {system.freezes}")
    solution = solve(system)
    keep = [np.ones(n, bool) for n in system.sizes]
    for labelling in solution.labellings:
        gone = data.draw(st.sets(st.integers(0, labelling.units - 1)))
        for axis, c in enumerate(solution.classes.tolist()):
            if c in labelling.labels:
                keep[axis] &= ~np.isin(labelling.labels[c], sorted(gone))
    for a, b in system.sames:
        assert (keep[a] == keep[b]).all()
    for p in system.parts:
        assert (keep[p.axis][p.at] == keep[p.whole][p.whole_at]).all()
    for f in system.freezes:
        assert keep[f.axis][f.at if f.at is not None else slice(None)].all()
    for m in system.merges:
        want = keep[m.factors[0]]
        for f in m.factors[1:]:
            want = np.logical_and.outer(want, keep[f])
        assert (keep[m.whole] == want.ravel()).all()
