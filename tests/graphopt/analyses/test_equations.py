"""Sizes of dynamic axes that the weights leave no choice of, and first axes that are time."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from graphopt.analyses.binding import bind_shapes
from graphopt.samples.inputs import inputs_of


def model(
    text: str, inputs: dict[str, list[int | str]], constants: dict[str, np.ndarray]
) -> ir.Model:
    """Nodes as text; values never used are outputs of no declared shape."""
    graph = onnx.parser.parse_graph(f"g () => () {{ {text} }}")
    for name, dims in inputs.items():
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
    for name, array in constants.items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    used = {i for n in graph.node for i in n.input}
    for name in (o for n in graph.node for o in n.output if o and o not in used):
        graph.output.append(onnx.ValueInfoProto(name=name))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ir.from_proto(made)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def axes(*at: int) -> np.ndarray:
    return np.int64(at)


STACK = "a = Unsqueeze(x, two) b = Unsqueeze(a, zero) c = Transpose <perm = [0, 3, 1, 2]> (b)"


@pytest.mark.parametrize(
    ("text", "inputs", "constants", "shape"),
    [
        ("y = MatMul(x, w)", ["n", "k"], {"w": ones(1575, 2)}, (1, 1575)),
        ("y = Gemm <transB = 1> (x, w)", ["n", "k"], {"w": ones(3, 77)}, (1, 77)),
        ("r = Relu(x) y = MatMul(r, w)", ["n", "s", "k"], {"w": ones(9, 2)}, (1, 16, 9)),
        ("y = Conv(x, w)", ["n", "c", 20, 20], {"w": ones(8, 6, 3, 3)}, (1, 6, 20, 20)),
        ("y = Conv <group = 4> (x, w)", ["n", "c", 9, 9], {"w": ones(8, 2, 3, 3)}, (1, 8, 9, 9)),
        ("y = Add(x, p)", ["n", "s", 4], {"p": ones(1, 50, 4)}, (1, 50, 4)),
        ("y = Reshape(x, s)", [1, "a", 6], {"s": axes(3, 30)}, (1, 15, 6)),
        # (k - 2) // 2 channels of 8 rows each, flattened into rows of 40
        (
            "c = Conv(x, w) p = MaxPool <kernel_shape = [2], strides = [2]> (c)"
            "f = Reshape(p, s) y = MatMul(f, m)",
            ["n", 3, "k"], {"w": ones(8, 3, 3), "s": axes(-1, 40), "m": ones(40, 5)}, (1, 3, 12),
        ),
    ],
)  # fmt: skip
def test_what_the_weights_demand(text, inputs, constants, shape):
    bound, notes = bind_shapes(model(text, {"x": inputs}, constants))
    assert bound == {"x": shape}
    assert notes[0].startswith("Dynamic axes were bound")


def test_an_axis_that_a_product_fixes_is_no_batch():
    """Joined along the first axis, it has 5 rows in every run."""
    one = model(
        "a = Add(x, p) y = Concat <axis = 1> (a, w)", {"x": ["n", "k"]},
        {"p": ones(4), "w": ones(5, 3)},
    )  # fmt: skip
    assert bind_shapes(one)[0] == {"x": (5, 4)}


def test_an_axis_has_the_elements_that_are_taken_from_it():
    one = model(
        "h = Gather(size, zero) w = Gather(size, one) a = Mul(h, w) y = Mul(x, a)",
        {"x": ["n", "s"], "size": ["k"]}, {"zero": np.int64(0), "one": np.int64(1)},
    )  # fmt: skip
    assert bind_shapes(one)[0]["size"] == (2,)


def test_what_is_given_is_not_overruled():
    one = model("y = Add(x, p)", {"x": ["n", "s"]}, {"p": ones(1, 50)})
    assert bind_shapes(one, {"x": (2, 1)})[0] == {"x": (2, 1)}


@pytest.mark.parametrize(
    ("text", "constants", "axis"),
    [
        (f"{STACK} y = Conv(c, w)", {"w": ones(4, 1, 3, 3)}, None),
        (f"{STACK} y = MaxPool <kernel_shape = [3, 1]> (c)", {}, None),
        (f"{STACK} y = MaxPool <kernel_shape = [1, 3]> (c)", {}, 0),
        ("a = Unsqueeze(x, one) y, h = GRU <hidden_size = 2> (a, w, r)",
         {"w": ones(1, 6, 7), "r": ones(1, 6, 2)}, None),
        ("a = Unsqueeze(x, zero) y, h = GRU <hidden_size = 2> (a, w, r)",
         {"w": ones(1, 6, 7), "r": ones(1, 6, 2)}, 0),
        ("a = Unsqueeze(x, one) y = Conv(a, w)", {"w": ones(4, 1, 3)}, 0),
    ],
)  # fmt: skip
def test_time_that_comes_first_is_no_batch(text, constants, axis):
    held = {"zero": axes(0), "one": axes(1), "two": axes(2)}
    one = model(text, {"x": ["rows", 7]}, {**held, **constants})
    assert inputs_of(one)[0].axis == axis


def test_windows_along_the_first_axis_get_room():
    held = {"zero": axes(0), "two": axes(2), "w": ones(4, 1, 30, 3)}
    bound, notes = bind_shapes(model(f"{STACK} y = Conv(c, w)", {"x": ["t", 7]}, held))
    assert bound == {"x": (64, 7)}
    assert notes[0].startswith("Dynamic axes were bound")


def test_what_a_function_reads_says_as_much():
    made = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "f" : 1]>
        g (float[N, S] x) => (float[N, 5] y) <float[12, 5] w = {0.0}> { y = f.Dense(x, w) }
        <opset_import: ["" : 18], domain: "f"> Dense (a, b) => (c) { c = MatMul(a, b) }""".replace(
            "= {0.0}", "= {" + ", ".join(["0.0"] * 60) + "}"
        )
    )
    shapes, _ = bind_shapes(ir.from_proto(made))
    assert shapes["x"][1] == 12
