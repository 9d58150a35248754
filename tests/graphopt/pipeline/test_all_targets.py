"""`optimize(target="auto")` from Python: what the command line does."""

import dataclasses
import re

import numpy as np
import pytest

from graphopt import Budget, optimize
from graphopt.backend import find_target
from graphopt.errors import UsageError
from graphopt.testing import parse_model

CPU = find_target("cpu")


@pytest.fixture
def two(monkeypatch):
    """This machine's processor under two names."""
    found = [CPU, dataclasses.replace(CPU, threads=1)]
    monkeypatch.setattr(
        "graphopt.pipeline.all_targets.runnable", lambda: (found, {"gone": "it needs gone"})
    )


def model():
    weights = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    return parse_model("a = Relu(x)  b = Relu(a)  y = MatMul(b, w)", constants={"w": weights})


def test_the_notes_say_what_was_compared(two):
    told = []
    result = optimize(
        model(), "clean", target="auto", measure_seconds=0.05, progress=lambda *t: told.append(t)
    )
    assert result.report.target == "cpu"
    said = "\n".join(result.report.notes)
    assert re.search(r"target cpu( \(threads=1\))? was chosen", said)
    assert "as fast as the source on cpu" in said
    assert "gone is not here: it needs gone" in said
    assert any(text.startswith("cpu: step 1 of 1, clean") for text, _, _ in told)


def test_a_budget_that_no_target_meets_gives_the_closest_and_is_missed(two):
    impossible = Budget(max_drop=0.0, evaluate=lambda predict: float(next(counted)))
    counted = iter(range(0, -1000, -1))
    result = optimize(model(), "clean", target="auto", measure_seconds=0.05, budget=impossible)
    assert result.met is False


def test_measuring_is_what_it_chooses_by(two):
    with pytest.raises(UsageError, match="chooses by measuring"):
        optimize(model(), "clean", target="auto", measure=False)


def test_a_replay_goes_to_the_target_that_was_chosen(two):
    first = optimize(model(), "clean", target="auto", measure_seconds=0.05)
    again = optimize(model(), "clean", target="auto", replay=first.recipe)
    assert again.report.target == first.report.target
