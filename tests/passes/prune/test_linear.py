import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.prune.linear import Refittable, refittable

from graphopt.execution.runtime import run
from graphopt.testing import parse_model

# Sums of at most a few hundred float32 products against the runtime's.
TOLERANCE = 1e-4

CASES = {
    "conv": ("y = Conv <pads=[1, 1, 1, 1]> (x, w, b)", (2, 4, 7, 6), (6, 4, 3, 3), 6),
    "conv without bias": ("y = Conv (x, w)", (2, 4, 7, 6), (6, 4, 3, 3), 0),
    "conv strided": (
        "y = Conv <pads=[0, 1, 2, 1], strides=[2, 3]> (x, w, b)",
        (2, 4, 9, 8),
        (6, 4, 3, 2),
        6,
    ),
    "conv dilated": ("y = Conv <dilations=[2, 1]> (x, w, b)", (1, 2, 9, 8), (3, 2, 3, 3), 3),
    "conv same upper": (
        'y = Conv <auto_pad="SAME_UPPER", strides=[2, 2]> (x, w, b)',
        (1, 2, 7, 8),
        (3, 2, 4, 3),
        3,
    ),
    "conv same lower": (
        'y = Conv <auto_pad="SAME_LOWER"> (x, w, b)',
        (1, 2, 7, 8),
        (3, 2, 4, 2),
        3,
    ),
    "conv grouped": ("y = Conv <group=2> (x, w, b)", (2, 4, 5, 5), (6, 2, 3, 3), 6),
    "conv depthwise": ("y = Conv <group=4> (x, w, b)", (2, 4, 5, 5), (4, 1, 3, 3), 4),
    "conv 1d": ("y = Conv <pads=[2, 0]> (x, w, b)", (2, 4, 9), (6, 4, 3), 6),
    "conv 3d": ("y = Conv (x, w, b)", (1, 2, 4, 5, 4), (3, 2, 2, 3, 1), 3),
    "transposed": ("y = ConvTranspose (x, w, b)", (2, 4, 5, 5), (4, 6, 3, 3), 6),
    "transposed strided": (
        "y = ConvTranspose <strides=[2, 3], pads=[1, 0, 0, 2], output_padding=[1, 1]> (x, w, b)",
        (2, 4, 5, 4),
        (4, 6, 3, 4),
        6,
    ),
    "transposed grouped": (
        "y = ConvTranspose <group=2, dilations=[1, 2], strides=[2, 2]> (x, w, b)",
        (2, 4, 5, 5),
        (4, 3, 3, 3),
        6,
    ),
    "batch norm": ("y = BatchNormalization (x, w, b, m, v)", (2, 6, 4, 3), (6,), 6),
    "gemm": ("y = Gemm <alpha=0.5, beta=2.0> (x, w, b)", (5, 4), (4, 6), 6),
    "gemm transposed": ("y = Gemm <transB=1> (x, w, b)", (5, 4), (6, 4), 6),
    "gemm scalar bias": ("y = Gemm <transB=1> (x, w, b)", (5, 4), (6, 4), 1),
    "matmul": ("y = MatMul (x, w)", (2, 3, 4), (4, 6), 0),
    "matmul with bias": ("a = MatMul (x, w)  y = Add (a, b)", (2, 3, 4), (4, 6), 6),
    "fused matmul": (
        "y = com.microsoft.FusedMatMul <alpha=0.5, transB=1> (x, w)",
        (2, 3, 4),
        (6, 4),
        0,
    ),
    "matmul by a transposed weight": (
        "t = Transpose <perm=[1, 0]> (w)  y = MatMul (x, t)",
        (2, 3, 4),
        (6, 4),
        0,
    ),
}


def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def build(case):
    text, x, w, b = CASES[case]
    constants = {"w": normal(*w, seed=1)} | ({"b": normal(b, seed=2)} if b else {})
    if "Batch" in text:
        constants |= {"m": normal(*w, seed=4), "v": normal(*w, seed=5) ** 2 + 0.5}
    model = parse_model(text, inputs={"x": x}, constants=constants)
    op = next(o for o in map(refittable, model.graph) if isinstance(o, Refittable))
    return model, op, {"x": normal(*x, seed=3)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("some", [False, True])
def test_is_weight_times_features(case, some):
    model, op, feeds = build(case)
    (y,) = run(model, feeds).values()
    at = np.array([1, 0]) if some and op.channel_axis == 1 else None
    f, rows = op.features(feeds["x"], y.shape, at), op.channels(y, at)
    bias = op.bias().reshape(op.groups, 1, -1)
    np.testing.assert_allclose(f @ op.matrix().transpose(0, 2, 1) + bias, rows, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_stores_what_it_is_given(case):
    model, op, feeds = build(case)
    (before,) = run(model, feeds).values()
    op.store(model, op.matrix() * 2, op.bias() * 2 if op.can_shift else None)
    (after,) = run(model, feeds).values()
    np.testing.assert_allclose(after, before * 2, atol=TOLERANCE)
    live = {v for n in model.graph for v in n.inputs}
    assert all(v in live for v in model.graph.initializers.values()), "an old weight is left"


def test_a_bias_can_be_added():
    model, op, feeds = build("conv without bias")
    (before,) = run(model, feeds).values()
    op.store(model, op.matrix(), np.ones(6))
    (after,) = run(model, feeds).values()
    np.testing.assert_allclose(after, before + 1, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("text", "x", "w", "reason"),
    [
        ("y = MatMul (x, w)", (2, 3, 4), (2, 4, 6), "batched"),
        ("y = Gemm <transA=1> (x, w)", (4, 5), (4, 6), "transposed"),
        ('y = ConvTranspose <auto_pad="SAME_UPPER"> (x, w)', (1, 4, 5), (4, 6, 3), "padding"),
        ("y = MatMul (w, x)", (4, 3), (6, 4), "on the left"),
        ("y = com.microsoft.FusedMatMul <transA=1> (x, w)", (4, 5), (4, 6), "transposed"),
        ("y = Conv (x, x)", (4, 4, 3), None, "computed"),
        ("y = Mul (x, w)", (2, 3), (2, 3), ""),
        ("y = MatMul (x, x)", (3, 3), None, ""),
    ],
)
def test_leaves_alone(text, x, w, reason):
    constants = {"w": normal(*w, seed=1)} if w else {}
    model = parse_model(text, inputs={"x": x}, constants=constants)
    found = refittable(next(iter(model.graph)))
    assert isinstance(found, str)
    assert reason in found


def test_a_bias_used_by_others_is_not_changed_for_them():
    text = "a = MatMul (x, w)  b = Add (a, s)  y = Mul (b, s)"
    constants = {"w": normal(4, 6, seed=1), "s": normal(6, seed=2)}
    model = parse_model(text, inputs={"x": (2, 4)}, constants=constants)
    op = refittable(next(iter(model.graph)))
    assert isinstance(op, Refittable)
    assert isinstance(model, ir.Model)
    op.store(model, op.matrix(), np.zeros(6))
    assert [v.name for v in next(n for n in model.graph if n.op_type == "Mul").inputs] == ["b", "s"]
