import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

W = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


@pytest.mark.parametrize("c", [(4,), (1, 4), (1,), (2, 4), (2, 1)])
@pytest.mark.parametrize("order", ["Add(a, c)", "Add(c, a)"])
def test_matmul_add(c, order):
    check(
        Fuse(),
        before=f"a = MatMul(x, w)  y = {order}",
        after="y = Gemm(x, w, c)",
        inputs={"c": c, "x": (2, 3)},
        constants={"w": W},
    )


def test_matmul_add_that_broadcasts_the_product_stays():
    check(
        Fuse(),
        before="a = MatMul(x, w)  y = Add(a, c)",
        because="may broadcast",
        inputs={"c": (2, 4), "x": (1, 3)},
        constants={"w": W},
    )


def test_matmul_add_of_batches_stays():
    check(
        Fuse(),
        before="a = MatMul(x, w)  y = Add(a, c)",
        unchanged=True,
        inputs={"x": (2, 2, 3)},
        constants={"w": W, "c": W[0]},
    )


def test_a_transposed_operand():
    check(
        Fuse(),
        before="r = Relu(x)  t = Transpose <perm=[1, 0]> (v)  y = Gemm <transA=1> (r, t)",
        after="r = Relu(x)  y = Gemm <transA=1, transB=1> (r, v)",
        inputs={"x": (3, 2), "v": (4, 3)},
    )


def test_a_transposed_operand_used_twice_stays():
    check(
        Fuse(),
        before="t = Transpose <perm=[1, 0]> (v)  y = Gemm(x, t)  z = Relu(t)",
        unchanged=True,
        inputs={"x": (2, 3), "v": (4, 3)},
    )
