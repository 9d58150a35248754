import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes import int8
from graphopt.passes.int8 import Int8

from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.samples import Samples, stand_ins
from graphopt.target import ONNX
from graphopt.testing import check, parse_model

# One 8-bit step is 1/255 of the range; rounding both operands of a dot product of normal values
# leaves about 0.5 to 1 % of its norm. 3 % also covers small reductions.
TOLERANCE = 0.03


class Given(Samples):
    def __init__(self, *feeds, synthetic=False):
        super().__init__(feeds, synthetic=synthetic)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized(before, inputs, constants, opset=20, feeds=None, **options):
    """Quantize with the test inputs as samples; the usual checks of a pass are made."""
    model = parse_model(before, inputs=inputs, constants=constants, opset=opset)
    given = {k: v for k, v in inputs.items() if isinstance(v, np.ndarray)}
    samples = Given(*(feeds or [given]))
    return check(
        Int8(**options), model, inputs=inputs, samples=samples, opset=opset, tolerance=TOLERANCE
    )


def operators(model):
    return [n.op_type for n in model.graph]


def initializers(model):
    return {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}


def floats_left(model):
    """Elements of the largest float initializer."""
    return max(a.size for a in initializers(model).values() if a.dtype == np.float32)


CONV = "y = Conv <pads=[1, 1, 1, 1]> (x, w, b)"


def test_conv_with_bias():
    constants = {"w": normal(8, 4, 3, 3), "b": normal(8, seed=1)}
    model = quantized(CONV, {"x": normal(1, 4, 9, 9)}, constants)
    assert operators(model).count("QuantizeLinear") == 2
    assert operators(model).count("DequantizeLinear") == 4
    kinds = {a.dtype.name for a in initializers(model).values() if a.size > 8}
    assert kinds == {"int8"}
    assert any(a.dtype == np.int32 and a.any() for a in initializers(model).values())


def test_output_keeps_its_name_and_order():
    model = quantized(CONV, {"x": normal(1, 4, 9, 9)}, {"w": normal(8, 4, 3, 3), "b": normal(8)})
    assert [o.name for o in model.graph.outputs] == ["y"]


def test_a_relu_belongs_to_the_convolution_before_it():
    before = "c = Conv (x, w)  y = Relu(c)  z = Conv(y, v)"
    constants = {"w": normal(8, 4, 1, 1), "v": normal(4, 8, 1, 1, seed=1)}
    model = quantized(before, {"x": normal(1, 4, 5, 5)}, constants)
    relu = next(n for n in model.graph if n.op_type == "Relu")
    assert relu.inputs[0].producer().op_type == "Conv"
    assert [u.node.op_type for u in relu.outputs[0].uses()] == ["QuantizeLinear"]


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm(trans):
    w = normal(6, 10) if trans else normal(10, 6)
    before = f"y = Gemm <transB={trans}> (x, w, b)"
    model = quantized(before, {"x": normal(5, 10)}, {"w": w, "b": normal(6)})
    dq = [n for n in model.graph if n.op_type == "DequantizeLinear"]
    axes = {n.attributes.get_int("axis", 1) for n in dq if n.inputs[1].shape.rank() == 1}
    assert axes == ({0} if trans else {1, 0})
    assert operators(model).count("QuantizeLinear") == 1, "a float result needs no rounding"


def test_the_factor_of_a_gemm_goes_into_its_weight():
    model = quantized("y = Gemm <alpha=0.5> (x, w)", {"x": normal(5, 10)}, {"w": normal(10, 6)})
    assert not any("alpha" in n.attributes for n in model.graph)
    assert floats_left(model) <= 6


def test_a_product_of_two_float_activations_stays_float():
    inputs = {"x": normal(2, 5, 10), "w": normal(2, 10, 7)}
    check(Int8(), "y = MatMul(x, w)", unchanged=True, inputs=inputs, samples=Given(inputs))


def test_a_product_of_two_integers_is_integer():
    before = "a = Conv(x, v)  t = Transpose <perm=[0, 1, 3, 2]> (a)  y = MatMul(a, t)"
    model = quantized(before, {"x": normal(1, 4, 6, 6)}, {"v": normal(4, 4, 1, 1)})
    product = next(n for n in model.graph if n.op_type == "MatMul")
    assert {v.producer().op_type for v in product.inputs} == {"DequantizeLinear"}


@pytest.mark.parametrize("group", [2, 4])
def test_grouped_convolution(group):
    before = f"y = Conv <group={group}> (x, w)"
    quantized(before, {"x": normal(1, 4, 6, 6)}, {"w": normal(8, 4 // group, 3, 3)})


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank):
    x, w = normal(1, 4, *[6] * rank), normal(8, 4, *[3] * rank)
    quantized("y = Conv(x, w)", {"x": x}, {"w": w})


def test_weights_shared_by_two_nodes_are_stored_once():
    before = "a = MatMul(x, w)  b = Tanh(a)  y = MatMul(b, w)"
    model = quantized(before, {"x": normal(3, 16)}, {"w": normal(16, 16)})
    assert sum(a.size >= 256 for a in initializers(model).values()) == 1


def test_weights_also_read_by_a_float_node_keep_their_float_form():
    before = "a = MatMul(x, w)  y = Add(a, w)"
    model = quantized(before, {"x": normal(16, 16)}, {"w": normal(16, 16)})
    assert {a.dtype.name for a in initializers(model).values() if a.size == 256} == {
        "int8",
        "float32",
    }


def test_weights_behind_transpose_and_identity():
    before = "t = Transpose <perm=[1, 0]> (w)  i = Identity(t)  y = MatMul(x, i)"
    model = quantized(before, {"x": normal(3, 16)}, {"w": normal(8, 16)})
    assert "Transpose" not in operators(model)
    assert floats_left(model) == 8


def test_zero_weights_and_constant_activations():
    w = normal(4, 4, 1, 1)
    w[2] = 0
    constants = {"w": w, "b": normal(4), "k": np.zeros((4, 4, 1, 1), np.float32)}
    before = "a = Conv(x, w, b)  y = Conv(a, k)"
    quantized(before, {"x": np.full((1, 4, 3, 3), 2.0, np.float32)}, constants)


def test_a_large_bias_on_tiny_weights_does_not_overflow():
    constants = {"w": np.full((2, 3, 1, 1), 1e-9, np.float32), "b": np.float32([50.0, -70.0])}
    quantized("y = Conv(x, w, b)", {"x": normal(1, 3, 4, 4)}, constants)


def test_values_beyond_the_samples_saturate():
    model = parse_model(
        "y = MatMul(x, w)", inputs={"x": (2, 4)}, constants={"w": np.eye(4, dtype="f4")}
    )
    samples = Given({"x": np.float32([[-1, 0, 1, 1], [1, 1, 1, 1]])})
    Int8().run(model, Context(model, samples=samples))
    out = run(model, {"x": np.full((2, 4), 100, np.float32)})["y"]
    assert np.allclose(out, 1.0, atol=1 / 127)


def test_infinite_scores_do_not_spoil_the_range():
    x = normal(2, 6)
    x[0, 0] = -np.inf
    clean = np.where(np.isfinite(x), x, 0).astype(np.float32)
    before = "y = MatMul(x, w)"
    model = parse_model(before, inputs={"x": (2, 6)}, constants={"w": normal(6, 6)})
    expected = run(model, {"x": clean})["y"]
    Int8().run(model, Context(model, samples=Given({"x": x})))
    got = run(model, {"x": clean})["y"]
    assert np.linalg.norm(got - expected) < TOLERANCE * np.linalg.norm(expected)


def test_a_layer_that_is_to_stay_float():
    check(
        Int8(layers=(("Conv_*", "float"),)),
        "y = Conv(x, w)",
        because="layers= says so",
        inputs={"x": (1, 4, 5, 5)},
        constants={"w": normal(4, 4, 1, 1)},
        samples=Given({"x": normal(1, 4, 5, 5)}),
    )


def test_a_computed_weight_is_left():
    check(
        Int8(),
        "t = Tanh(w)  y = Conv(x, t)",
        because="computed",
        inputs={"x": (1, 4, 5, 5), "w": (4, 4, 1, 1)},
        samples=Given({"x": normal(1, 4, 5, 5), "w": normal(4, 4, 1, 1)}),
    )


def test_half_precision_is_left_where_the_target_has_it():
    x = normal(3, 4).astype(np.float16)
    check(
        Int8(),
        "y = MatMul(x, w)",
        because="float16",
        inputs={"x": x},
        constants={"w": normal(4, 4).astype(np.float16)},
        samples=Given({"x": x}),
        target=dataclasses.replace(ONNX, precisions=("float32", "float16")),
    )


def test_nodes_in_subgraphs_stay_float():
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[3, 16] x, bool c) => (float[3, 16] y) <float[16, 16] w = {%s}> {
        a = MatMul(x, w)
        y = If (c) <then_branch = t () => (float[3, 16] p) { p = MatMul(a, w) },
                    else_branch = e () => (float[3, 16] q) { q = Neg(a) }>
    }"""
    w = normal(16, 16)
    model = ir.from_onnx_text(text % ", ".join(map(str, w.reshape(-1))))
    feeds = {"x": normal(3, 16), "c": np.array(True)}
    expected = run(model, feeds)["y"]
    assert Int8().run(model, Context(model, samples=Given(feeds))) == 1
    got = run(model, feeds)["y"]
    assert np.linalg.norm(got - expected) < TOLERANCE * np.linalg.norm(expected)


def test_a_denied_edit_leaves_the_node():
    model = parse_model("y = MatMul(x, w)", inputs={"x": (2, 4)}, constants={"w": normal(4, 4)})
    ctx = Context(model, samples=Given({"x": normal(2, 4)}), allow=lambda edit: False)
    assert Int8().run(model, ctx) == 0
    assert operators(model) == ["MatMul"]


def test_random_samples_are_named():
    model = parse_model("y = MatMul(x, w)", inputs={"x": (2, 4)}, constants={"w": normal(4, 4)})
    ctx = Context(model, samples=Given({"x": normal(2, 4)}, synthetic=True))
    Int8().run(model, ctx)
    assert any("random inputs" in n for n in ctx.notes)


def test_same_input_same_bytes():
    def once():
        constants = {"w": normal(8, 4, 3, 3), "b": normal(8, seed=1)}
        model = parse_model(CONV, inputs={"x": (1, 4, 9, 9)}, constants=constants)
        Int8().run(model, Context(model, samples=Given({"x": normal(1, 4, 9, 9)})))
        return ir.to_proto(model).SerializeToString(deterministic=True)

    assert once() == once()


def test_the_pass_is_exported():
    assert int8.__all__ == ["Int8"]


def test_a_weight_of_rank_three_has_one_scale():
    quantized("y = MatMul(x, w)", {"x": normal(2, 5, 10)}, {"w": normal(2, 10, 7)})


def test_an_old_opset_is_raised_for_scales_per_channel():
    constants = {"w": normal(8, 4, 3, 3), "b": normal(8, seed=1)}
    model = quantized(CONV, {"x": normal(1, 4, 9, 9)}, constants, opset=11)
    assert model.graph.opset_imports[""] == 13


@pytest.mark.parametrize("gate", ["g = HardSigmoid(a)", "g = HardSigmoid<alpha=0.1, beta=0.3>(a)"])
def test_a_hard_sigmoid_is_a_line_that_its_grid_clips(gate):
    constants = {"w": normal(8, 4, 3, 3) / 2, "v": normal(8, 8, 1, 1, seed=2)}
    before = f"a = Conv(x, w)  {gate}  m = Mul(a, g)  y = Conv(m, v)"
    model = parse_model(before, inputs={"x": (2, 4, 9, 9)}, constants=constants)
    x = {"x": 3 * normal(2, 4, 9, 9, seed=3)}
    want = run(model, x)["y"]
    ctx = Context(model, target=find_target("cpu"), samples=Given(x))
    Int8(balance=False, refine=False).run(model, ctx)
    assert "HardSigmoid" not in operators(model)
    assert {"Add", "Mul"} <= set(operators(model))
    got = run(model, x)["y"]
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)


def test_without_samples_ranges_are_those_of_invented_images():
    model = parse_model(
        "y = Conv (x, w)", inputs={"x": (1, 3, 16, 16)}, constants={"w": normal(8, 3, 3, 3)}
    )
    ctx = Context(model, samples=stand_ins(model, shapes={"x": (1, 3, 16, 16)}))
    Int8().run(model, ctx)
    assert any("32 invented images" in n for n in ctx.notes)
