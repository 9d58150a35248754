"""What hands on its input has the term of its input, whatever the shape is."""

import numpy as np
import pytest

from graphopt.proving.numbering import numbered
from graphopt.testing import parse_model

NUMBERS = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "zeros": np.zeros(1, np.float32),
    "start": np.array([0]),
    "late": np.array([1]),
    "end": np.array([2**63 - 1]),
    "soon": np.array([100]),
    "k": np.array([1]),
    "j": np.array([0]),
    "step": np.array([2]),
}


def is_input(text):
    """Whether `w` has the term of `x`, of which nothing but the type is known."""
    used = {name: array for name, array in NUMBERS.items() if name in text}
    model = parse_model(f"{text}  y = Relu(w)  z = Relu(x)", inputs={"x": (2, 3)}, constants=used)
    for value in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs)):
        value.shape = None
    y, z = numbered(model).outputs
    return y is z


@pytest.mark.parametrize(
    "text",
    [
        "w = Identity(x)",
        "w = Add(x, zero)",
        "w = Add(zero, x)",
        "w = Sub(x, zero)",
        "w = Mul(one, x)",
        "w = Div(x, one)",
        "w = Slice(x, start, end)",
        "w = Slice(x, start, end, k)",
        "n = Neg(x)  w = Neg(n)",
        "u = Unsqueeze(x, k)  w = Squeeze(u, k)",
        "u = Squeeze(x, k)  w = Unsqueeze(u, k)",
    ],
)
def test_it_is_its_input(text):
    assert is_input(text)


@pytest.mark.parametrize(
    "text",
    [
        "w = Add(x, zeros)",  # of a scalar it makes a vector
        "w = Add(x, one)",
        "w = Sub(zero, x)",
        "w = Div(one, x)",
        "w = Mul(x, zero)",
        "w = Slice(x, late, end)",
        "w = Slice(x, start, soon)",
        "w = Slice(x, start, end, k, step)",
        "w = Neg(x)",
        "n = Abs(x)  w = Neg(n)",
        "u = Unsqueeze(x, k)  w = Squeeze(u, j)",
        "u = Unsqueeze(x, k)  w = Unsqueeze(u, k)",
        "u = Unsqueeze(x, k)  w = Squeeze(u)",
    ],
)
def test_it_is_something_else(text):
    assert not is_input(text)
