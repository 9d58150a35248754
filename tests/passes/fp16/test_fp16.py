import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.fp16 import Fp16
from graphopt.passes.fp16.islands import LARGEST

from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.target import Target
from graphopt.testing import check, parse_model

HALF = Target("t", precisions=("float32", "float16"))
#: float16 rounds to 2^-11 (0.05 %); a product of rounded operands and a rounded sum stay below four
#: times that.
TOLERANCE = 2.0**-9


def normal(*shape, seed=0, scale=1.0):
    array = np.random.default_rng(seed).standard_normal(shape) * scale
    return array.astype(np.float32)


def half(text, inputs, constants, **options):
    model = parse_model(text, inputs=inputs, constants=constants)
    arrays = {k: v for k, v in inputs.items() if isinstance(v, np.ndarray)}
    return check(
        Fp16(**options.pop("options", {})),
        model,
        inputs=inputs,
        target=HALF,
        samples=Samples([arrays]),
        tolerance=TOLERANCE,
        **options,
    )


def types(model):
    return {n.op_type: n.outputs[0].dtype for n in model.graph}


def casts(model):
    return sum(n.op_type == "Cast" for n in model.graph)


X = normal(4, 8)
W = normal(8, 8, seed=1)


def test_a_network_becomes_half_between_one_cast_in_and_one_out():
    model = half("a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w)", {"x": X}, {"w": W})
    assert types(model)["MatMul"] == ir.DataType.FLOAT16
    assert casts(model) == 2
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert [v.dtype for v in model.graph.initializers.values()] == [ir.DataType.FLOAT16]


@pytest.mark.parametrize(
    ("x", "w", "says"),
    [
        (X * 1e4, W * 10, "reaches"),
        (X, W * 1e6, "holds"),
        (X, W * 1e-7, "too small"),
        (X * 1e-9, W, "stays below"),
    ],
)
def test_what_does_not_fit_stays_float_with_the_reason(x, w, says):
    model = parse_model("y = MatMul(x, w)", inputs={"x": x}, constants={"w": w})
    check(Fp16(), model, inputs={"x": x}, target=HALF, samples=Samples([{"x": x}]), because=says)


def test_an_island_stays_float_between_halves():
    text = "a = MatMul(x, w)  b = Mul(a, big)  c = Div(b, big)  y = MatMul(c, w)"
    model = half(text, {"x": X}, {"w": W, "big": np.float32([1e5])})
    assert types(model)["Mul"] == ir.DataType.FLOAT
    assert [n.outputs[0].dtype for n in model.graph if n.op_type == "MatMul"] == [
        ir.DataType.FLOAT16
    ] * 2
    assert casts(model) == 4


def test_a_region_without_matrices_is_not_worth_its_casts():
    half("a = Relu(x)  y = Add(a, a)", {"x": X}, {}, unchanged=True)


def test_a_mask_stands_for_never_and_stays_finite():
    """Where(keep, s, -3.4e38) into Softmax: a fully masked row must not become NaN."""
    keep = np.ones((4, 8), bool)
    keep[0, 3:] = False
    keep[1] = False
    text = "s = MatMul(x, w)  m = Where(keep, s, never)  p = Softmax(m)  y = MatMul(p, w)"
    never = np.float32(np.finfo(np.float32).min)
    model = half(text, {"x": X, "keep": keep}, {"w": W, "never": never})
    assert types(model)["Where"] == ir.DataType.FLOAT16
    outputs = run(model, {"x": X, "keep": keep})
    assert np.isfinite(outputs["y"]).all()


def test_the_same_number_outside_of_a_mask_is_no_mask():
    text = "s = MatMul(x, w)  y = Where(keep, s, never)"
    keep = np.arange(32).reshape(4, 8) % 2 == 0
    model = half(text, {"x": X, "keep": keep}, {"w": W, "never": np.float32(-1e9)})
    assert types(model)["Where"] == ir.DataType.FLOAT


def test_outputs_that_are_float_by_definition_stay_so():
    """LayerNormalization's mean is float32 whatever its input is."""
    text = "a = MatMul(x, w)  n, mean = LayerNormalization(a, g)  y = MatMul(n, w)  z = Relu(mean)"
    model = half(text, {"x": X}, {"w": W, "g": np.ones(8, np.float32)})
    norm = next(n for n in model.graph if n.op_type == "LayerNormalization")
    assert [o.dtype for o in norm.outputs] == [ir.DataType.FLOAT16, ir.DataType.FLOAT]


def test_inputs_that_are_float_by_definition_stay_so():
    text = 'a = Conv(x, k)  y = Resize <mode = "nearest"> (a, , scales)'
    image, kernel = normal(1, 2, 4, 4), normal(2, 2, 1, 1, seed=1)
    constants = {"k": kernel, "scales": np.float32([1, 1, 2, 2])}
    model = half(text, {"x": image}, constants)
    resize = next(n for n in model.graph if n.op_type == "Resize")
    assert resize.outputs[0].dtype == ir.DataType.FLOAT16
    assert resize.inputs[2].dtype == ir.DataType.FLOAT


def test_an_output_that_is_also_read_keeps_its_name():
    model = parse_model("a = MatMul(x, w)  y = Relu(a)", inputs={"x": X}, constants={"w": W})
    model.graph.outputs.append(next(iter(model.graph)).outputs[0])
    check(
        Fp16(),
        model,
        inputs={"x": X},
        target=HALF,
        samples=Samples([{"x": X}]),
        tolerance=TOLERANCE,
    )
    assert [o.name for o in model.graph.outputs] == ["y", "a"]
    assert all(o.dtype == ir.DataType.FLOAT for o in model.graph.outputs)


def test_layers_that_are_to_stay_float():
    half(
        "y = MatMul(x, w)",
        {"x": X},
        {"w": W},
        options={"layers": (("Mat*", "float"),)},
        because="layers= says so",
    )


def test_a_target_without_half_precision_is_left_alone():
    model = parse_model("y = MatMul(x, w)", inputs={"x": X}, constants={"w": W})
    ctx = Context(model, target=Target("t"), samples=Samples([{"x": X}]))
    assert Fp16().run(model, ctx) == 0
    assert ctx.notes == ["t gains nothing from half precision."]


def test_without_samples_weights_alone_decide():
    model = parse_model("y = MatMul(x, w)", inputs={"x": X}, constants={"w": W * 1e6})
    ctx = Context(model, target=HALF)
    assert Fp16().run(model, ctx) == 0
    assert any("Without --samples" in n for n in ctx.notes)


def test_denied_nodes_stay_float():
    model = parse_model("a = MatMul(x, w)  y = MatMul(a, w)", inputs={"x": X}, constants={"w": W})
    expected = run(model, {"x": X})["y"]
    first = next(iter(model.graph)).name
    ctx = Context(model, target=HALF, allow=lambda edit: edit.node != first)
    assert Fp16().run(model, ctx) == 1
    got = run(model, {"x": X})["y"]
    assert np.linalg.norm(got - expected) <= TOLERANCE * np.linalg.norm(expected)
    assert LARGEST > 3e4


COUNT = "s = Shape (x)  n = Gather <axis = 0> (s, one)  r = Range (zero, n, one)"
ANGLE = f"{COUNT}  f = Cast <to = 1> (r)  u = Unsqueeze (f, one)"


@pytest.mark.parametrize(
    "text",
    [
        f"{ANGLE}  t = Mul (u, rates)  c = Cos (t)  a = MatMul (x, w)  b = Mul (a, c)",
        f"{ANGLE}  v = Unsqueeze (rates, zero)  t = MatMul (u, v)  c = Sin (t)  a = MatMul (x, w)  "
        "b = Add (a, c)",
        "a = MatMul (x, w)  g = Sigmoid (a)  t = CumSum (g, one)  b = Sin (t)",
    ],
    ids=["angles", "outer product", "cumulative sum"],
)
def test_positions_stay_in_float(text):
    """Half counts to 2048: angles beyond would be off by whole turns."""
    rng = np.random.default_rng(0)
    constants = {
        "one": np.array(1),
        "zero": np.array(0),
        "rates": (1e-4 ** (np.arange(8) / 8)).astype(np.float32),
        "w": (rng.normal(size=(8, 8)) / 4).astype(np.float32),
    }
    model = parse_model(
        f"{text}  y = MatMul (b, w)", constants=constants, inputs={"x": (1, "n", 8)}
    )
    copy = model.clone()
    assert Fp16().run(copy, Context(copy, target=find_target("cuda"))) >= 2
    x = rng.normal(size=(1, 5000, 8)).astype(np.float32)
    want, got = (run(m, {"x": x})["y"] for m in (model, copy))
    assert np.linalg.norm(want - got) < 0.01 * np.linalg.norm(want)


def test_a_product_whose_terms_cancel_stays_float():
    """Every column of w sums to nothing, and rows of x are nearly one number."""
    w = W - W.mean(axis=0)
    x = np.ones_like(X) + 1e-4 * X
    text = "a = MatMul(x, w)  b = MatMul(z, v)"
    model = parse_model(text, inputs={"x": x, "z": X}, constants={"w": w, "v": W})
    ctx = Context(model, target=HALF, samples=Samples([{"x": x, "z": X}]))
    assert Fp16().run(model, ctx) == 1
    assert "its output moves by" in ctx.refusals[0].reason
    assert [n.outputs[0].dtype for n in model.graph if n.op_type == "MatMul"] == [
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
    ]
