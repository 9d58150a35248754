import numpy as np
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

C = {
    "zero": np.array([0]),
    "two": np.array([2]),
    "five": np.array([5]),
    "end": np.array([2**63 - 1]),
    "axis": np.array([1]),
    "last": np.array([-1]),
}
X = {"x": (2, 6)}


def test_slices_that_make_the_whole():
    check(
        Fuse(),
        before="""r = Relu(x)  c = Slice(r, five, end, last)  d = Neg(c)
            a = Slice(r, zero, two, axis)  b = Slice(r, two, five, axis)
            y = Concat <axis=1> (d, b, a)""",
        after="""r = Relu(x)  a, b, c = Split <axis=1> (r, s)  d = Neg(c)
            y = Concat <axis=1> (d, b, a)""",
        inputs=X,
        constants=C,
    )


def test_slices_that_leave_something_out_stay():
    before = (
        "a = Slice(x, zero, two, axis)  b = Slice(x, five, end, axis)  y = Concat<axis=1>(a, b)"
    )
    check(Fuse(), before, unchanged=True, inputs=X, constants=C)


def test_slices_that_overlap_stay():
    before = """a = Slice(x, zero, five, axis)  b = Slice(x, two, end, axis)
        y = Concat <axis=1> (a, b)"""
    check(Fuse(), before, unchanged=True, inputs=X, constants=C)


def test_slices_by_steps_stay():
    before = """a = Slice(x, zero, end, axis, two)  b = Slice(x, two, end, axis)
        y = Concat <axis=1> (a, b)"""
    check(Fuse(), before, unchanged=True, inputs=X, constants=C)


def test_split_with_sizes_needs_opset_13():
    check(
        Fuse(),
        "a = Slice(x, zero, two, axis)  b = Slice(x, two, end, axis)  p = Relu(a)  q = Neg(b)",
        inputs=X,
        constants=C,
        opset=12,
        unchanged=True,
    )
