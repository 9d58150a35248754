"""Scalars in real TensorBoard event files and a real MLflow store, read by their own readers."""

import numpy as np
import pytest

import graphopt
from graphopt.errors import InputError, MissingExtra, UsageError
from graphopt.reporting.tracking import tracked
from graphopt.testing import parse_model


def scalars(folder):
    """Every series of the event files in a folder: name to (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {t: [(s.step, s.value) for s in read.Scalars(t)] for t in read.Tags()["scalars"]}


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")


def test_tensorboard_reads_what_was_kept(tensorboard, tmp_path):
    with tracked(f"tensorboard:{tmp_path}/runs") as scalar:
        scalar("distill/loss", 0.5, 0)
        scalar("distill/loss", float("nan"), 1)
        scalar("distill/loss", 0.25, 2)
    assert scalars(tmp_path / "runs") == {"distill/loss": [(0, 0.5), (2, 0.25)]}


def test_mlflow_reads_what_was_kept(tmp_path):
    client = pytest.importorskip("mlflow", reason="the extra mlflow is not installed").MlflowClient
    with tracked(f"mlflow:{tmp_path}/runs") as scalar:
        scalar("distill/loss", 0.5, 0)
        scalar("distill/loss", 0.25, 1)
    with pytest.raises(ZeroDivisionError), tracked(f"mlflow:{tmp_path}/runs"):
        _ = 1 / 0
    store = client(tracking_uri=f"{tmp_path}/runs")
    where = store.get_experiment_by_name("graphopt").experiment_id
    runs = sorted(store.search_runs([where]), key=lambda run: run.info.status)
    assert [run.info.status for run in runs] == ["FAILED", "FINISHED"]
    kept = store.get_metric_history(runs[1].info.run_id, "distill/loss")
    assert [(m.step, m.value) for m in kept] == [(0, 0.5), (1, 0.25)]


def test_places_that_are_none_are_told(tensorboard, tmp_path):
    for wrong in ("wandb:here", "tensorboard", "tensorboard:"):
        with pytest.raises(UsageError, match="write tensorboard:DIR or mlflow:URI"), tracked(wrong):
            pass
    (tmp_path / "file").touch()
    where = f"tensorboard:{tmp_path}/file"
    with pytest.raises(InputError, match="cannot be opened"), tracked(where):
        pass


def test_a_missing_extra_is_told(monkeypatch):
    monkeypatch.setattr("graphopt.reporting.tracking.find_spec", lambda name: None)
    told = pytest.raises(MissingExtra, match=r"pip install 'graphopt\[mlflow\]'")
    with told, tracked("mlflow:x"):
        pass


def test_a_server_that_fails_ends_the_figures_and_not_the_work(tensorboard, tmp_path, caplog):
    with tracked(f"tensorboard:{tmp_path}") as scalar:
        scalar("loss", 1.0, 2**70)  # no step of an event
        scalar("loss", 1.0, 3)
    assert [r.message for r in caplog.records if "ends here" in r.message] != []
    assert scalars(tmp_path) == {}


def test_a_training_is_kept_step_by_step(tensorboard, tmp_path):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, 8)).astype(np.float32),
        "v": rng.normal(size=(8, 2)).astype(np.float32),
    }
    model = parse_model(
        "a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v)", inputs={"x": (1, 4)}, constants=weights
    )
    samples = [{"x": rng.normal(size=(1, 4)).astype(np.float32)} for _ in range(40)]
    graphopt.optimize(
        model,
        "svd(rank=1), distill(epochs=2, batch=12)",
        samples=samples,
        budget=graphopt.Budget(max_error=10),
        measure=False,
        track=f"tensorboard:{tmp_path}",
    )
    kept = scalars(tmp_path)
    whole = {n for n in kept if n.startswith("distill/")}  # parts first, as samples are few
    assert whole == {f"distill/{n}" for n in ("loss", "learning_rate", "held_out_loss")}
    assert "distill part 1/held_out_loss" in kept
    assert [step for step, _ in kept["distill/loss"]] == list(range(6))
    assert [step for step, _ in kept["distill/held_out_loss"]] == [0, 3, 6]
