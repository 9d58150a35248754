import numpy as np
import pytest

from graphopt.analyses.linear import COMPUTED, Linear, bias_add, linear_of
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

# Sums of at most a few hundred float32 products against the runtime's.
TOLERANCE = 1e-4

#: text; shapes of x and w; out_axis, in_axis, out_channels, in_channels; what differs from x W.
FORMS = {
    "matmul": ("y = MatMul (x, w)", (2, 3, 4), (4, 6), (1, 0, 6, 4), {}),
    "matmul of rows of one": ("y = MatMul (x, w)", (5, 1, 4), (4, 6), (1, 0, 6, 4), {}),
    "matmul from the left": (
        "y = MatMul (w, x)",
        (2, 4, 3),
        (6, 4),
        (0, 1, 6, 4),
        {"data": 1, "at": 0, "x_axis": -2, "y_axis": -2},
    ),
    "matmul by a transposed weight": (
        "t = Transpose (w)  y = MatMul (x, t)",
        (2, 4),
        (6, 4),
        (1, 0, 6, 4),
        {},
    ),
    "matmul by a computed weight": (
        "t = Mul (w, w)  y = MatMul (x, t)",
        (2, 4),
        (4, 6),
        (1, 0, 6, 4),
        {},
    ),
    "gemm": (
        "y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)",
        (5, 4),
        (4, 6),
        (1, 0, 6, 4),
        {"alpha": 0.5, "beta": 2.0},
    ),
    "gemm transB": ("y = Gemm <transB = 1> (x, w, b)", (5, 4), (6, 4), (0, 1, 6, 4), {}),
    "gemm transA": (
        "y = Gemm <transA = 1> (x, w)",
        (4, 5),
        (4, 6),
        (1, 0, 6, 4),
        {"x_axis": -2},
    ),
    "fused matmul": (
        "y = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (x, w)",
        (2, 3, 4),
        (6, 4),
        (0, 1, 6, 4),
        {"alpha": 0.5},
    ),
    "fused matmul transA": (
        "y = com.microsoft.FusedMatMul <transA = 1> (x, w)",
        (2, 4, 3),
        (4, 6),
        (1, 0, 6, 4),
        {"x_axis": -2},
    ),
    "fused matmul from the left": (
        "y = com.microsoft.FusedMatMul <transA = 1, transB = 1> (w, x)",
        (2, 3, 4),
        (4, 6),
        (1, 0, 6, 4),
        {"data": 1, "at": 0, "y_axis": -2},
    ),
    "gather": (
        "y = Gather (w, i)",
        (),
        (7, 6),
        (1, 0, 6, 7),
        {"data": 1, "at": 0},
    ),
    "conv": ("y = Conv (x, w, b)", (2, 4, 3, 2), (6, 4, 3, 2), (0, 1, 6, 4), {}),
    "conv 1d": ("y = Conv (x, w, b)", (2, 4, 3), (6, 4, 3), (0, 1, 6, 4), {}),
    "conv 3d": ("y = Conv (x, w)", (1, 4, 1, 2, 3), (6, 4, 1, 2, 3), (0, 1, 6, 4), {}),
    "conv grouped": (
        "y = Conv <group = 2> (x, w, b)",
        (2, 4, 3, 3),
        (6, 2, 3, 3),
        (0, 1, 6, 4),
        {"groups": 2},
    ),
    "conv depthwise": (
        "y = Conv <group = 6> (x, w, b)",
        (2, 6, 3, 3),
        (6, 1, 3, 3),
        (0, 1, 6, 6),
        {"groups": 6},
    ),
    "transposed conv of one position": (
        "y = ConvTranspose (x, w, b)",
        (2, 4, 1, 1),
        (4, 6, 1, 1),
        (1, 0, 6, 4),
        {},
    ),
    "transposed conv grouped": (
        "y = ConvTranspose <group = 2> (x, w, b)",
        (2, 4, 1, 1),
        (4, 3, 1, 1),
        (1, 0, 6, 4),
        {"groups": 2},
    ),
}


def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def build(form):
    text, x, w, axes, more = FORMS[form]
    constants = {"w": normal(*w, seed=1)}
    if "b)" in text:
        constants["b"] = normal(axes[2], seed=2)
    feeds = {"x": normal(*x, seed=3)}
    inputs = {"x": x}
    if "i)" in text:
        feeds, inputs = {"i": np.array([3, 0, 3])}, {"i": np.zeros(3, np.int64)}
    if "Conv" in text:
        more = {"x_axis": 1, "y_axis": 1, **more}
    return parse_model(text, inputs=inputs, constants=constants), feeds, axes, more


def seen(model):
    (op,) = [o for o in map(linear_of, model.graph) if isinstance(o, Linear)]
    return op


def product(op, x, matrix):
    """W f(x) by NumPy, f(x) all that a kernel without padding and strides reads at once."""
    if op.node.op_type == "Gather":
        return np.eye(op.in_channels)[x] @ matrix[0].T
    if op.y_axis == 1:
        rows = x.reshape(len(x), op.groups, -1)
        return np.einsum("goi,ngi->ngo", matrix, rows).reshape(len(x), -1)
    y = np.moveaxis(x, op.x_axis, -1) @ matrix[0].T
    return np.moveaxis(y, -1, op.y_axis)


@pytest.mark.parametrize("form", FORMS)
def test_tells_axes_groups_transposes_and_scale(form):
    model, _, axes, more = build(form)
    op = seen(model)
    assert (op.out_axis, op.in_axis, op.out_channels, op.in_channels) == axes
    plain = {"data": 0, "at": 1, "x_axis": -1, "y_axis": -1, "groups": 1, "alpha": 1, "beta": 1}
    assert {k: getattr(op, k) for k in plain} == {**plain, **more}
    assert op.left is (op.y_axis == -2)
    assert op.turned is (op.x_axis != op.y_axis)
    assert not op.stacked
    assert op.kernel == (op.shape[2:] if "Conv" in op.node.op_type else ())


@pytest.mark.parametrize("form", FORMS)
def test_is_alpha_times_matrix_times_features_plus_bias(form):
    model, feeds, *_ = build(form)
    op = seen(model)
    (x,) = feeds.values()
    (expected,) = run(model, feeds).values()
    y = op.alpha * product(op, x, op.matrix().astype(np.float64))
    if op.bias is not None:
        y = y + op.beta * op.bias.const_value.numpy()
    np.testing.assert_allclose(y.reshape(expected.shape), expected, atol=TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_stored_undoes_matrix(form):
    op = seen(build(form)[0])
    np.testing.assert_array_equal(op.stored(op.matrix()), op.array())


@pytest.mark.parametrize("form", FORMS)
def test_scales_outputs_and_inputs(form):
    op = seen(build(form)[0])
    w, m = op.array(), op.matrix()
    s = normal(op.out_channels, seed=5).reshape(op.groups, -1, 1)
    np.testing.assert_allclose(op.matrix(op.scale_outputs(w, s.reshape(-1))), m * s, rtol=1e-6)
    t = normal(op.in_channels, seed=6)
    each = np.repeat(t.reshape(op.groups, 1, -1), m.shape[2] * op.groups // len(t), axis=2)
    np.testing.assert_allclose(op.matrix(op.scale_inputs(w, t)), m * each, rtol=1e-6)
    np.testing.assert_allclose(op.scale_outputs(w, np.array(2.0)), w * 2, rtol=1e-6)


@pytest.mark.parametrize("form", [f for f in FORMS if f != "gather"])
def test_a_shift_of_all_inputs_shifts_the_outputs(form):
    model, feeds, *_ = build(form)
    op = seen(model)
    t = normal(op.in_channels, seed=7)
    shape = [1] * feeds["x"].ndim
    shape[op.x_axis] = -1
    (before,) = run(model, feeds).values()
    (after,) = run(model, {"x": feeds["x"] + t.reshape(shape)}).values()
    shape[op.x_axis], shape[op.y_axis] = 1, -1
    shift = op.shift_inputs(op.array().astype(np.float64), t).reshape(shape)
    np.testing.assert_allclose(after - before, np.broadcast_to(shift, after.shape), atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
def test_gates_of_recurrent_layers_are_rows_of_one_matrix(kind, directions):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    direction = "bidirectional" if directions == 2 else "forward"
    constants = {
        "w": normal(directions, gates * 5, 3, seed=1),
        "r": normal(directions, gates * 5, 5, seed=2),
    }
    text = f'y = {kind} <hidden_size = 5, direction = "{direction}"> (x, w, r)'
    op = seen(parse_model(text, inputs={"x": (4, 2, 3)}, constants=constants))
    assert (op.out_channels, op.in_channels) == (directions * gates * 5, 3)
    assert op.bias is None
    assert not op.stacked
    np.testing.assert_array_equal(op.matrix()[0], constants["w"].reshape(-1, 3))
    np.testing.assert_array_equal(op.stored(op.matrix()), constants["w"])


@pytest.mark.parametrize(
    ("text", "left"), [("y = MatMul (x, w)", False), ("y = MatMul (w, x)", True)]
)
def test_a_stack_of_matrices_is_one_weight(text, left):
    model = parse_model(text, inputs={"x": (2, 4, 4)}, constants={"w": normal(2, 4, 4, seed=1)})
    op = seen(model)
    assert op.stacked
    assert op.left is left
    scaled = op.scale_outputs(op.array(), np.array([1.0, 2.0, 3.0, 4.0]))
    assert scaled[1, 3, 2] / op.array()[1, 3, 2] == pytest.approx(4 if left else 3)


@pytest.mark.parametrize(
    ("text", "inputs", "reason"),
    [
        ("y = Relu (x)", {"x": (2, 4)}, ""),
        ("y = MatMul (x, x)", {"x": (4, 4)}, ""),
        ("y = MatMul (w, w)", {"x": (4, 4)}, ""),
        ("y = Gemm (w, w)", {"x": (4, 4)}, ""),
        ("y = com.example.MatMul (x, w)", {"x": (4, 4)}, ""),
        ("y = MatMul (x, v)", {"x": (4, 4)}, "a vector"),
        ("y = MatMul (w, x)", {"x": (4,)}, "multiplies a vector"),
        ("y = Gemm (x, x)", {"x": (4, 4)}, COMPUTED),
        ("y = Conv (x, x)", {"x": (4, 4, 3)}, COMPUTED),
        ("y = ConvTranspose (x, x)", {"x": (4, 4, 3)}, COMPUTED),
        ("t = RandomNormalLike (w)  y = Gemm (x, t)", {"x": (4, 4)}, COMPUTED),
        ("y = Gather <axis = 1> (w, i)", {"i": np.zeros(3, np.int64)}, "does not look up rows"),
        (
            "y = com.microsoft.FusedMatMul <transBatchA = 1> (x, w)",
            {"x": (4, 4, 4)},
            "batch axes are transposed",
        ),
    ],
)
def test_says_why_not(text, inputs, reason):
    constants = {"w": normal(4, 4, seed=1), "v": normal(4, seed=2)}
    model = parse_model(text, inputs=inputs, constants=constants)
    found = linear_of(next(n for n in model.graph if "y" in {o.name for o in n.outputs}))
    assert isinstance(found, str)
    assert reason in found
    assert bool(found) is bool(reason)


def test_a_weight_that_callers_may_override_is_computed():
    model = parse_model(
        "y = Gemm (x, w)", inputs={"x": (4, 4)}, constants={"w": normal(4, 4, seed=1)}
    )
    model.graph.inputs.append(model.graph.initializers["w"])
    assert linear_of(next(iter(model.graph))) == COMPUTED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = MatMul (x, w)", False),
        ("y = MatMul (x, w)  z = Gemm (x, w)", True),
        ("t = Transpose (w)  y = MatMul (x, t)", False),
        ("t = Transpose (w)  y = MatMul (x, t)  z = Gather (w, i)", True),
        ("t = Transpose (w)  y = MatMul (x, t)  z = MatMul (x, t)", True),
    ],
)
def test_a_weight_read_elsewhere_is_shared(text, expected):
    model = parse_model(
        text,
        inputs={"x": (4, 4), "i": np.zeros(3, np.int64)},
        constants={"w": normal(4, 4, seed=1)},
    )
    ops = [o for o in map(linear_of, model.graph) if isinstance(o, Linear)]
    assert [o.shared for o in ops] == [expected] * len(ops)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a = MatMul (x, w)  y = Add (a, b)", True),
        ("a = MatMul (x, w)  y = Add (b, a)", True),
        ("a = MatMul (x, w)  c = Neg (b)  y = Add (a, c)", True),
        ("a = MatMul (x, w)  y = Add (a, s)", False),
        ("a = MatMul (x, w)  y = Add (a, x)", False),
        ("a = MatMul (x, w)  y = Mul (a, b)", False),
        ("a = MatMul (x, w)  y = Add (a, b)  z = Neg (a)", False),
    ],
)
def test_finds_the_add_that_holds_the_bias(text, found):
    constants = {"w": normal(4, 4, seed=1), "b": normal(4, seed=2), "s": normal(1, seed=3)}
    model = parse_model(text, inputs={"x": (3, 4)}, constants=constants)
    op = next(o for o in map(linear_of, model.graph) if isinstance(o, Linear))
    add = bias_add(op)
    assert (add is not None) is found
    assert add is None or add.op_type == "Add"
