import numpy as np
import pytest

from graphopt.execution import observe as module
from graphopt.execution.observe import observe
from graphopt.testing import parse_model

TEXT = "a = Relu(x)  b = Neg(a)  c = Exp(b)  y = Add(c, k)"
K = np.float32([3])


def model():
    return parse_model(TEXT, inputs={"x": (1, 4)}, constants={"k": K})


@pytest.fixture
def run_nodes(monkeypatch):
    """The operators of every model that was run."""
    seen = []
    real = module.run_each
    monkeypatch.setattr(
        module, "run_each", lambda m, f: seen.append([n.op_type for n in m.graph]) or real(m, f)
    )
    return seen


def test_only_what_the_values_need_is_run(run_nodes):
    x = np.float32([[-1, 2, -3, 4]])
    source = model()
    (found,) = observe(source, ["b", "x", "k"], [{"x": x}])
    assert run_nodes == [["Relu", "Neg"]]
    np.testing.assert_array_equal(found["b"], -np.maximum(x, 0))
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["k"], K)
    assert [n.op_type for n in source.graph] == ["Relu", "Neg", "Exp", "Add"]
    assert [v.name for v in source.graph.outputs] == ["y"]


def test_an_output_of_the_model_can_be_observed_too(run_nodes):
    (found,) = observe(model(), ["a", "y"], [{"x": np.zeros((1, 4), np.float32)}])
    assert len(run_nodes[0]) == 4
    np.testing.assert_array_equal(found["y"], np.full((1, 4), 4, np.float32))


def test_an_unknown_value_is_said():
    with pytest.raises(KeyError):
        list(observe(model(), ["nothing"], []))
