import numpy as np

from graphopt import optimize
from graphopt.testing import parse_model


def test_who_watches_a_run_is_told_of_the_source_and_of_every_step():
    weights = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    body = "i = Identity(x) h = MatMul(i, w) a = Relu(h) b = Relu(a) y = Relu(b)"
    model = parse_model(body, inputs={"x": (4, 8)}, constants={"w": weights})
    told = []

    def watch(stage):
        spec = stage.step.spec if stage.step else None
        told.append((spec, len(list(stage.model.graph)), stage.edits))

    result = optimize(model, "clean, fold", measure=False, watch=watch)
    assert [(spec, n) for spec, n, _ in told] == [(None, 5), ("clean", 2), ("fold", 2)]
    clean = result.report.steps[0]
    assert len(told[1][2]) == clean.edits
    assert {verdict for _, _, verdict in told[1][2]} == {"proved"}
    assert told[2][2] == ()


def test_an_undone_step_leaves_no_edits_to_be_told_of():
    model = parse_model("y = Relu(x)", inputs={"x": (4, 8)})
    stages = []
    optimize(model, "clean", measure=False, watch=stages.append)
    assert [s.step and s.step.status for s in stages] == [None, "unchanged"]
    assert stages[1].edits == ()
    assert stages[0].setting is stages[1].setting
