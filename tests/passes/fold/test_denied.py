"""A fold that is denied leaves others to be stored: the limit holds for them too."""

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.fold import Fold

from graphopt.context import Context
from graphopt.testing import parse_model


def size(model):
    return sum(v.const_value.nbytes for v in model.graph.initializers.values())


@pytest.mark.parametrize("denied", [True, False])
def test_rows_taken_many_times_over_are_not_stored_where_their_sum_may_not_be(denied):
    model = parse_model(
        "a = Gather<axis = 0>(w, ids) b = ReduceSum<keepdims = 0>(a, ax) y = Add(x, b)"
    )
    rng = np.random.default_rng(0)
    held = {
        "w": rng.normal(size=(100, 64)).astype(np.float32),
        "ids": rng.integers(0, 100, 5000),
        "ax": np.array([0]),
    }
    for value in list(model.graph.inputs):
        if value.name in held:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(held[value.name], name=value.name)
            model.graph.register_initializer(value)
    before = size(model)
    (total,) = [n.name or "b" for n in model.graph if n.op_type == "ReduceSum"]
    Fold().run(model, Context(model, allow=lambda edit: not (denied and edit.node == total)))
    assert size(model) <= before
    assert [n.op_type for n in model.graph] == (
        ["Gather", "ReduceSum", "Add"] if denied else ["Add"]
    )
