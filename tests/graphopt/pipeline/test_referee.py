import numpy as np
import pytest

from graphopt.execution.runtime import run_each
from graphopt.pipeline.referee import Judging
from graphopt.testing import parse_model
from graphopt.verification.guard import Guard

TEXT = "h = MatMul(x, w)  y = Softmax(h)"
RNG = np.random.default_rng(0)


def model(off=0.0, rows="N"):
    weights = np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32)
    weights[:, 0] += off
    return parse_model(TEXT, inputs={"x": (rows, 8)}, constants={"w": weights})


def judging(source, runs, rows=6):
    probe = [{"x": RNG.standard_normal((rows, 8)).astype(np.float32)} for _ in range(runs)]
    return Judging(Guard(source, list(run_each(source, probe)), probe), 1.0)


def ran(monkeypatch):
    """Rows of each run of a model that a guard opens."""
    seen = []
    opened = Guard.opened

    class Counted:
        def __init__(self, held):
            self.held = held

        def __enter__(self):
            predict = self.held.__enter__()
            return lambda feeds: seen.append(len(feeds["x"])) or predict(feeds)

        def __exit__(self, *error):
            return self.held.__exit__(*error)

    monkeypatch.setattr(Guard, "opened", lambda self, m: Counted(opened(self, m)))
    return seen


def test_strain_on_some_rows_runs_no_others(monkeypatch):
    source, changed = model(), model(off=0.05)
    judge, seen = judging(source, runs=4), ran(monkeypatch)
    assert judge.rows == 6
    few = judge.strain([changed, changed], 3, 2)
    assert seen == [2, 2, 2]
    assert 0 < few < 1e3
    assert judge.strain([source, source], 3, 2) == pytest.approx(0, abs=1e-6)
    whole = judge.strain([changed], 3, 6)
    assert whole == pytest.approx(judge.strain([changed], 3))


def test_rows_of_a_fixed_batch_are_not_taken_apart():
    assert judging(model(rows=6), runs=2).rows == 0


@pytest.mark.parametrize(("off", "most"), [(0.0, 64), (0.02, 64), (0.3, 32), (30.0, 4)])
def test_what_is_lost_already_is_not_run_to_the_end(off, most, monkeypatch):
    judge, seen = judging(model(), runs=64), ran(monkeypatch)
    over = judge.over([model(off)])
    assert len(seen) <= most
    assert (over > 1) == (off > 0)
    whole = judge.used(list(run_each(model(off), judge.guard.probe)))
    assert (whole > 1) == (off > 0), "stopping early says what the end would"
