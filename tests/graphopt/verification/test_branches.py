import numpy as np

from graphopt import optimize
from graphopt.testing import parse_model
from graphopt.verification.branches import untaken

TEXT = """
    s = ReduceSum <keepdims = 0> (x)
    c = Greater(s, limit)
    y = If(c) <
        then_branch = t () => (a) { a = Relu(x) },
        else_branch = e () => (b) { b = Neg(x) }
    >
"""


def model(limit: float):
    return parse_model(TEXT, inputs={"x": (2, 3)}, constants={"limit": np.float32(limit)})


def test_a_branch_that_no_run_takes_is_named():
    ones = [{"x": np.ones((2, 3), np.float32)}]
    both = [*ones, {"x": -np.ones((2, 3), np.float32)}]
    (node,) = (n for n in model(0).graph if n.op_type == "If")
    assert untaken(model(0), ones) == [f"{node.name} (else)"]
    assert untaken(model(0), both) == []
    assert untaken(parse_model("y = Relu(x)"), ones) == []


def test_the_report_says_so():
    result = optimize(model(1e9), "clean", measure=False)
    assert any("taken by no run" in n and "(then)" in n for n in result.report.notes)
