"""Which dimensions a graph has, and what a cut leaves."""

import json

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import Context, cut
from graphopt.analyses.dims import dimensions, operators
from graphopt.errors import UsageError
from graphopt.graph.kept import kept_indices
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)


def w(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


CHAIN = "h = Conv(x, w1, b1)  r = Relu(h)  y = Conv(r, w2)"


def chain():
    constants = {"w1": w(6, 3, 1, 1), "b1": w(6), "w2": w(2, 6, 1, 1)}
    return parse_model(CHAIN, inputs={"x": (1, 3, 4, 4)}, constants=constants)


def test_a_chain_has_one_dimension_and_says_why_the_rest_is_frozen():
    dims = Context(chain()).get(dimensions)
    (d,) = dims.prunable.values()
    assert (d.name, d.size, d.kind, d.scope) == ("w1", 6, "channels", "inner")
    weights = {(m.input, m.axis): m.role for m in d.members if m.constant}
    assert weights == {("w1", 0): "writes", ("b1", 0): "writes", ("w2", 1): "reads"}
    reasons = {(f.tensor, f.axis): f.reason for f in dims.frozen}
    assert reasons["w1", 1] == "model input 'x'"
    assert reasons["w2", 0] == "model output 'y'"


def test_cut_slices_and_remembers():
    model = chain()
    assert cut(model, {"w1": [0, 2, 5]}) == 1
    assert cut(model, {"w1": [1, 2]}) == 1
    assert cut(model, {"w1": [0, 1]}) == 0
    initializers = model.graph.initializers
    assert tuple(initializers["w2"].const_value.shape) == (2, 2, 1, 1)
    assert kept_indices(model)["w1"][0].tolist() == [2, 5]


@pytest.mark.parametrize("units", [[], [6], [-1]])
def test_cut_refuses_wrong_units(units):
    with pytest.raises(UsageError, match="units 0 to 5"):
        cut(chain(), {"w1": units})


def test_json_has_every_member_and_exact_positions():
    text = "a = Conv(x, w1)  r = Reshape(a, s)  y = MatMul(r, w2)"
    constants = {"w1": w(6, 3, 1, 1), "s": np.array([1, 96]), "w2": w(96, 2)}
    model = parse_model(text, inputs={"x": (1, 3, 4, 4)}, constants=constants)
    data = json.loads(json.dumps(Context(model).get(dimensions).to_json()))
    (d,) = data["dims"]
    assert (d["name"], d["size"], d["kind"], d["units"]) == ("w1", 6, "channels", 6)
    members = {(m["node"], m["input"], m["axis"]): m for m in d["members"]}
    assert members["MatMul_2", "w2", 0]["positions"] == [[0, 96, 0, 16]]
    assert members["MatMul_2", "w2", 0]["role"] == "reads"
    assert members["Conv_0", "w1", 0]["positions"] == [[0, 6, 0, 1]]
    assert {"tensor": "w2", "axis": 1, "reason": "model output 'y'"} in data["frozen"]


def test_names_stay_when_the_model_is_copied():
    model = chain()
    assert list(Context(model).get(dimensions).prunable) == list(
        Context(model.clone()).get(dimensions).prunable
    )


def test_an_operator_of_ones_own():
    """y = x / sum(|x|, -1) * w, in a domain of its own: three lines of meaning."""

    def unit_norm(op):
        op.elementwise()
        op.reads(op.x(0), -1)

    text = "a = MatMul(x, w0)  b = my.domain.UnitNorm(a, g)  y = MatMul(b, w1)"
    constants = {"w0": w(3, 6), "g": w(6), "w1": w(6, 2)}
    model = parse_model(text, inputs={"x": (4, 3)}, constants=constants)
    model.graph.node(1).outputs[0].shape = ir.Shape([4, 6])
    model.graph.node(2).outputs[0].shape = ir.Shape([4, 2])
    assert not Context(model).get(dimensions).prunable
    operators["my.domain:UnitNorm"] = unit_norm
    try:
        (d,) = Context(model).get(dimensions).prunable.values()
        assert {(m.input, m.role) for m in d.members if m.constant} == {
            ("w0", "writes"), ("g", "carries"), ("w1", "reads")
        }  # fmt: skip
    finally:
        del operators["my.domain:UnitNorm"]


def test_a_constant_whose_uses_disagree_is_duplicated():
    text = "a = MatMul(x, w0)  b = Add(a, z)  c = MatMul(b, w1)  d = Add(c, z)  y = MatMul(d, w2)"
    constants = {"w0": w(3, 6), "w1": w(6, 6), "w2": w(6, 2), "z": w(6)}
    model = parse_model(text, inputs={"x": (4, 3)}, constants=constants)
    assert cut(model, {"w0": [0, 1], "w1": [2, 3, 4]}) == 2
    held = {v.name: tuple(v.shape) for v in model.graph.initializers.values()}
    assert held == {"w0": (3, 2), "w1": (2, 3), "w2": (3, 2), "z_1": (2,), "z_2": (3,)}
    found = kept_indices(model)
    assert found["z_1"][0].tolist() == [0, 1]
    assert found["z_2"][0].tolist() == [2, 3, 4]


def test_nothing_old_is_left_after_a_cut():
    """Constants made by nodes, shapes of weights, sizes that no longer hold: all are replaced."""
    text = """w0 = Constant <value = float[2,3] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> ()
        a = MatMul(x, w0)  s = Shape(w0)  n = Gather(s, one)  f = Cast <to=1> (n)
        b = Div(a, f)  y = MatMul(b, w1)"""
    constants = {"one": np.array(1), "w1": w(3, 2)}
    model = parse_model(" ".join(text.split("\n")), inputs={"x": (4, 2)}, constants=constants)
    (name,) = Context(model).get(dimensions).prunable
    cut(model, {name: [0, 2]})
    assert not any(n.op_type in ("Constant", "Shape") for n in model.graph)
    assert {tuple(v.shape) for v in model.graph.initializers.values()} >= {(2, 2)}
    assert (2, 3) not in {tuple(v.shape) for v in model.graph.initializers.values()}
