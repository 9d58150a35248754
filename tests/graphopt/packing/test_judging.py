"""Judging of packs: by what other inputs are likely to change, not by the judged samples alone."""

import numpy as np
import pytest

from graphopt.budget import Budget
from graphopt.packing.coding import Coded
from graphopt.packing.judging import judged
from graphopt.pipeline.prepare import prepare
from graphopt.samples import Samples
from graphopt.testing import parse_model


def matrix(error):
    return (np.eye(8) + error * np.random.default_rng(1).normal(size=(8, 8))).astype(np.float32)


def moved(error):
    """A classifier whose matrix is off by this much."""
    return parse_model("y = MatMul(x, w)", inputs={"x": (4, 8)}, constants={"w": matrix(error)})


def setting_of(seed):
    rng = np.random.default_rng(seed)
    feeds = [{"x": (4 * rng.normal(size=(4, 8))).astype(np.float32)} for _ in range(16)]
    return prepare(moved(0), samples=Samples(feeds), budget=Budget(), measure=False)


def test_few_samples_do_not_hide_what_others_show():
    """Of 64 decisions one may differ, or none; of all 2.6 % do, where 1 % may."""
    error = 0.015
    x = 4 * np.random.default_rng(0).normal(size=(100_000, 8))
    assert np.mean(x.argmax(1) != (x @ matrix(error)).argmax(1)) == pytest.approx(0.026, abs=0.002)
    alone, both = 0, 0
    for seed in range(12):
        setting = setting_of(seed)
        found = judged(setting, Coded(moved(error), {}, b"", {}, []), None, look=True, share=1)
        outputs = [{"y": f["x"] @ matrix(error)} for f in setting.judge.probe]
        alone += setting.guard.judge(outputs)["y"].over <= 1
        both += not found.reason
        assert (found.disagreement > 1) == bool(found.reason)
    assert alone >= 4
    assert both <= 1


def test_the_same_outputs_are_within_the_budget_and_half_of_it_is_half():
    setting = setting_of(0)
    same = judged(setting, Coded(moved(0), {}, b"", {}, []), None, look=True, share=1)
    assert (same.reason, same.error, same.disagreement) == ("", 0, 0)
    whole, half = (
        judged(setting, Coded(moved(0.001), {}, b"", {}, []), None, look=True, share=s).disagreement
        for s in (1, 0.5)
    )
    assert half == pytest.approx(2 * whole)
