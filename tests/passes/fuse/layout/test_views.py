import itertools

import numpy as np
import pytest
from graphopt.passes.fuse import Fuse
from graphopt.passes.fuse.layout.axes import Layout
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.testing import check


def shape(*dims):
    return np.array(dims, np.int64)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = Transpose <perm=[1, 0, 2]> (r)  y = Transpose <perm=[1, 0, 2]> (a)", ""),
        (
            "a = Transpose <perm=[1, 2, 0]> (r)  y = Transpose <perm=[1, 2, 0]> (a)",
            "y = Transpose <perm=[2, 0, 1]> (r)",
        ),
        ("a = Reshape(r, s)  y = Reshape(a, t)", "y = Reshape(r, t)"),
        ("a = Flatten(r)  y = Reshape(a, t)", "y = Reshape(r, t)"),
        ("y = Transpose <perm=[0, 1, 2]> (r)", ""),
    ],
)
def test_pairs(before, after):
    after = after or "y = Identity(r)"
    before, after = f"r = Relu(x)  {before}  z = Relu(y)", f"r = Relu(x)  {after}  z = Relu(y)"
    after = (
        after.replace("  y = Identity(r)", "").replace("Relu(y)", "Relu(r)")
        if "Identity" in after
        else after
    )
    constants = {"s": shape(6, 4), "t": shape(4, 6)}
    check(Fuse(), before, after, inputs={"x": (2, 3, 4)}, constants=constants)


def test_the_key_of_an_exported_attention_is_one_reshape_and_transpose():
    check(
        Fuse(),
        before="""a = Reshape(x, s)
            b = Transpose <perm=[0, 2, 1, 3]> (a)
            c = Reshape(b, t)
            d = Transpose <perm=[0, 2, 1]> (c)
            y = Reshape(d, u)""",
        after="a = Reshape(x, s)  y = Transpose <perm=[0, 2, 3, 1]> (a)",
        inputs={"x": (2, 5, 12)},
        constants={"s": shape(2, 5, 4, 3), "t": shape(-1, 5, 3), "u": shape(2, 4, 3, 5)},
    )


def test_moving_axes_of_size_one_is_a_reshape():
    check(
        Fuse(),
        before="y = Transpose <perm=[0, 2, 1, 3]> (x)",
        after="y = Reshape(x, s)",
        inputs={"x": (2, 5, 1, 3)},
    )


def test_links_read_elsewhere_are_kept():
    check(
        Fuse(),
        before="a = Transpose <perm=[1, 0]> (x)  b = Relu(a)  y = Reshape(a, s)",
        unchanged=True,
        constants={"s": shape(6)},
    )


def test_axes_that_do_not_nest_stay():
    check(
        Fuse(),
        before="a = Reshape(x, s)  b = Transpose <perm=[1, 0]> (a)  y = Reshape(b, t)",
        unchanged=True,
        inputs={"x": (4, 6)},
        constants={"s": shape(3, 8), "t": shape(6, 4)},
    )


@st.composite
def chains(draw):
    dims = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    ops = []
    at = list(dims)
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            perm = draw(st.permutations(range(len(at))))
            ops.append(("Transpose", tuple(perm)))
            at = [at[p] for p in perm]
        else:
            total = int(np.prod(at))
            cut = []
            while total > 1 and len(cut) < 4:
                d = draw(st.sampled_from([k for k in range(1, total + 1) if total % k == 0]))
                cut.append(d)
                total //= d
            cut.append(total)
            ops.append(("Reshape", tuple(cut)))
            at = cut
    return tuple(dims), ops


@settings(max_examples=300, deadline=None)
@given(chains())
def test_steps_do_what_the_chain_does(case):
    dims, ops = case
    layout = Layout(dims)
    x = y = np.arange(int(np.prod(dims))).reshape(dims)
    for kind, what in ops:
        if kind == "Transpose":
            layout.transpose(what)
            x = x.transpose(what)
        else:
            x = x.reshape(what)
            if not layout.reshape(what):
                return
    steps = layout.steps()
    assert len(steps) <= 3
    for kind, what in steps:
        y = y.transpose(what) if kind == "Transpose" else y.reshape(what)
    assert np.array_equal(x, y)


def test_one_transpose_is_found_among_all_orders():
    for perm in itertools.permutations(range(3)):
        layout = Layout((2, 3, 5))
        layout.transpose(perm)
        assert len(layout.steps()) == (0 if perm == (0, 1, 2) else 1)
