import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

IN = {"x": (2, 3, 4, 5), "z": (2, 3, 4, 5)}


def ints(*values):
    return np.array(values, np.int64)


def test_concat_of_concat():
    check(
        Fuse(),
        before="""a = Concat <axis=1> (x, z)
            b = Concat <axis=-3> (z, x)
            y = Concat <axis=1> (a, x, b)""",
        after="y = Concat <axis=1> (x, z, x, z, x)",
        inputs=IN,
    )


@pytest.mark.parametrize(
    "before",
    [
        "a = Concat <axis=1> (x, z)  y = Concat <axis=2> (a, a)",
        "a = Concat <axis=1> (x, z)  y = Concat <axis=1> (a, x)  w = Relu(a)",
    ],
)
def test_concat_stays(before):
    check(Fuse(), before, unchanged=True, inputs=IN)


@pytest.mark.parametrize(
    ("before", "after", "constants"),
    [
        (
            "a = ReduceMean(x, r)  y = ReduceMean(a, s)",
            "y = ReduceMean(x, k)",
            {"r": ints(3), "s": ints(1)},
        ),
        (
            "a = ReduceMax <keepdims=0> (x, r)  y = ReduceMax <keepdims=0> (a, s)",
            "y = ReduceMax <keepdims=0> (x, k)",
            {"r": ints(1), "s": ints(-1)},
        ),
        ("a = ReduceSum(x, r)  y = ReduceSum(a)", "y = ReduceSum(x, k)", {"r": ints(2)}),
        (
            "a = ReduceL2(x, r)  y = ReduceL2(a, s)",
            "y = ReduceL2(x, k)",
            {"r": ints(2), "s": ints(3)},
        ),
    ],
)
def test_reductions(before, after, constants):
    check(Fuse(), before, after, inputs=IN, constants=constants)


def test_reductions_before_axes_were_an_input():
    check(
        Fuse(),
        "a = ReduceMean <axes=[3]> (x)  y = ReduceMean <axes=[1]> (a)",
        "y = ReduceMean <axes=[1, 3], keepdims=1> (x)",
        inputs=IN,
        opset=13,
    )


@pytest.mark.parametrize(
    "before",
    [
        "a = ReduceMean <keepdims=0> (x, r)  y = ReduceMean(a, r)",
        "a = ReduceMean(x, r)  y = ReduceMax(a, r)",
        "a = ReduceSumSquare(x, r)  y = ReduceSumSquare(a, r)",
        "a = ReduceMean(x, r)  y = ReduceMean(a, s)  w = Relu(a)",
    ],
)
def test_reductions_stay(before):
    check(Fuse(), before, unchanged=True, inputs=IN, constants={"r": ints(2), "s": ints(1)})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((1,), (4,), (2,), (1,)), ((0,), (2,), (1,), (1,))),  # other axes
        (((1,), (5,), (3,), (1,)), ((1,), (-1,), (3,), (1,))),  # the same
        (((0,), (5,), (3,), (2,)), ((1,), (9,), (-1,), (2,))),  # steps
        (((1,), (2,), (3,), (1,)), ((0,), (9,), (3,), (3,))),
        (((0, 1), (1, 3), (0, 2), (1, 1)), ((0, 2), (2, 4), (1, 3), (1, 1))),
    ],
)
def test_slices(first, second):
    names = ["b", "e", "a", "t"]
    constants = {
        f"{n}{k}": ints(*v)
        for k, cut in enumerate((first, second))
        for n, v in zip(names, cut, strict=True)
    }
    model = check(
        Fuse(),
        "m = Slice(x, b0, e0, a0, t0)  n = Slice(m, b1, e1, a1, t1)  y = Relu(n)",
        "n = Slice(x, p, q, r, s)  y = Relu(n)",
        inputs=IN,
        constants=constants,
    )
    assert len(model.graph) == 2


def test_backward_slices_stay():
    constants = {"b": ints(4), "e": ints(-9), "a": ints(3), "t": ints(-1)}
    check(
        Fuse(),
        "m = Slice(x, b, e, a, t)  n = Slice(m, b, e, a, t)  y = Relu(n)",
        unchanged=True,
        inputs=IN,
        constants=constants,
    )
