"""A step that is slower by timings of an earlier run is tried again with its own."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import Pass, optimize
from graphopt.backend import find_target
from graphopt.cache import Cache
from graphopt.testing import parse_model

WHAT = "an Identity"


def model():
    return parse_model("a = Relu(x)  y = Neg(a)", inputs={"x": (4,)})


@dataclasses.dataclass(frozen=True)
class Trusts(Pass):
    """Puts an Identity behind each Relu if that is the faster."""

    def run(self, given, ctx):
        pair = (given, given, {"x": np.zeros(4, np.float32)})
        if (ctx.faster(WHAT, lambda: pair) or 1) >= 1:
            return 0
        for node in [n for n in given.graph if n.op_type == "Relu"]:
            if ctx.edit(self, node):
                made = ir.node("Identity", [node.outputs[0]])
                node.outputs[0].replace_all_uses_with(made.outputs[0])
                made.replace_input_with(0, node.outputs[0])
                given.graph.insert_after(node, made)
        return len(ctx.edits)


@pytest.fixture
def slow(monkeypatch):
    """Every changed model is slower."""
    said = "slower on the target"
    monkeypatch.setattr("graphopt.pipeline.run.objection", lambda timing: said)
    return said


def test_and_what_was_remembered_is_corrected(slow, tmp_path):
    cache, target = Cache(tmp_path), find_target("cpu")
    cache.keep_timing(target, WHAT, 0.5)
    (step,) = optimize(model(), [Trusts()], cache=tmp_path, measure_seconds=0.1).report.steps
    assert step.status == "unchanged"
    assert any("timed anew" in n for n in step.notes)
    assert cache.timing(target, WHAT) != 0.5


def test_but_not_with_its_own_timings(slow, tmp_path, monkeypatch):
    monkeypatch.setattr("graphopt.context.Context._ratio", lambda *_: 0.5)
    (step,) = optimize(model(), [Trusts()], cache=tmp_path, measure_seconds=0.1).report.steps
    assert (step.status, step.reason) == ("undone", slow)
    assert not any("timed anew" in n for n in step.notes)


def test_only_once(slow, tmp_path, monkeypatch):
    Cache(tmp_path).keep_timing(find_target("cpu"), WHAT, 0.4)
    monkeypatch.setattr("graphopt.context.Context._ratio", lambda *_: 0.5)
    (step,) = optimize(model(), [Trusts()], cache=tmp_path, measure_seconds=0.1).report.steps
    assert (step.status, step.reason) == ("undone", slow)
