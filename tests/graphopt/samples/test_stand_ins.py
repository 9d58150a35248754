"""Invented inputs that fit, or who stands in the way."""

import numpy as np
import onnx
import pytest

from graphopt import optimize


def table(text, rows=5):
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 17]> g (int64[n] a, int64[n] b, float[n, 4] x) '
        f"=> (float[n, 4] y) {{ {text} h = Add(g, x) y = Identity(h) }}"
    )
    held = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    model.graph.initializer.append(onnx.numpy_helper.from_array(held, "t"))
    return model


def report(model):
    return optimize(model, "clean", measure=False).report


def test_indices_that_are_computed_are_humble():
    """A product of two ids lies beyond what either might index alone."""
    found = report(table("k = Mul(a, b) g = Gather(t, k)"))
    assert not any("not compared" in n for n in found.notes)
    assert found.steps[0].error_vs_source["y"].rel_l2 == 0


@pytest.mark.parametrize("index", ["k = Add(a, o)", "k = Sub(a, o)"])
def test_an_input_that_nothing_fits_is_named(index):
    """Only ids of 100 and more, or less, are rows of this table."""
    text = f"o = Constant <value_int = 100> () m = Neg(a) {index} g = Gather(t, k) n = Neg(b)"
    found = report(table(text))
    (line,) = [n for n in found.notes if "UNVERIFIED" in n]
    assert line == "UNVERIFIED: nothing invented for 'a' fits; give --samples"
    assert any("not compared" in n for n in found.notes)
