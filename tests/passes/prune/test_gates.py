import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.prune.gates import influences

from graphopt.execution.runtime import run
from graphopt.testing import parse_model

STEPS, HIDDEN = 5, 3


def model(kind, gates):
    """Gates are sums of the input alone (R is 0), so that one step's shows in the later states."""
    constants = {
        "w": np.eye(gates * HIDDEN, dtype=np.float32)[None],
        "r": np.zeros((1, gates * HIDDEN, HIDDEN), np.float32),
        "b": np.concatenate([np.zeros(gates * HIDDEN), BIAS[: gates * HIDDEN]])[None],
    }
    constants["b"] = constants["b"].astype(np.float32)
    reset = ", linear_before_reset=1" if kind == "GRU" else ""
    text = f"y = {kind} <hidden_size={HIDDEN}{reset}> (x, w, r, b)"
    shape = (STEPS, 1, gates * HIDDEN)
    return parse_model(text, inputs={"x": shape}, constants=constants)


BIAS = np.random.default_rng(1).standard_normal(4 * HIDDEN)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_influence_is_the_squared_derivative_of_all_later_states(kind, gates):
    one = model(kind, gates)
    x = np.random.default_rng(0).standard_normal((STEPS, 1, gates * HIDDEN)).astype(np.float32)
    (y,) = run(one, {"x": x}).values()
    states = np.concatenate([np.zeros((1, 1, HIDDEN)), y[:-1, 0]])
    from_h = np.broadcast_to(BIAS[: gates * HIDDEN], x.shape)
    found = influences(next(iter(one.graph)), x, from_h, states)
    through_x = np.concatenate(found[:2], axis=-1)
    step = 1e-2
    for t in range(STEPS):
        for k in range(gates * HIDDEN):
            moved = []
            for sign in (1, -1):
                there = x.copy()
                there[t, 0, k] += sign * step
                moved.append(next(iter(run(one, {"x": there}).values())))
            expected = np.square((moved[0] - moved[1]) / (2 * step)).sum()
            assert abs(through_x[t, 0, k] - expected) < 1e-3 + 0.02 * expected


@pytest.mark.parametrize(
    ("attribute", "known"),
    [
        (ir.AttrFloat32("clip", 3.0), False),
        (ir.AttrInt64("input_forget", 1), False),
        (ir.AttrInt64("input_forget", 0), True),
        (ir.AttrStrings("activations", ["Sigmoid", "Tanh", "Tanh"]), True),
        (ir.AttrStrings("activations", ["HardSigmoid", "Tanh", "Tanh"]), False),
    ],
)
def test_other_gates_have_none(attribute, known):
    node = next(iter(model("LSTM", 4).graph))
    node.attributes.add(attribute)
    zeros = np.zeros((STEPS, 1, 4 * HIDDEN))
    found = influences(node, zeros, zeros, np.zeros((STEPS, 1, HIDDEN)))
    assert (found is not None) == known
