"""Value numbering: one name for one size in all graphs of a table."""

import numpy as np
import pytest

from graphopt.analyses.shapes.analysis import on_demand
from graphopt.proving.numbering import Walk, numbered
from graphopt.proving.running import Run, Shared, Unrunnable
from graphopt.testing import parse_model


def test_sizes_that_nothing_tells_are_one_size_only_of_one_value():
    inputs = {"a": (9,), "b": (9,)}
    one = numbered(parse_model("n = NonZero(a)  y = Cast<to=1>(n)", inputs=inputs))
    for name, same in (("a", True), ("b", False)):
        text = f"n = NonZero({name})  m = Abs(n)  y = Cast<to=1>(n)"
        model = parse_model(text, inputs=inputs)
        walk = Walk(one.terms, model, on_demand(model))
        for node in model.graph:
            walk.visit(node)
        dims = [walk.names[(), v].dims for v in ("n", "m")]
        assert dims[0] == dims[1]
        assert (dims[0] == one.names[(), "n"].dims) is same


def test_a_broadcast_of_drawn_sizes_is_not_written_out():
    with pytest.raises(Unrunnable, match="too large"):
        Run(Shared(), {}).wide(np.broadcast_to(np.float32(1), (1 << 20, 1 << 20)))
