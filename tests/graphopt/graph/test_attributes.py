import pytest

from graphopt.graph.attributes import attribute, default_attribute
from graphopt.testing import parse_model


def node(text):
    return next(iter(parse_model(text, inputs={"x": (2, 3, 4)}).graph))


def test_a_given_value_stands():
    assert attribute(node("y = Transpose <perm = [1, 0, 2]> (x)"), "perm") == (1, 0, 2)
    assert attribute(node("y = Softmax <axis = 0> (x)"), "axis") == 0


def test_what_is_left_out_has_the_default_of_the_standard():
    assert attribute(node("y = LeakyRelu (x)"), "alpha") == pytest.approx(0.01)
    assert attribute(node("y = Conv (x, x)"), "auto_pad") == "NOTSET"
    assert attribute(node("y = Conv (x, x)"), "group", 7) == 1


def test_the_callers_default_is_for_what_the_standard_leaves_open():
    assert attribute(node("y = Conv (x, x)"), "pads") is None
    assert attribute(node("y = Conv (x, x)"), "pads", [0, 0]) == [0, 0]
    assert attribute(node("y = com.microsoft.FusedMatMul (x, x)"), "alpha", 1.0) == 1.0


@pytest.mark.parametrize(("opset", "axis"), [(11, 1), (12, 1), (13, -1), (17, -1)])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_a_default_is_that_of_the_nodes_opset(op, opset, axis):
    found = node(f"y = {op} (x)")
    found.graph.opset_imports[""] = opset
    assert attribute(found, "axis") == axis


def test_nodes_of_subgraphs_take_the_version_they_are_given():
    assert default_attribute("", "Softmax", "axis") == -1
    found = node("y = Softmax (x)")
    found.graph.opset_imports.clear()
    assert attribute(found, "axis") == -1
    assert attribute(found, "axis", opset=11) == 1


def test_an_unknown_operator_or_attribute_has_none():
    assert default_attribute("", "NoSuchOperator", "axis") is None
    assert default_attribute("", "Softmax", "no_such_attribute") is None
    assert default_attribute("ai.onnx", "Softmax", "axis", 11) == 1
