"""Views and transposes that lead back to what they started from."""

import numpy as np
import pytest
from graphopt.passes.clean.clean import Clean

from graphopt.testing import check

X = {"x": (2, 3, 4)}
K = {"k": np.array([1]), "j": np.array([0]), "s": np.array([6, 4]), "b": np.array([2, 3, 4])}


@pytest.mark.parametrize(
    ("views", "shape"),
    [
        ("a = Unsqueeze(x, k)  v = Squeeze(a, k)", (2, 3, 4)),
        ("a = Unsqueeze(x, k)  v = Squeeze(a, k)", ("N", "M", 4)),
        ("a = Squeeze(x, k)  v = Unsqueeze(a, k)", (2, 1, 4)),
        ("a = Reshape(x, s)  v = Reshape(a, b)", (2, 3, 4)),
        ("a = Reshape(x, s)  c = Unsqueeze(a, j)  v = Reshape(c, b)", (2, 3, 4)),
        ("a = Transpose <perm = [1, 2, 0]> (x)  v = Transpose <perm = [2, 0, 1]> (a)", (2, 3, 4)),
        ("a = Transpose(x)  v = Transpose(a)", (2, 3, 4)),
    ],
)
def test_there_and_back_is_nothing(views, shape):
    check(
        Clean(),
        before=f"{views}  y = Relu(v)",
        after="y = Relu(x)",
        constants=K,
        inputs={"x": shape},
    )


@pytest.mark.parametrize(
    "views",
    [
        "a = Unsqueeze(x, k)  v = Squeeze(a, k)  u = Neg(a)",
        "a = Transpose <perm = [1, 0, 2]> (x)  v = Transpose <perm = [1, 0, 2]> (a)  u = Neg(a)",
    ],
)
def test_what_others_read_stays(views):
    model = check(Clean(), before=f"{views}  y = Relu(v)", constants=K, inputs=X)
    assert sorted(n.op_type for n in model.graph)[0] == "Neg"
    assert len(model.graph) == 3


@pytest.mark.parametrize(
    "views",
    [
        "a = Transpose <perm = [1, 2, 0]> (x)  v = Transpose <perm = [1, 2, 0]> (a)",
        "a = Transpose <perm = [0, 2, 1]> (x)  v = Reshape(a, b)",
        "a = Transpose(x)  v = Transpose <perm = [0, 1, 2]> (a)",
    ],
)
def test_another_place_is_no_way_back(views):
    model = check(Clean(), before=f"{views}  y = Relu(v)", constants=K, inputs=X)
    assert len(model.graph) >= 2
