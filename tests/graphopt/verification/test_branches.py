import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import optimize
from graphopt.execution.runtime import opened
from graphopt.graph.traverse import all_nodes
from graphopt.testing import parse_model
from graphopt.verification.branches import seek
from graphopt.verification.watching import counted


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


INNER = """
    v = If(d) <
        then_branch = p () => (float[2,3] r) { r = Abs(x) },
        else_branch = q () => (float[2,3] s) { s = Exp(x) }
    >"""
IN_A_LOOP = """
    y = Loop(turns, go, x) <body = t (int64 i, bool before, float[2,3] x1) =>
        (bool on, float[2,3] x2) {
            on = Identity(before)
            h = Equal(i, last)
            x2 = If(h) <
                then_branch = p () => (float[2,3] r) { r = Abs(x1) },
                else_branch = q () => (float[2,3] s) { s = Exp(x1) }
            >
        }>"""
NESTED = {
    "a branch": f"""
        y = If(c) <
            then_branch = t () => (float[2,3] v) {{ {INNER} }},
            else_branch = e () => (float[2,3] b) {{ b = Neg(x) }}
        >""",
    "a branch of a branch": f"""
        z = Neg(x)
        y = If(c) <
            then_branch = t () => (float[2,3] u) {{
                u = If(c) <
                    then_branch = o () => (float[2,3] v) {{ {INNER} }},
                    else_branch = k () => (float[2,3] w) {{ w = Identity(z) }}
                >
            }},
            else_branch = e () => (float[2,3] b) {{ b = Neg(x) }}
        >""",
    "a loop": IN_A_LOOP,
    "a loop in a branch": f"""
        y = If(c) <
            then_branch = t () => (float[2,3] y) {{ {IN_A_LOOP} }},
            else_branch = e () => (float[2,3] b) {{ b = Neg(x) }}
        >""",
    "a scan": """
        y = Scan <num_scan_inputs = 1, scan_output_axes = [0],
                  body = t (float[3] x1) => (float[3] x2) {
            w = ReduceSum <keepdims = 0> (x1)
            h = Greater(w, limit)
            x2 = If(h) <
                then_branch = p () => (float[3] r) { r = Abs(x1) },
                else_branch = q () => (float[3] u) { u = Exp(x1) }
            >
        }> (x)""",
}


def nested(kind, opset):
    text = f"""
        <ir_version: 7, opset_import: ["": {opset}]>
        net (float[2,3] x, bool c, bool d, int64 turns) => (float[2,3] y)
        <bool go = {{1}}, int64 last = {{7}}, float limit = {{500}}> {{ {NESTED[kind]} }}"""
    one = ir.from_proto(onnx.parser.parse_model(text))
    for k, node in enumerate(n for n in all_nodes(one.graph) if n.op_type == "If"):
        node.name = f"if{k}"
    return one


NESTED_RUNS = [{**ONES[0], "c": np.array(True), "d": np.array(True), "turns": np.array(1)}]
NESTED_SHAPES = {"x": (2, 3), "c": (), "d": (), "turns": ()}


@pytest.mark.parametrize("opset", [11, 20])
@pytest.mark.parametrize("kind", NESTED)
def test_what_is_inside_of_branches_and_loops_is_watched(kind, opset):
    one = nested(kind, opset)
    before = ir.to_proto(one).SerializeToString()
    ifs = [n.name for n in all_nodes(one.graph) if n.op_type == "If"]
    found = seek(one, NESTED_RUNS, NESTED_SHAPES)
    # of two that look at the same condition, the inner one has a branch that nothing takes
    assert found.untaken == (["if1 (else)"] if kind == "a branch of a branch" else [])
    assert len(found.found) == (1 if len(ifs) == 1 else 2)
    assert ir.to_proto(one).SerializeToString() == before


def test_branches_are_counted():
    one = nested("a loop in a branch", 20)
    part, outputs, hidden = counted(one)
    assert (set(outputs), hidden) == ({"if0", "if1"}, [])
    feeds = {**NESTED_RUNS[0], "turns": np.array(10)}
    with opened(part) as predict:
        taken = predict(feeds)
        other = predict({**feeds, "c": np.array(False)})
    assert [taken[outputs[n]].tolist() for n in ("if0", "if1")] == [[1, 0], [1, 9]]
    assert [other[outputs[n]].tolist() for n in ("if0", "if1")] == [[0, 1], [0, 0]]


def test_the_pipeline_compares_on_what_was_sought():
    result = optimize(model(SUM, X, limit=np.float32(1e3)), "clean", measure=False)
    assert any("made up to take branches" in n for n in result.report.notes)
    result = optimize(model(SUM, X, limit=np.float32(np.inf)), "clean", measure=False)
    assert any("taken by no run" in n and "(then)" in n for n in result.report.notes)
