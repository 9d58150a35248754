import numpy as np
import pytest

from graphopt import Context
from graphopt.analyses.cost import cost
from graphopt.testing import parse_model


def found(text, inputs, **constants):
    arrays = {k: np.zeros(s, np.float32) for k, s in constants.items()}
    return Context(parse_model(text, inputs=inputs, constants=arrays)).get(cost)


CASES = {
    "convolution": ("y = Conv(x, w)", {"x": (2, 3, 8, 8)}, {"w": (4, 3, 3, 3)}, 2 * 4 * 36 * 27),
    "grouped": ("y = Conv<group=2>(x, w)", {"x": (1, 4, 5, 5)}, {"w": (6, 2, 1, 1)}, 6 * 25 * 2),
    "transposed": (
        "y = ConvTranspose(x, w)",
        {"x": (1, 3, 4, 4)},
        {"w": (3, 5, 2, 2)},
        3 * 16 * 5 * 4,
    ),
    "product": ("y = MatMul(x, w)", {"x": (2, 7, 3)}, {"w": (3, 5)}, 2 * 7 * 3 * 5),
    "gemm": ("y = Gemm<transB=1>(x, w)", {"x": (7, 3)}, {"w": (5, 3)}, 7 * 3 * 5),
    "turned gemm": ("y = Gemm<transA=1>(x, w)", {"x": (3, 7)}, {"w": (3, 5)}, 7 * 3 * 5),
    "lstm": (
        "y = LSTM<hidden_size=4>(x, w, r)",
        {"x": (5, 2, 3)},
        {"w": (1, 16, 3), "r": (1, 16, 4)},
        5 * 2 * 16 * (3 + 4),
    ),
    "einsum": (
        'y = Einsum<equation="bij,bjk->bik">(x, z)',
        {"x": (2, 3, 4), "z": (2, 4, 5)},
        {},
        2 * 3 * 4 * 5,
    ),
    "elementwise": ("h = Relu(x)  y = Add(h, x)", {"x": (2, 3)}, {}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_macs_are_the_products_summed(case):
    text, inputs, constants, macs = CASES[case]
    result = found(text, inputs, **constants)
    assert result.macs == macs
    assert result.unknown == ()
    assert result.params == sum(int(np.prod(s)) for s in constants.values())
    assert result.param_bytes == 4 * result.params


def test_the_peak_is_the_most_alive_at_once():
    # x (6) and a (6) are alive while b (6) is made; x goes after a, a after c
    result = found("a = Relu(x)  b = Neg(a)  y = Add(a, b)", {"x": (2, 3)})
    assert result.peak_activation_bytes == 4 * 18


def test_a_shared_constant_counts_once_in_the_model_and_at_each_reader():
    result = found("a = MatMul(x, w)  y = MatMul(a, w)", {"x": (2, 3)}, w=(3, 3))
    assert result.params == 9
    assert [n.params for n in result.nodes.values()] == [9, 9]
