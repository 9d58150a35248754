"""Convolutions over one axis, unfolded into products: the same sums, and which of them may."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.int8 import Int8, speed
from graphopt.passes.int8.plan import make_plan, reads_blocks
from graphopt.passes.int8.unfolding import unfold, unfolds

import graphopt
from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.graph.building import Names, remove_dead
from graphopt.graph.traverse import all_nodes
from graphopt.testing import parse_model

CPU = find_target("cpu")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("length", [17, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "dilation", "pads"),
    [
        (6, 1, 1, 1, (0, 0)),
        (6, 3, 1, 1, (1, 1)),
        (6, 3, 2, 1, (1, 0)),
        (6, 3, 1, 4, (8, 0)),  # causal
        (6, 5, 3, 2, (2, 4)),
        (1, 8, 2, 1, (0, 0)),  # frames
        (3, 4, 4, 1, (0, 3)),  # patches
    ],
)
def test_the_product_is_the_convolution(channels, kernel, stride, dilation, pads, bias, length):
    constants = {"w": normal(5, channels, kernel)} | ({"b": normal(5, seed=1)} if bias else {})
    model = parse_model(
        f"y = Conv <strides=[{stride}], dilations=[{dilation}], pads=[{pads[0]}, {pads[1]}]>"
        f"(x, w{', b' if bias else ''})",
        inputs={"x": ("n", channels, "t")},
        constants=constants,
    )
    made = model.clone()
    (node,) = made.graph
    op = unfolds(node)
    assert unfold(made, op, Names(made)).op_type == "MatMul"
    remove_dead([node])
    assert "Conv" not in [n.op_type for n in made.graph]
    x = normal(2, channels, length, seed=2)
    (want,), (got,) = (run(m, {"x": x}).values() for m in (model, made))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ((2, 6, 1, 20), (5, 6, 1, 3), "pads=[0, 1, 0, 1]"),
        ((2, 6, 20, 1), (5, 6, 4, 1), "strides=[2, 1], pads=[1, 0, 1, 0]"),
        ((2, 6, 20, 3), (5, 6, 5, 1), "dilations=[2, 1]"),
        ((2, 6, 3, 20), (5, 6, 1, 4), "strides=[1, 2]"),
        ((2, 6, 4, 5), (5, 6, 1, 1), ""),
        ((2, 6, 1, 20), (5, 6, 1, 4), "auto_pad='SAME_UPPER'"),
        ((2, 6, 20), (5, 6, 4), "auto_pad='SAME_LOWER'"),
        ((2, 6, 4, 3, 9), (5, 6, 1, 1, 3), ""),
    ],
)
def test_one_axis_of_an_image_is_one_axis(shape, kernel, attributes):
    text = f"y = Conv <{attributes}> (x, w)" if attributes else "y = Conv(x, w)"
    model = parse_model(
        text.replace("'", '"'), inputs={"x": shape}, constants={"w": normal(*kernel)}
    )
    made = model.clone()
    conv = unfolds(made.graph.node(0))
    assert conv is not None
    unfold(made, conv, Names(made))
    remove_dead([conv.op.node])
    x = normal(*shape, seed=2)
    (want,), (got,) = (run(m, {"x": x}).values() for m in (model, made))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "able"),
    [
        ("y = Conv(x, w)", True),
        ("y = Conv <group=2> (x, g)", False),
        ("y = Conv <auto_pad='SAME_UPPER'> (x, w)", True),
        ("y = Conv <auto_pad='SAME_UPPER', strides=[2]> (x, w)", False),
        ("y = Conv(x, small)", False),  # rows shorter than a block
        ("y = Conv <strides=[3]> (x, many)", False),  # a slice for each of 32 taps
        ("y = Conv <strides=[4]> (x, many)", True),
        ("y = Conv(z, square)", False),
        ("y = Conv <strides=[2, 1]> (z, row)", False),
        ("y = Conv <pads=[1, 0, 1, 0]> (z, row)", False),
    ],
)
def test_which_convolutions_may(text, able):
    text = text.replace("'", '"')
    constants = {
        "w": normal(8, 32, 3), "g": normal(8, 16, 5), "small": normal(8, 32, 1),
        "many": normal(8, 32, 32), "square": normal(8, 32, 3, 3),
        "row": normal(8, 32, 1, 3),
    }  # fmt: skip
    model = parse_model(text, inputs={"x": (2, 32, 40), "z": (2, 32, 8, 8)}, constants=constants)
    assert reads_blocks(model.graph.node(0), CPU) is able


def test_outliers_that_move_about_spoil_their_block_alone():
    """One range for all of x leaves what is usual nothing; each block has its own."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((64, 64, 8)) / 22).astype(np.float32)
    model = parse_model(
        "y = Conv <strides=[4]> (x, w)", inputs={"x": (4, 64, 64)}, constants={"w": weight}
    )

    def sample():
        x = rng.standard_normal((4, 64, 64)).astype(np.float32)
        x[:, rng.integers(0, 64), rng.integers(0, 64)] = 2000
        return {"x": x}

    plan = make_plan(
        model.graph, CPU, lambda n, m: None, forms={model.graph.node(0).name: "blocks"}
    )
    assert len(plan) == len(plan.blocks) == 1
    result = graphopt.optimize(
        model, "int8", samples=[sample() for _ in range(16)], target="cpu", measure=False
    )
    (step,) = result.report.steps
    assert step.status == "kept"
    assert "MatMulNBits" in [n.op_type for n in result.model.graph]
    assert result.report.after.bytes < 0.3 * result.report.before.bytes


def test_what_needs_no_ranges_is_integer_in_branches_too(monkeypatch):
    text = """
    <ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    net (bool b, float[4, 32, 40] x) => (float[4, 8, 38] y) {
        y = If(b) <then_branch = a () => (float[4, 8, 38] p) {
                       p = com.microsoft.FusedConv <activation = "Relu"> (x, w) },
                   else_branch = c () => (float[4, 8, 38] q) { q = Conv(x, v) }>
    }
    """
    proto = onnx.parser.parse_model(text)
    for name, branch in zip("wv", proto.graph.node[0].attribute, strict=True):
        array = normal(8, 32, 3, seed=ord(name)) / 10
        branch.g.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    for k, node in enumerate(all_nodes(model.graph)):
        node.name = f"n{k}"
    feeds = [{"b": np.array(b), "x": normal(4, 32, 40, seed=b)} for b in (True, False)]
    before = [run(model, f)["y"] for f in feeds]
    short = model.clone()
    Int8().run(short, Context(short, target=CPU))  # not timed: rows of 96 elements gain nothing
    assert "MatMulNBits" not in [n.op_type for n in all_nodes(short.graph)]
    monkeypatch.setattr(speed, "LONG", 64)
    monkeypatch.setattr(speed, "LARGE", 256)
    assert Int8().run(model, Context(model, target=CPU)) > 0
    found = [n.op_type for n in all_nodes(model.graph)]
    assert found.count("MatMulNBits") == 2
    assert "Conv" not in found
    for feed, want in zip(feeds, before, strict=True):
        got = run(model, feed)["y"]
        assert 0 < np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)
