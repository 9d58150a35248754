"""Lossy steps where the size of an output follows from values: boxes found, words said."""

import numpy as np
import pytest

from graphopt import Pass, optimize
from graphopt.graph.building import Builder
from graphopt.testing import parse_model


class Shift(Pass):
    """Moves some numbers over zero, by another bias."""

    name, lossy = "shift", True

    def __init__(self, by):
        self.by = by
        self.runs = 0

    def run(self, model, ctx):
        self.runs += 1
        for node in list(model.graph):
            if node.op_type == "Add" and ctx.edit(self, node):
                bias = Builder(model, node).constant(np.full(4, self.by, np.float32), "bias")
                node.replace_input_with(1, bias)
        return len(ctx.edits)


@pytest.mark.parametrize(("by", "kept"), [(-1e-4, True), (-1.0, False)])
def test_no_edit_is_looked_for_where_a_size_follows_from_values(by, kept):
    text = "a = Add(x, b)  r = Relu(a)  y = NonZero(r)"
    model = parse_model(text, inputs={"x": ("n", 4)}, constants={"b": np.zeros(4, np.float32)})
    x = np.abs(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)) + 0.01
    shift = Shift(by)
    result = optimize(model, [shift], samples=[{"x": x}], measure=False)
    (step,) = result.report.steps
    assert (step.status == "kept") is kept
    assert shift.runs == 1
    assert kept or "its size follows from values" in step.reason
