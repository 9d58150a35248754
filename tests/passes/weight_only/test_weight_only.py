"""Matrices in a few bits: what the runtime computes from them, and what stays as it was."""

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.weight_only import WeightOnly
from graphopt.passes.weight_only.blocks import (
    Form,
    form_of,
    in_blocks,
    order_of,
    relative_error,
    stored_bits,
)

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.execution.runtime import run
from graphopt.pipeline.optimize import optimize
from graphopt.samples import Samples
from graphopt.spec import parse
from graphopt.target import Target
from graphopt.testing import check, parse_model

HAS = Target("t", operators=frozenset({"com.microsoft:MatMulNBits"}), int8=None)
ROUNDS = Target("r", operators=HAS.operators)  # computes in integers
RNG = np.random.default_rng(0)
W = (RNG.standard_normal((160, 128)) / 12).astype(np.float32)
X = RNG.standard_normal((9, 160)).astype(np.float32)


def made_by(text, constants, x=X, **options):
    model = parse_model(text, inputs={"x": x}, constants=constants)
    WeightOnly(**options).run(model, Context(model, target=HAS))
    return model


def kinds(model):
    return [n.op_type for n in model.graph]


@pytest.mark.parametrize(
    ("bits", "block"),  # 160 fills no number of blocks of 64 or 128
    [*((b, n) for b in (4, 8) for n in (16, 32, 64)), *((2, n) for n in (32, 64, 128))],
)
@pytest.mark.parametrize("mean", [0.0, 0.2])
def test_the_runtime_multiplies_by_what_the_blocks_stand_for(bits, block, mean):
    w = W + np.float32(mean)
    model = made_by("y = MatMul(x, w)", {"w": w}, bits=bits, block=block)
    assert kinds(model) == ["MatMulNBits"]
    form = form_of(w.T, bits, (block,))
    assert form.symmetric == (len(model.graph.node(0).inputs) == 3)
    stood_for = in_blocks(w.T, form, np.float32).matrix(160).T
    y = run(model, {"x": X})["y"]
    np.testing.assert_allclose(y, X @ stood_for, rtol=1e-4, atol=1e-4)
    most = {2: 0.62, 4: 0.12, 8: 0.008}[bits]
    assert np.linalg.norm(stood_for - w) < most * np.linalg.norm(w)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_blocks_have_zero_points_where_these_are_worth_their_bytes(bits):
    even, skew = W.T, W.T + np.float32(0.2)
    for w in (even, skew):
        prices = [
            relative_error(w, form) * 2 ** stored_bits(form, 160, w.dtype)
            for form in (Form(bits, 32), Form(bits, 32, symmetric=True))
        ]
        assert form_of(w, bits, (32,)).symmetric == (prices[1] < prices[0])
    assert form_of(even, bits, (32,)).symmetric
    assert not form_of(skew, bits, (32,)).symmetric


def test_the_largest_of_a_symmetric_block_stays_as_it_is():
    w = np.zeros((2, 32), np.float32)
    w[0, 3], w[1, 4] = 0.7, -0.7
    made = in_blocks(w, Form(4, 32, symmetric=True), np.float32)
    assert len(made.packed()) == 2
    assert np.array_equal(made.matrix(32), w)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rows", [1, 9])
def test_where_integers_are_fast_activations_are_rounded_block_by_block(bits, rows):
    model = parse_model("y = MatMul(x, w)", inputs={"x": X[:rows]}, constants={"w": W})
    WeightOnly(bits=bits, block=64).run(model, Context(model, target=ROUNDS))
    assert model.graph.node(0).attributes["accuracy_level"].as_int() == 4
    stood_for = in_blocks(W.T, form_of(W.T, bits, (64,)), np.float32).matrix(160).T
    x = X[:rows] * np.repeat([1e-3, 1, 1e3], [64, 64, 32]).astype(np.float32)
    y = run(model, {"x": x}, optimize=True)["y"]
    assert not np.allclose(y, x @ stood_for, rtol=1e-4)
    blocks = np.pad(x, ((0, 0), (0, 32))).reshape(rows, 3, 64)
    steps = np.repeat(np.abs(blocks).max(axis=2) / 127, 64, axis=1)[:, :160]
    assert (np.abs(y - x @ stood_for) <= 0.51 * steps @ np.abs(stood_for) + 1e-4).all()


def test_two_bits_need_blocks_that_have_a_kernel():
    with pytest.raises(ValueError, match="32, 64 or 128, not 256"):
        WeightOnly(layers=(("*", 2),), block=256)


@pytest.mark.parametrize(
    ("text", "constants", "left"),
    [
        ("y = Gemm(x, w, b)", {"w": W, "b": W[0]}, ["MatMulNBits", "Add"]),
        ("y = Gemm<transB = 1>(x, w)", {"w": np.ascontiguousarray(W.T)}, ["MatMulNBits"]),
        ("t = Transpose<perm = [1, 0]>(w) \n y = MatMul(x, t)", {"w": W.T.copy()}, ["MatMulNBits"]),
    ],
)
def test_every_spelling_of_a_product_with_a_matrix(text, constants, left):
    model = parse_model(text, inputs={"x": X}, constants=constants)
    check(WeightOnly(bits=8), model, inputs={"x": X}, target=HAS, tolerance=0.01)
    assert kinds(model) == left


def test_half_precision_stays_half():
    half = {"w": W.astype(np.float16)}
    model = made_by("y = MatMul(x, w)", half, x=X.astype(np.float16))
    assert kinds(model) == ["MatMulNBits"]
    assert model.graph.node(0).inputs[2].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("y = MatMul(x, w) \n z = Identity(w)", "read elsewhere"),
        ("t = Transpose(v) \n y = MatMul(x, t) \n z = Neg(v)", "read elsewhere"),
        ("t = Transpose(v) \n y = MatMul(x, t) \n z = MatMul(x, t)", "read elsewhere"),
        ("y = MatMul(w, x3)", ""),
        ("y = Gemm<alpha = 0.5>(x, w)", ""),
        ("y = MatMul(x, x2)", ""),
        ("y = MatMul(c, w)", ""),
        ("v = ReduceMax<keepdims = 0>(x, zero) \n y = MatMul(v, w)", "rows"),
    ],
)
def test_what_cannot_be_read_in_blocks_stays(text, why):
    inputs = {"x": X, "x2": W, "x3": W.T}
    constants = {"w": W, "v": W.T.copy(), "c": X, "zero": np.array([0])}
    model = parse_model(text, inputs=inputs, constants=constants)
    ctx = Context(model, target=HAS)
    assert WeightOnly().run(model, ctx) == 0
    assert "MatMulNBits" not in kinds(model)
    assert why in " ".join(r.reason for r in ctx.refusals)


def block_of(model):
    return model.graph.node(0).attributes["block_size"].as_int()


def test_blocks_are_as_long_as_pays():
    def block(rows, spread, bits=4):
        w = RNG.standard_normal((rows, 128)) * np.exp(spread * RNG.standard_normal((rows, 1)))
        w = w.astype(np.float32)
        x = np.ones((2, rows), np.float32)
        return block_of(made_by("y = MatMul(x, w)", {"w": w}, x=x, bits=bits))

    assert block(768, 0) == 128  # a scale of 128 weights takes a third of a bit less than one of 32
    assert block(768, 1.5) < 128  # but here a large weight is never far
    assert block(160, 0) == 32  # two blocks of 128 would be filled up with 96 zeros
    assert block(768, 0, bits=2) == 128


def test_a_table_whose_rows_only_small_blocks_divide():
    w = W.reshape(128, 160)[:, :144].copy()  # 9 x 16
    for bits, left in ((4, "GatherBlockQuantized"), (2, "Gather")):
        model = parse_model("y = Gather(w, i)", inputs={"i": IDS}, constants={"w": w})
        WeightOnly(bits=bits).run(model, Context(model, target=TABLES))
        assert kinds(model) == [left]
    assert np.isfinite(run(model, {"i": IDS % 128})["y"]).all()


def test_a_target_without_the_operator_says_so():
    model = parse_model("y = MatMul(x, w)", inputs={"x": X}, constants={"w": W})
    ctx = Context(model, target=Target("bare"))
    assert WeightOnly().run(model, ctx) == 0
    assert "bare" in ctx.notes[0]


def test_rounding_for_what_a_matrix_multiplies_leaves_less_error():
    mixed = X @ RNG.standard_normal((160, 160)).astype(np.float32) * np.geomspace(4, 0.1, 160)
    h = (mixed.T @ mixed / len(mixed)).astype(np.float64)
    target = mixed @ W
    plain = mixed @ in_blocks(W.T, Form(4, 32), np.float32).matrix(160).T
    refined = mixed @ in_blocks(W.T, Form(4, 32), np.float32, order_of(h, 32)).matrix(160).T
    assert np.linalg.norm(refined - target) < 0.5 * np.linalg.norm(plain - target)


def test_samples_are_used_layer_by_layer():
    text = "h = MatMul(x, w) \n r = Relu(h) \n y = MatMul(r, v)"
    v = (RNG.standard_normal((128, 128)) / 11).astype(np.float32)
    x = (X @ RNG.standard_normal((160, 160)) * np.geomspace(4, 0.1, 160)).astype(np.float32)

    def error(samples):
        model = parse_model(text, inputs={"x": x}, constants={"w": W, "v": v})
        before = run(model, {"x": x})["y"]
        WeightOnly().run(model, Context(model, target=HAS, samples=samples))
        assert kinds(model).count("MatMulNBits") == 2
        return np.linalg.norm(run(model, {"x": x})["y"] - before) / np.linalg.norm(before)

    assert error(Samples([{"x": x}])) < 0.8 * error(None)


def test_constant_and_empty_blocks_keep_their_values():
    w = np.zeros((2, 32), np.float32)
    w[1] = 3.0
    stood_for = in_blocks(w, Form(4, 32), np.float32).matrix(32)
    np.testing.assert_allclose(stood_for, w, rtol=1e-6)


def test_cuda_takes_it_where_int8_gains_nothing():
    model = parse_model("y = MatMul(x, w)", inputs={"x": X}, constants={"w": W})
    found = optimize(model, "weight_only(bits=4)", target="cuda-sm80", measure=False)
    assert kinds(found.model) == ["MatMulNBits"]
    assert found.report.after.bytes < 0.3 * found.report.before.bytes
    other = optimize(model, "int8", target="cuda-sm80", measure=False)
    assert "weight_only" in str(other.report.steps[0].notes)


def test_wrong_options_are_told():
    for text in ("weight_only(bits=3)", "weight_only(block=24)"):
        with pytest.raises(UsageError, match="not"):
            parse(text)


TABLES = Target("t", operators=HAS.operators | {"com.microsoft:GatherBlockQuantized"}, int8=None)
IDS = np.array([[3, 0, 159], [7, 7, 1]])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tables_are_looked_up_in_blocks(bits):
    model = parse_model("y = Gather(w, i)", inputs={"i": IDS}, constants={"w": W})
    WeightOnly(bits=bits, block=64).run(model, Context(model, target=TABLES))
    assert kinds(model) == ["GatherBlockQuantized"]
    assert Context(model).get(shapes).static(model.graph.outputs[0]) == (2, 3, 128)
    y = run(model, {"i": IDS})["y"]
    np.testing.assert_array_equal(
        y, in_blocks(W, form_of(W, bits, (64,)), np.float32).matrix(128)[IDS]
    )


@pytest.mark.parametrize(
    "head",
    ["y = MatMul(h, t)", "u = Identity(t) \n y = MatMul(h, u)"],
)
def test_a_tied_head_and_its_table_share_their_numbers(head):
    text = f"h = Gather(w, i) \n t = Transpose<perm = [1, 0]>(w) \n {head}"
    model = parse_model(text, inputs={"i": IDS}, constants={"w": W})
    WeightOnly(bits=8, block=64).run(model, Context(model, target=TABLES))
    assert sorted(kinds(model)) == ["GatherBlockQuantized", "MatMulNBits", "Reshape"]
    assert sum(v.const_value.nbytes for v in model.graph.initializers.values()) < 0.28 * W.nbytes
    stood_for = in_blocks(W, Form(8, 64), np.float32).matrix(128)
    for optimize_too in (False, True):  # the runtime folds the Reshape, or does not
        y = run(model, {"i": IDS}, optimize=optimize_too)["y"]
        np.testing.assert_allclose(y, stood_for[IDS] @ stood_for.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "layers", "left"),
    [
        ("y = Gather(w, i) \n z = Neg(w)", (), ["Gather", "Neg"]),
        ("y = Gather<axis = 1>(w, j)", (), ["Gather"]),
        ("y = Gather(v, i)", (), ["Gather"]),  # rows of 100
        ("y = Gather(w, i) \n z = Gather(w, j)", (), ["GatherBlockQuantized"] * 2),
        ("y = Gather(w, i) \n z = Gather(w, j)", (("y", 0),), ["Gather"] * 2),
        (
            "h = Gather(w, i) \n t = Transpose(w) \n y = MatMul(h, t)",
            (("h", 0),),
            ["Gather", "Transpose", "MatMul"],
        ),
        (
            "h = Gather(w, i) \n t = Transpose(w) \n y = MatMul(h, t)",
            (("y", 0),),
            ["Gather", "Transpose", "MatMul"],
        ),
    ],
)
def test_tables_that_are_read_as_floats_too_stay(text, layers, left):
    constants = {"w": W, "v": np.ascontiguousarray(W[:, :100])}
    inputs = {"i": IDS, "j": IDS % 100}
    model = parse_model(text, inputs=inputs, constants=constants)
    for node in model.graph:
        node.name = node.outputs[0].name
    ctx = Context(model, target=TABLES)
    WeightOnly(layers=layers).run(model, ctx)
    assert kinds(model) == left
