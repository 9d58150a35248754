from dataclasses import dataclass

import numpy as np
import pytest

from graphopt import Bind, Refused, Replacement, Rewrite, Rule, Walker
from graphopt.context import Context
from graphopt.errors import PassError, UsageError
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
            return Refused("the sum broadcasts x to a larger shape")
        return Bind()

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


class ScaleBySquare(Rule):
    """x * c -> x * c^2 for c of one element: what `check` binds is an argument of `rewrite`"""

    def pattern(self, op, x, c):
        return op.Mul(x, c)

    def check(self, c):
        number = c.const_value.numpy() if c.const_value is not None else None
        return Bind(square=number**2) if number is not None and number.size == 1 else None

    def rewrite(self, op, x, c, square):
        return op.Div(x, op.constant(1 / square, c.name))


def one(rule):
    return dataclass(frozen=True)(type("One", (Rewrite,), {"rules": (rule,), "__doc__": "One."}))()


def test_what_check_binds_goes_to_rewrite():
    model = parse_model("y = Mul(x, c)", constants={"c": np.float32([3])})
    assert one(ScaleBySquare).run(model, Context(model)) == 1
    assert model.graph.node(0).op_type == "Div"
    assert model.graph.node(0).inputs[1].const_value.numpy() == pytest.approx(1 / 9)


def test_none_is_no_match_and_says_nothing():
    model = parse_model("y = Mul(x, c)", constants={"c": np.float32([3, 4, 5])})
    ctx = Context(model)
    assert one(ScaleBySquare).run(model, ctx) == 0
    assert ctx.refusals == []


class Says(ReluRelu):
    """Returns what a check may not return."""

    def check(self):
        return "no"


def test_a_verdict_of_another_type_is_an_error():
    model = parse_model("a = Relu(x)  y = Relu(a)")
    with pytest.raises(PassError, match=r"Says.check returned 'no': return Bind\(...\) to go on"):
        one(Says).run(model, Context(model))


class NegChain(Walker):
    """Neg(Neg(...x)) -> x or Neg(x), however long the chain is"""

    roots = ("Neg",)

    def find(self, node, ctx):
        chain, x = [], node.inputs[0]
        while (maker := x.producer()) is not None and maker.op_type == "Neg":
            chain.append(maker)
            x = maker.inputs[0]
        if len(chain) > 3:
            return Refused("the chain is too long")
        if not chain:
            return None
        return Replacement(lambda op: x if len(chain) % 2 else op.again(node, [x]), tuple(chain))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = Neg(x)  b = Neg(a)  y = Relu(b)", "y = Relu(x)"),
        ("a = Neg(x)  b = Neg(a)  c = Neg(b)  y = Relu(c)", "c = Neg(x)  y = Relu(c)"),
    ],
)
def test_a_walker_finds_its_replacement(before, after):
    check(one(NegChain), before=before, after=after)


def test_a_walker_keeps_what_is_read_elsewhere():
    check(one(NegChain), before="a = Neg(x)  b = Neg(a)  y = Relu(b)  z = Abs(a)", unchanged=True)


def test_a_walker_refuses_with_a_reason():
    class Short(NegChain):
        def find(self, node, ctx):
            return super().find(node, ctx) and Refused("the chain is too long")

    check(one(Short), before="a = Neg(x)  y = Neg(a)", because="too long")


def test_a_walker_starts_at_standard_operators_alone():
    model = parse_model("a = Neg(x)  y = Relu(a)")
    model.graph.node(0).domain = "other"

    class Any(Walker):
        roots = ("Neg",)

        def find(self, node, ctx):
            raise AssertionError("a Neg of another domain is another operator")

    assert one(Any).run(model, Context(model)) == 0


class Typo(Rule):
    """Rleu(x) -> x"""

    def pattern(self, op, x):
        return op.Rleu(x)


class TypoAtRoot(Walker):
    """Starts nowhere."""

    roots = ("Rleu",)


@pytest.mark.parametrize("rule", [Typo, TypoAtRoot])
def test_an_operator_that_does_not_exist_is_an_error(rule):
    model = parse_model("y = Relu(x)")
    with pytest.raises(UsageError, match=r"no ONNX operator 'Rleu' \(did you mean 'Relu'\?\)"):
        one(rule).run(model, Context(model))


def test_operators_of_other_domains_are_anybodys():
    class Custom(Rule):
        def pattern(self, op, x):
            return op.Rleu(x, domain_="mine")

    model = parse_model("y = Relu(x)")
    assert one(Custom).run(model, Context(model)) == 0


def test_large_constants_are_mapped_not_held():
    """Weights that passes compute would add up to the size of the model in memory."""
    array = np.arange(1 << 21, dtype=np.float32)
    model = parse_model("y = Relu(x)")
    value = Builder(model, model.graph.node(0)).constant(array, "w")
    assert isinstance(value.const_value.numpy().base, np.memmap)
    assert np.array_equal(value.const_value.numpy(), array)
