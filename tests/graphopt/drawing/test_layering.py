import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.drawing.layering import DUMMY, FAR, GAP, layered, separate


def inside(layout):
    return {i: d for d, layer in enumerate(layout.layers) for i in layer}


def test_a_chain_is_one_item_a_layer_in_one_column():
    layout = layered([50, 60, 70], [(0, 1), (1, 2)])
    assert layout.layers == [[0], [1], [2]]
    assert len(set(layout.x)) == 1


def test_a_branch_stands_beside_and_its_parent_between():
    layout = layered([40] * 4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    assert layout.layers[1] == [1, 2]
    left, right = layout.x[1], layout.x[2]
    assert right - left >= 40 + GAP
    assert left < layout.x[0] < right
    assert left < layout.x[3] < right


def test_an_edge_over_layers_has_a_way_of_its_own():
    layout = layered([40] * 4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    (first, second) = layout.chains[0]
    assert (first, second) == (4, 5)
    assert {4, 5} <= {i for layer in layout.layers[1:3] for i in layer}


def test_a_source_stands_just_above_what_it_feeds():
    layout = layered([40] * 5, [*[(0, 1), (1, 2), (2, 3), (4, 3)][:3], (0, 3)])
    assert inside(layout)[3] == 3
    layout = layered([40] * 4, [(0, 2), (2, 3), (1, 3)])
    assert inside(layout)[1] == inside(layout)[3] - 1


def test_what_is_far_is_a_stub():
    n = FAR + 3
    chain = [(k, k + 1) for k in range(n - 1)]
    layout = layered([40] * n, [*chain, (0, n - 1)])
    assert layout.far == {(0, n - 1)}
    assert len(layout.x) == n


graphs = st.integers(2, 24).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(20, 120), min_size=n, max_size=n),
        st.lists(
            st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] < e[1]),
            max_size=40,
        ),
    )
)


@settings(deadline=None, max_examples=60)
@given(graphs)
def test_every_edge_goes_down_and_nothing_overlaps(graph):
    widths, edges = graph
    layout = layered(widths, edges)
    depth = inside(layout)
    assert all(depth[a] < depth[b] for a, b in edges)
    wide = [*widths, *[DUMMY] * (len(layout.x) - len(widths))]
    for layer in layout.layers:
        for a, b in itertools.pairwise(layer):
            assert layout.x[b] - layout.x[a] >= (wide[a] + wide[b]) / 2 + GAP - 1e-6


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-500, 500), st.floats(1, 100)), min_size=1, max_size=12))
def test_what_is_apart_already_stays(items):
    wish = [w for w, _ in items]
    widths = [w for _, w in items]
    apart = [600.0 * k for k in range(len(wish))]
    assert separate(apart, widths, [1.0] * len(wish)) == apart
    placed = separate(wish, widths, [1.0] * len(wish))
    assert abs(sum(placed) - sum(wish)) < 1e-6 * len(wish) + 1e-6  # least squares keep the mean
