"""Gauge: what it makes of the turns of two models, each lowered and opened once."""

import numpy as np
import pytest

from graphopt.backend import find_target
from graphopt.measuring import gauge as module
from graphopt.measuring.gauge import Gauge
from graphopt.pipeline.state import State
from graphopt.testing import parse_model


def test_quicker_runs_are_a_tenth_from_the_quickest(monkeypatch):
    opened = []

    class Worker:
        def serve(self, target, feeds):
            opened.append(np.load(feeds)["x"].shape)
            return self

    def alternate(pair, seconds):
        assert len(pair) == 2
        assert seconds == 0.5
        return None, [list(np.arange(1.0, 12.0)), [4.0] * 10 + [400.0]]  # one run was disturbed

    monkeypatch.setattr(module, "alternate", alternate)
    monkeypatch.setattr(module._Lowered, "serve", Worker.serve)
    a, b = (
        State(parse_model(text, inputs={"x": (2, 3)}), {"x": (2, 3)})
        for text in ("y = Relu(x)", "y = Neg(x)")
    )
    with Gauge(find_target("cpu"), 0.5) as gauge:
        found = gauge.quicker(a, b, {"x": np.zeros((2, 3), np.float32)})
    assert found == pytest.approx((2.0, 4.0))
    assert opened == [(2, 3), (2, 3)]
