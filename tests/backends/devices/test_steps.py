"""Recurrent layers unrolled: the same outputs from products and gates alone."""

import numpy as np
import pytest
from graphopt.backends.devices.steps import in_steps

from graphopt.execution.runtime import run
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
STEPS, BATCH, INPUTS, HIDDEN = 4, 2, 3, 5


def drawn(*shape):
    return RNG.uniform(-0.8, 0.8, shape).astype(np.float32)


def recurrent(kind, rest="", *, directions=1, more=""):
    """A model of one layer, whose states are outputs too."""
    gates = {"LSTM": 4, "GRU": 3}[kind]
    constants = {
        "w": drawn(directions, gates * HIDDEN, INPUTS),
        "r": drawn(directions, gates * HIDDEN, HIDDEN),
        "b": drawn(directions, 2 * gates * HIDDEN),
        "h0": drawn(directions, BATCH, HIDDEN),
        "c0": drawn(directions, BATCH, HIDDEN),
        "lengths": np.array([4, 2], np.int32),
        "p": drawn(directions, 3 * HIDDEN),
    }
    names = "y, h, c" if kind == "LSTM" else "y, h"
    text = f"{names} = {kind}<hidden_size={HIDDEN}{rest}>(x, w, r{more})"
    return parse_model(text, inputs={"x": (STEPS, BATCH, INPUTS)}, constants=constants)


@pytest.mark.parametrize(
    ("kind", "rest", "more"),
    [
        ("LSTM", "", ", b"),
        ("LSTM", "", ""),
        ("LSTM", "", ", b, , h0, c0"),
        ("LSTM", ', direction="reverse"', ", b"),
        ("LSTM", ', direction="bidirectional"', ", b, , h0, c0"),
        ("GRU", "", ", b"),
        ("GRU", ", linear_before_reset=1", ", b, , h0"),
        ("GRU", ', linear_before_reset=1, direction="bidirectional"', ", b"),
        ("GRU", ', direction="bidirectional"', ", b, , h0"),
    ],
)
def test_steps_compute_what_the_layer_computes(kind, rest, more):
    model = recurrent(kind, rest, directions=2 if "bidir" in rest else 1, more=more)
    made = in_steps(model)
    operators = {n.op_type for n in made.graph}
    assert kind not in operators
    plain = {"Add", "Concat", "MatMul", "Mul", "Reshape", "Sigmoid", "Slice", "Sub", "Tanh"}
    assert operators <= plain
    x = drawn(STEPS, BATCH, INPUTS)
    expected, got = run(model, {"x": x}), run(made, {"x": x})
    assert list(got) == list(expected)
    for name, value in expected.items():
        # sums in another order
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_the_input_is_multiplied_once_for_all_steps():
    made = in_steps(recurrent("LSTM", more=", b"))
    assert sum(n.op_type == "MatMul" for n in made.graph) == 1 + STEPS


@pytest.mark.parametrize(
    ("kind", "rest", "more"),
    [
        ("LSTM", ", clip=0.5", ", b"),
        ("LSTM", ", input_forget=1", ", b"),
        ("LSTM", ', activations=["Relu", "Tanh", "Tanh"]', ", b"),
        ("LSTM", "", ", b, lengths"),
        ("LSTM", "", ", b, , h0, c0, p"),
        ("GRU", ', activations=["HardSigmoid", "Tanh"]', ", b"),
    ],
)
def test_unusual_layers_stay(kind, rest, more):
    model = recurrent(kind, rest, more=more)
    assert [n.op_type for n in in_steps(model).graph] == [kind]
