"""What a user sees of the torch target: named, absent in one sentence, measured, never chosen."""

import importlib.util

import numpy as np
import pytest
from graphopt.backends.torch_fx import BACKEND, backend

from graphopt.backend import find_target
from graphopt.errors import MissingExtra, ModelError
from graphopt.formats import save
from graphopt.measuring.benchmark import benchmark
from graphopt.measuring.fastest_target import runnable
from graphopt.testing import parse_model

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs the torch extra"
)


def test_without_torch_the_target_is_one_plain_sentence(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"target 'torch'.*pip install 'graphopt\[torch\]'"):
        find_target("torch")


@needs_torch
def test_it_is_timed_beside_others_and_not_chosen_for_serving(tmp_path):
    save(
        parse_model("a = MatMul(x, w)  y = Relu(a)", constants={"w": np.eye(3, dtype="f4")}),
        tmp_path / "m.onnx",
    )
    (row,) = benchmark([tmp_path / "m.onnx"], [find_target("torch")], seconds=0.05).rows
    assert row.refused == ""
    assert row.median_ms > 0
    assert "torch" not in [t.name for t in runnable()[0]]


@needs_torch
def test_what_it_cannot_lower_is_refused_with_the_operator(tmp_path):
    save(parse_model("y = Multinomial <sample_size = 3> (x)"), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="Multinomial"):
        BACKEND.session(tmp_path / "m.onnx", find_target("torch"))
