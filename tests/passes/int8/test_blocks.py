"""Products that neither static nor run-time ranges suit read both operands block by block."""

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.int8.plan import Choice, make_plan, reads_blocks
from graphopt.passes.int8.speed import gains_in_blocks

import graphopt
from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
W = (RNG.standard_normal((1024, 64)) / 32).astype(np.float32)
V = (RNG.standard_normal((64, 16)) / 8).astype(np.float32)
CPU = find_target("cpu")


def samples(runs):
    """Rows with one number somewhere that is hundreds of times the others."""
    made = []
    for _ in range(runs):
        x = RNG.standard_normal((8, 1024)).astype(np.float32)
        x[np.arange(8), RNG.integers(0, 1024, 8)] = 300
        made.append({"x": x})
    return made


def test_outliers_that_move_about_spoil_their_block_alone():
    model = parse_model("y = MatMul(x, w)", inputs={"x": (8, 1024)}, constants={"w": W})
    given = samples(24)
    budget = graphopt.Budget(max_error=0.02)
    result = graphopt.optimize(
        model, "int8", samples=given, target="cpu", measure=False, budget=budget
    )
    assert result.report.steps[0].status == "kept"
    (node,) = (n for n in result.model.graph if n.op_type == "MatMulNBits")
    assert node.attributes["bits"].as_int() == 8
    assert result.report.after.bytes < 0.3 * result.report.before.bytes
    error = next(iter(result.report.steps[0].error_vs_source.values())).rel_l2
    assert error < 0.02
    assert "100.0% of the weight bytes" in " ".join(result.report.steps[0].notes)


@pytest.mark.parametrize(
    ("text", "able"),
    [
        ("y = MatMul(x, w)", True),
        ("y = Gemm(x, w, b)", True),
        ("y = Gemm<alpha = 0.5>(x, w, b)", False),
        ("y = Gemm<transA = 1>(x, v)", False),
        ("y = MatMul(w, z)", False),
        ("y = MatMul(x, w) \n t = MatMul(x, w)", False),
    ],
)
def test_which_products_may(text, able):
    constants = {"w": W, "b": W[0], "v": W[:8].copy()}
    inputs = {"x": (8, 1024), "z": (64, 5)}
    model = parse_model(text, inputs=inputs, constants=constants)
    node = model.graph.node(0)
    assert reads_blocks(node, CPU) is able
    assert not reads_blocks(node, find_target("onnx"))


def test_a_plan_takes_the_form_it_is_given():
    model = parse_model(
        "h = MatMul(x, w) \n y = MatMul(h, v)", inputs={"x": (8, 1024)}, constants={"w": W, "v": V}
    )
    names = [n.name for n in model.graph]
    plan = make_plan(model.graph, CPU, lambda *_: None, forms={names[0]: "blocks"})
    assert [n.name for n in plan.blocks] == names[:1]
    assert plan.modes()[model.graph.node(0)] == "blocks"
    assert len(plan) == 2
    assert isinstance(model, ir.Model)
    assert Choice().forms == {}


@pytest.mark.parametrize(("rows", "kept"), [(1, True), (8, True), (9, False), (128, False)])
def test_products_of_many_rows_gain_nothing_in_blocks_where_they_are_not_timed(rows, kept):
    model = parse_model("y = MatMul(x, w)", inputs={"x": (rows, 1024)}, constants={"w": W})
    ctx = Context(model, target=CPU)
    node = model.graph.node(0)
    assert gains_in_blocks(model, ctx, [node], never) == ({node} if kept else set())


def test_products_of_unknown_rows_count_as_few():
    text = "g = Softmax(x)  c = NonZero(g)  f = Cast <to = 1> (c)  y = MatMul(f, w)"
    model = parse_model(text, inputs={"x": (4, 4)}, constants={"w": W})
    product = model.graph.node(3)
    assert gains_in_blocks(model, Context(model, target=CPU), [product], never) == {product}


@pytest.mark.parametrize(("ratio", "kept"), [(0.8, True), (1.3, False)])
def test_where_they_are_timed_that_decides(monkeypatch, ratio, kept):
    model = parse_model("y = MatMul(x, w)", inputs={"x": (128, 1024)}, constants={"w": W})
    ctx = Context(model, target=CPU, timer=lambda *_: None)
    monkeypatch.setattr(Context, "faster", lambda self, what, pair: ratio)
    node = model.graph.node(0)
    assert gains_in_blocks(model, ctx, [node], never) == ({node} if kept else set())


def never(model, chosen, fold=None):
    raise AssertionError("nothing is quantized here")
