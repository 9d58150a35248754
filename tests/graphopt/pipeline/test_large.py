"""Models whose weights no session holds: proved steps are not run, others are, part by part."""

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.execution import runtime
from graphopt.pipeline import probing
from graphopt.reporting.records import Evidence
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
W = (RNG.standard_normal((128, 128)) / 12).astype(np.float16)
X = {"x": RNG.standard_normal((4, 128)).astype(np.float16)}
TEXT = "a = MatMul(x, w) \n i = Identity(a) \n b = MatMul(i, v) \n y = Relu(b)"


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(runtime, "IN_PARTS", 1000)
    return parse_model(TEXT, inputs=X, constants={"w": W, "v": W.T.copy()})


def test_what_is_proved_is_not_run(large, monkeypatch):
    runs = []
    parts = runtime.parts_of
    monkeypatch.setattr(runtime, "parts_of", lambda *a: runs.append(1) or parts(*a))
    result = graphopt.optimize(large, "clean", samples=[X], measure=False)
    (step,) = result.report.steps
    assert step.status == "kept"
    assert step.evidence == Evidence(proved=1)
    assert "a run reads all weights" in " ".join(step.notes)
    assert len(runs) == 1  # the source's


def test_what_is_not_proved_is_run(large):
    class Careless(graphopt.Pass):
        def run(self, model, ctx):
            found = [n for n in model.graph if n.op_type == "Relu" and ctx.edit("careless", n)]
            for node in found:
                node.op_type = "Sigmoid"
            return len(found)

    result = graphopt.optimize(large, [Careless()], samples=[X], measure=False)
    assert result.report.steps[0].status == "undone"
    lossy = graphopt.optimize(large, "weight_only(bits=8)", samples=[X], measure=False)
    error = next(iter(lossy.report.steps[0].error_vs_source.values())).rel_l2
    assert 1e-4 < error < 0.02


def test_a_run_of_many_rows_is_compared_on_its_first(monkeypatch):
    monkeypatch.setattr(runtime, "IN_PARTS", 1000)
    monkeypatch.setattr(probing, "PROBE_MACS", 2 * 2 * W.size)  # two rows through both products
    weights = {"w": W, "v": W.T.copy()}
    model = parse_model(TEXT, inputs=X, constants=weights)
    model.graph.inputs[0].shape = ir.Shape(["batch", 128])
    rows = {"x": RNG.standard_normal((40, 128)).astype(np.float16)}
    result = graphopt.optimize(model, "weight_only(bits=8)", samples=rows, measure=False)
    assert "compared on the first rows of each run (2)" in " ".join(result.report.notes)
