import numpy as np
import pytest
from graphopt.passes.int8 import Int8

from graphopt.context import Context
from graphopt.errors import SamplesError
from graphopt.samples import Samples
from graphopt.testing import parse_model
from graphopt.verification.layer_errors import layer_errors

BEFORE = "a = MatMul(x, u)  b = Add(a, c)  d = Tanh(b)  y = MatMul(d, v)"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CONSTANTS = {"u": normal(16, 16), "c": normal(16, seed=1), "v": normal(16, 16, seed=2)}
SAMPLES = Samples([{"x": normal(4, 16, seed=s)} for s in range(3)])


def model(**constants):
    return parse_model(BEFORE, inputs={"x": (4, 16)}, constants={**CONSTANTS, **constants})


def test_a_model_is_equal_to_itself():
    found = layer_errors(model(), model(), SAMPLES)
    assert [e.output for e in found] == ["a", "b", "d", "y"]
    assert all(e.rel_l2 == e.max_abs == e.added == 0 for e in found)


def test_the_layer_that_differs_is_the_one_that_adds():
    c = CONSTANTS["c"].copy()
    c[3] += 20
    found = layer_errors(model(), model(c=c), SAMPLES)
    assert max(found, key=lambda e: e.added).node == "Add_1"
    assert {e.output for e in found if e.rel_l2 == 0} == {"a"}
    assert found == sorted(found, key=lambda e: -e.rel_l2)
    changed = next(e for e in found if e.output == "b")
    assert changed.max_abs == pytest.approx(20, rel=1e-6)


def test_values_are_paired_by_provenance():
    other = model()
    Int8().run(other, Context(other, samples=SAMPLES, pass_name="int8"))
    for node in other.graph:
        for k, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"renamed_{node.name}_{k}"
    found = {e.output: e for e in layer_errors(model(), other, SAMPLES)}
    assert found.keys() == {"a", "b", "d", "y"}
    assert all(0 < e.rel_l2 < 0.05 for e in found.values())


def test_no_samples():
    with pytest.raises(SamplesError, match="no samples"):
        layer_errors(model(), model(), Samples([]))
