"""Training in a search: candidates that lose too much as they are, won back or not."""

import numpy as np
import pytest

from graphopt import Budget, load, optimize, search
from graphopt.errors import UsageError

GIVEN = {
    "samples": "samples.npz",
    "minimize": "size",
    "passes": "prune(compensate=False)",  # what it loses training wins back
    "trials": 4,
    "measure_seconds": 0.1,
}


@pytest.fixture
def many(folder):
    x = np.random.default_rng(1).standard_normal((512, 32)).astype(np.float32)
    np.savez("samples.npz", x=x)
    return folder


def test_a_candidate_that_lost_too_much_is_trained_and_becomes_the_result(many):
    pytest.importorskip("torch")
    found = search(
        "model.onnx", budget=Budget(max_error=0.2), recover="distill(epochs=20)", **GIVEN
    )
    rows = {r["spec"]: r for r in found.report.trials}
    trained = {s.removesuffix(", distill(epochs=20)"): r for s, r in rows.items() if "distill" in s}
    untrained = [r for s, r in rows.items() if "distill" not in s]
    assert len(untrained) == 4
    assert 1 <= len(trained) <= 4
    cheapest = min(r["size"] for r in untrained if r["loss"] <= 0.2)
    for row in trained.values():
        assert row["size"] < cheapest, "what is trained would be cheaper"
    assert found.met
    assert found.report.spec.endswith("distill(epochs=20)")
    assert found.report.best["loss"] <= 0.2
    assert found.report.best["size"] < cheapest
    found.result.write("out.onnx")
    again = optimize(
        load("model.onnx"), found.report.spec, samples="samples.npz", replay=found.result.recipe
    )
    again.write("again.onnx")
    assert (many / "out.onnx").read_bytes() == (many / "again.onnx").read_bytes()


def test_what_cannot_be_won_back_changes_nothing(many):
    pytest.importorskip("torch")
    found = search(
        "model.onnx", budget=Budget(max_error=0.05), recover="distill(epochs=1)", **GIVEN
    )
    assert 1 <= sum("distill" in r["spec"] for r in found.report.trials) <= 4
    assert "distill" not in found.report.spec
    assert found.met


def test_what_trains_nothing_is_refused(many):
    with pytest.raises(UsageError, match="it trains nothing; name a pass such as distill"):
        search("model.onnx", budget=Budget(max_error=0.2), recover="fuse", **GIVEN)
