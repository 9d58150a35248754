import sys

import numpy as np
import pytest
from graphopt.passes.simplify import Simplify

from graphopt import Context
from graphopt.errors import MissingExtra
from graphopt.testing import check, parse_model


def test_simplifies_with_onnxsim():
    pytest.importorskip("onnxsim")
    model = check(
        Simplify(),
        before="a = Identity(x)  b = Mul(w, w)  y = Add(a, b)",
        after="y = Add(x, k)",
        constants={"w": np.ones(3, np.float32)},
        inputs={"x": (2, 3)},
    )
    assert model.graph.outputs[0].name == "y"


def test_leaves_what_is_simple():
    pytest.importorskip("onnxsim")
    check(Simplify(), before="y = Relu(x)", unchanged=True)


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    model = parse_model("y = Relu(x)")
    with pytest.raises(MissingExtra, match=r"graphopt\[onnxsim\]"):
        Simplify().run(model, Context(model))
