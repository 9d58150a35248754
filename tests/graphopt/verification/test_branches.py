import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import optimize
from graphopt.testing import parse_model
from graphopt.verification.branches import seek


def model(condition, inputs, **constants):
    text = f"""
        {condition}
        y = If(c) <
            then_branch = t () => (a) {{ a = Relu(x) }},
            else_branch = e () => (b) {{ b = Neg(x) }}
        >
    """
    return parse_model(text, inputs=inputs, constants=constants)


SUM = "s = ReduceSum <keepdims = 0> (x)  c = Greater(s, limit)"
ONES = [{"x": np.ones((2, 3), np.float32)}]
X = {"x": (2, 3)}


def name_of(one):
    return next(n.name for n in one.graph if n.op_type == "If")


def test_a_branch_that_the_runs_take_is_not_sought():
    both = [*ONES, {"x": -np.ones((2, 3), np.float32)}]
    found = seek(model(SUM, X, limit=np.float32(0)), both, X)
    assert (found.found, found.untaken) == ([], [])


CONDITIONS = {
    "a threshold": (SUM, {"limit": np.float32(6000)}, {}),
    "equality": (
        "k = Gather <axis = 0> (x, i)  h = Gather <axis = 0> (k, i)  c = Equal(h, limit)",
        {"limit": np.float32(41.25), "i": np.array(1)},
        {},
    ),
    "no number": (
        "n = IsNaN(x)  m = Cast <to = 1> (n)  s = ReduceMax <keepdims = 0> (m)"
        "  c = Cast <to = 9> (s)",
        {},
        {},
    ),
    "a truth": ("z = Abs(x)  c = Identity(flag)", {}, {"flag": np.array(True)}),
    "a count": ("z = Abs(x)  c = Less(n, limit)", {"limit": np.array(-7)}, {"n": np.array(1)}),
    "two together": (
        "s = ReduceSum <keepdims = 0> (x)  a = Greater(s, limit)  b = Greater(n, most)"
        "  c = And(a, b)",
        {"limit": np.float32(900), "most": np.array(12)},
        {"n": np.array(1)},
    ),
}


@pytest.mark.parametrize("kind", CONDITIONS)
def test_inputs_are_sought_that_take_each_branch(kind):
    condition, constants, more = CONDITIONS[kind]
    one = model(condition, {**X, **more}, **constants)
    found = seek(one, [{**ONES[0], **more}], {**X, **{k: a.shape for k, a in more.items()}})
    assert found.untaken == []
    assert len(found.found) == 1


def test_sizes_are_sought():
    condition = "n = Shape(x)  b = Gather <axis = 0> (n, zero)  c = Greater(b, limit)"
    one = model(condition, {"x": ("n", 3)}, zero=np.array(0), limit=np.array(37))
    found = seek(one, ONES, X)
    assert [f["x"].shape for f in found.found] == [(38, 3)]
    assert found.untaken == []


def test_what_nothing_takes_is_named():
    one = model("q = Mul(x, x)  s = ReduceSum <keepdims = 0> (q)  c = Less(s, limit)", X,
                limit=np.float32(-1))  # fmt: skip
    assert seek(one, ONES, X).untaken == [f"{name_of(one)} (then)"]


def test_an_inner_if_is_not_watched():
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        net (float[2,3] x, bool c, bool d) => (float[2,3] y) {
            y = If(c) <
                then_branch = t () => (float[2,3] a) {
                    a = If(d) <
                        then_branch = p () => (float[2,3] v) { v = Abs(x) },
                        else_branch = q () => (float[2,3] w) { w = Exp(x) }
                    >
                },
                else_branch = e () => (float[2,3] b) { b = Neg(x) }
            >
        }"""
    one = ir.from_proto(onnx.parser.parse_model(text))
    runs = [{**ONES[0], "c": np.array(True), "d": np.array(True)}]
    found = seek(one, runs, {"x": (2, 3), "c": (), "d": ()})
    assert len(found.found) == 1
    assert len(found.untaken) == 1
    assert "not watched" in found.untaken[0]


def test_the_pipeline_compares_on_what_was_sought():
    result = optimize(model(SUM, X, limit=np.float32(1e3)), "clean", measure=False)
    assert any("made up to take branches" in n for n in result.report.notes)
    result = optimize(model(SUM, X, limit=np.float32(np.inf)), "clean", measure=False)
    assert any("taken by no run" in n and "(then)" in n for n in result.report.notes)
