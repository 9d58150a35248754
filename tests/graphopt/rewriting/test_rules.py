from dataclasses import dataclass

import numpy as np
import pytest

from graphopt import Rewrite, Rule
from graphopt.graph.building import Builder
from graphopt.testing import check, parse_model


class ReluRelu(Rule):
    """Relu(Relu(x)) -> Relu(x)"""

    def pattern(self, op, x):
        return op.Relu(op.Relu(x))

    def rewrite(self, op, x):
        return op.Relu(x)


@dataclass(frozen=True)
class CollapseRelu(Rewrite):
    """Drop repeated Relu."""

    rules = (ReluRelu,)


class AddZero(Rule):
    """x + 0 -> x"""

    def pattern(self, op, x):
        return op.Add(x, 0.0)

    def check(self, x, match):
        if x.shape != match.root.outputs[0].shape:
            return "the sum broadcasts x to a larger shape"
        return None

    def rewrite(self, op, x):
        return x


@dataclass(frozen=True)
class DropZero(Rewrite):
    rules = (AddZero,)


def test_collapses_relu():
    check(CollapseRelu(), before="a = Relu(x)  y = Relu(a)", after="y = Relu(x)")


def test_collapses_a_chain_of_relu():
    check(CollapseRelu(), before="a = Relu(x)  b = Relu(a)  y = Relu(b)", after="y = Relu(x)")


def test_keeps_a_value_used_elsewhere():
    check(CollapseRelu(), before="a = Relu(x)  y = Relu(a)  z = Neg(a)", unchanged=True)


@pytest.mark.parametrize("before", ["y = Add(x, zero)", "y = Add(zero, x)"])
def test_matches_either_order(before):
    zero = {"zero": np.zeros((1, 3), np.float32)}
    check(DropZero(), before=f"{before}  z = Neg(y)", after="z = Neg(x)", constants=zero)


def test_an_output_that_is_an_input_keeps_its_name_by_identity():
    zero = {"zero": np.zeros((1, 3), np.float32)}
    model = check(DropZero(), before="y = Add(x, zero)", after="y = Identity(x)", constants=zero)
    assert model.graph.outputs[0].name == "y"


def test_refuses_with_a_reason():
    zero = {"zero": np.zeros((4, 1, 3), np.float32)}
    check(DropZero(), before="y = Add(x, zero)", because="broadcasts", constants=zero)


def test_large_constants_are_mapped_not_held():
    """Weights that passes compute would add up to the size of the model in memory."""
    array = np.arange(1 << 21, dtype=np.float32)
    model = parse_model("y = Relu(x)")
    value = Builder(model, model.graph.node(0)).constant(array, "w")
    assert isinstance(value.const_value.numpy().base, np.memmap)
    assert np.array_equal(value.const_value.numpy(), array)
