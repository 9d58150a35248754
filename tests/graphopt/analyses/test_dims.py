"""Which dimensions a graph has, and what a cut leaves."""

import numpy as np
import pytest

from graphopt import Context, cut
from graphopt.analyses.dims import dimensions
from graphopt.errors import UsageError
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
    from graphopt.kept import kept_indices

    assert kept_indices(model)["w1"][0].tolist() == [2, 5]


@pytest.mark.parametrize("units", [[], [6], [-1]])
def test_cut_refuses_wrong_units(units):
    with pytest.raises(UsageError, match="units 0 to 5"):
        cut(chain(), {"w1": units})
