"""A sample of the ONNX backend suite; bench/backend_suite.py runs all of it."""

import importlib.util
import sys
from pathlib import Path

import pytest

from graphopt.target import ONNX

BENCH = Path(__file__).parents[2] / "bench"
#: Cases that once went wrong, whatever the sample draws.
ONCE_WRONG = (
    "test_attention_4d_causal_bf16_expanded",
    "test_ai_onnx_ml_label_encoder_tensor_mapping",
    "test_castlike_FLOAT_to_FLOAT8E5M2",
    "test_loop16_seq_none",
    "test_stft",
)


def bench_module(name):
    found = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def suite():
    return bench_module("backend_suite")


def test_outputs_stay_as_they_are(suite):
    cases = suite.load_cases()
    chosen = [c for k, c in enumerate(cases) if k % 12 == 0 or c.name in ONCE_WRONG]
    assert len(chosen) > 100
    records = [r for c in chosen for r in suite.check_case(c, "clean,fold,fuse", ONNX)]
    assert sum(bool(r.get("edits")) for r in records) > 100
    assert [r for r in records if "problem" in r] == []
