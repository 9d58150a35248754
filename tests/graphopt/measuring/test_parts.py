"""Parts cut out of a model compute what they computed inside it."""

import numpy as np
import onnx_ir as ir

from graphopt.execution.runtime import run
from graphopt.measuring.parts import cut_out
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
LADDER = [(k, f"t{k}", f"t{k + 1}") for k in range(64)]


def net():
    return parse_model(
        "h = MatMul(x, w)  a = Add(h, b)  s = Add(a, x)  y = Relu(s)",
        inputs={"x": (4, 8)},
        constants={
            "w": RNG.normal(size=(8, 8)).astype(np.float32),
            "b": RNG.normal(size=8).astype(np.float32),
        },
    )


def cut(model, node, output):
    nodes = {n.outputs[0].name: n for n in model.graph}
    value = nodes[output].outputs[0]
    return cut_out(model, [nodes[node]], [value], lambda v: ((4, 8), ir.DataType.FLOAT))


def test_what_lies_between_a_node_and_an_output_comes_along():
    """A product whose result is taken after its bias, or after more."""
    model = net()
    arrays = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}
    for output, inputs, kinds in (
        ("h", {"x"}, ["MatMul"]),
        ("a", {"x"}, ["MatMul", "Add"]),
        ("s", {"x"}, ["MatMul", "Add", "Add"]),
    ):
        part, feeds = cut(model, "h", output)
        assert [n.op_type for n in part.graph] == kinds
        assert set(feeds) == inputs
        (got,) = run(part, feeds).values()
        want = feeds["x"] @ arrays["w"] + (arrays["b"] if output != "h" else 0)
        np.testing.assert_allclose(got, want + (feeds["x"] if output == "s" else 0), rtol=1e-5)
    assert model.graph.num_nodes() == 4


def test_what_a_cut_reads_from_elsewhere_is_an_input():
    part, feeds = cut(net(), "s", "y")
    assert [n.op_type for n in part.graph] == ["Add", "Relu"]
    assert set(feeds) == {"a", "x"}


def test_gates_that_multiply_what_they_read_are_walked_once():
    """x * HardSigmoid(x) after itself: 2^64 ways lead up to the input, and to the constant."""
    gates = "  ".join(f"g{k} = HardSigmoid({a})  {b} = Mul({a}, g{k})" for k, a, b in LADDER)
    model = parse_model(
        f"{gates}  y = MatMul(t64, w)",
        inputs={"t0": (4, 8)},
        constants={"w": RNG.normal(size=(8, 8)).astype(np.float32)},
    )
    part, feeds = cut(model, "y", "y")
    assert [n.op_type for n in part.graph] == ["MatMul"]
    assert set(feeds) == {"t64"}
    held = parse_model(
        f"{gates}  y = MatMul(x, t64)",
        inputs={"x": (4, 8)},
        constants={"t0": RNG.normal(size=(8, 8)).astype(np.float32)},
    )
    part, feeds = cut(held, "y", "y")
    assert len(part.graph) == 2 * 64 + 1
    assert set(feeds) == {"x"}
