import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.int8 import Int8

from graphopt import Budget, optimize
from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.target import ONNX, Int8Scheme
from graphopt.testing import check, parse_model

# Weights are rounded to 1/127 of the largest per column, activations to 1/255 of their range.
TOLERANCE = 0.03

# what this processor multiplies without saturating: 7 bits of weights before VNNI
SATURATES = find_target("cpu").int8.reduce_range
DYNAMIC = Int8Scheme(dynamic=frozenset({"Gemm", "LSTM", "MatMul"}), reduce_range=SATURATES)
PLAIN = dataclasses.replace(ONNX, int8=DYNAMIC)
FUSED = dataclasses.replace(
    PLAIN,
    operators=frozenset(
        f"com.microsoft:{n}"
        for n in ("MatMulIntegerToFloat", "DynamicQuantizeLSTM", "GatherBlockQuantized")
    ),
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operators(model):
    return [n.op_type for n in model.graph]


def test_products_that_share_an_activation_share_its_quantization():
    before = "q = MatMul(x, w)  k = MatMul(x, v)  y = Add(q, k)"
    constants = {"w": normal(16, 8), "v": normal(16, 8, seed=1)}
    model = check(
        Int8(),
        before,
        inputs={"x": (2, 5, 16)},
        constants=constants,
        target=FUSED,
        tolerance=TOLERANCE,
    )
    assert operators(model) == [
        "DynamicQuantizeLinear",
        "MatMulIntegerToFloat",
        "MatMulIntegerToFloat",
        "Add",
    ]


def test_a_bias_is_added_inside():
    before = "q = MatMul(x, w)  y = Add(b, q)"
    constants = {"w": normal(16, 8), "b": normal(1, 8, seed=1)}
    model = check(
        Int8(),
        before,
        inputs={"x": (2, 5, 16)},
        constants=constants,
        target=FUSED,
        tolerance=TOLERANCE,
    )
    assert operators(model) == ["DynamicQuantizeLinear", "MatMulIntegerToFloat"]
    assert [o.name for o in model.graph.outputs] == ["y"]


def test_an_addend_wider_than_the_product_is_no_bias():
    before = "q = MatMul(x, w)  y = Add(q, b)"
    constants = {"w": normal(16, 1), "b": normal(8, seed=1)}
    model = check(
        Int8(),
        before,
        inputs={"x": (5, 16)},
        constants=constants,
        target=FUSED,
        tolerance=TOLERANCE,
    )
    assert operators(model)[-1] == "Add"


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_has_a_standard_form_too(trans):
    before = f"y = Gemm <transB={trans}> (x, w, b)"
    constants = {"w": normal(*((8, 16) if trans else (16, 8))), "b": normal(8, seed=1)}
    for target in (PLAIN, FUSED):
        model = check(
            Int8(),
            before,
            inputs={"x": (5, 16)},
            constants=constants,
            target=target,
            tolerance=TOLERANCE,
        )
        assert "MatMulInteger" in operators(model) or target is FUSED


def test_a_product_of_integers_stays_static():
    before = "c = Conv(x, v)  f = Flatten(c)  y = MatMul(f, w)"
    constants = {"v": normal(4, 2, 1, 1), "w": normal(36, 8)}
    inputs = {"x": normal(1, 2, 3, 3)}
    model = check(
        Int8(),
        before,
        inputs=inputs,
        constants=constants,
        target=FUSED,
        samples=Given(inputs),
        tolerance=TOLERANCE,
    )
    assert "DynamicQuantizeLinear" not in operators(model)
    assert operators(model)[-1] == "MatMulIntegerToFloat"


class Given:
    synthetic = False

    def __init__(self, *feeds):
        self.feeds = feeds

    def __iter__(self):
        return iter(self.feeds)


LSTM = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[5, 2, 16] x) => (float[5, 2, 2, 8] y) {
    y, h, c = LSTM <hidden_size=8, direction="bidirectional"> (x, w, r, b)
}"""


def lstm_model():
    model = ir.from_onnx_text(LSTM)
    parts = {"w": normal(2, 32, 16), "r": normal(2, 32, 8, seed=1), "b": normal(2, 64, seed=2)}
    values = {v.name: v for n in model.graph for v in n.inputs if v is not None}
    for name, array in parts.items():
        values[name].const_value = ir.tensor(array * 0.3, name=name)
        values[name].dtype = ir.DataType.FLOAT
        model.graph.register_initializer(values[name])
    return model


def test_lstm():
    model = lstm_model()
    check(Int8(), model, inputs={"x": (5, 2, 16)}, target=FUSED, tolerance=TOLERANCE)
    assert operators(model) == ["DynamicQuantizeLSTM"]


@pytest.mark.parametrize(("spread", "ranks"), [(0.0, (1, 1)), (1.0, (2, 1))])
def test_rows_of_an_lstm_have_scales_of_their_own_where_that_tells(spread, ranks):
    model = lstm_model()
    rows = np.exp(normal(2, 32, 1, seed=5) * spread)
    for name, scale in (("w", rows), ("r", 1.0)):
        value = model.graph.initializers[name]
        even = (
            np.random.default_rng(6).uniform(-1, 1, value.const_value.shape.numpy()) * scale * 0.1
        )
        value.const_value = ir.tensor(even.astype(np.float32), name=name)
    check(Int8(), model, inputs={"x": (5, 2, 16)}, target=FUSED, tolerance=TOLERANCE)
    (node,) = model.graph
    assert tuple(len(node.inputs[k].const_value.shape) for k in (8, 10)) == ranks


def test_lstm_where_the_target_has_none():
    check(
        Int8(),
        lstm_model(),
        inputs={"x": (5, 2, 16)},
        target=PLAIN,
        because="the target has no integer LSTM",
    )


@pytest.mark.parametrize("width", [32, 24, 20])
@pytest.mark.parametrize("target", [PLAIN, FUSED], ids=["plain", "fused"])
def test_tables(width, target):
    table = normal(512, width) * np.exp(normal(512, 1, seed=3))  # rows of very different size
    before = "y = Gather(t, i)"
    ids = np.arange(0, 512, 7).reshape(2, -1)
    model = parse_model(before, inputs={"i": ids}, constants={"t": table.astype(np.float32)})
    expected = run(model, {"i": ids})["y"]
    assert Int8().run(model, Context(model, target=target)) == 1
    got = run(model, {"i": ids})["y"]
    error = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < 0.012  # each row has a scale of its own: 1/254 of its peak at most
    assert max(v.const_value.nbytes for v in model.graph.initializers.values()) == table.size


def test_a_small_table_stays_float():
    check(
        Int8(),
        "y = Gather(t, i)",
        unchanged=True,
        inputs={"i": np.arange(4)},
        constants={"t": normal(10, 16)},
        target=FUSED,
    )


def test_weights_computed_from_constants_are_folded_first():
    before = "a = Concat <axis=1> (u, v)  y = MatMul(x, a)"
    constants = {"u": normal(16, 8), "v": normal(16, 8, seed=1)}
    model = check(
        Int8(),
        before,
        inputs={"x": (5, 16)},
        constants=constants,
        target=FUSED,
        tolerance=TOLERANCE,
    )
    assert operators(model) == ["DynamicQuantizeLinear", "MatMulIntegerToFloat"]


def test_what_computed_weights_is_not_stored_once_it_is_gone():
    """Gates in another order: what reorders them would be stored in integers, were it not dead."""
    text = """a, b = Split <axis=0, num_outputs=2> (u)  c = Concat <axis=0> (b, a)
    w = Unsqueeze(c, zero)  y, h, s = LSTM <hidden_size=32> (x, w, r)"""
    model = parse_model(
        text,
        inputs={"x": (6, 1, 64)},
        constants={"u": normal(128, 64) / 8, "r": normal(1, 128, 32) / 8, "zero": np.array([0])},
    )
    before = run(model, {"x": normal(6, 1, 64)})["y"]
    ctx = Context(model, target=find_target("cpu"))
    assert Int8().run(model, ctx) > 0
    assert operators(model) == ["DynamicQuantizeLSTM"]
    assert not any("left in float" in note for note in ctx.notes), ctx.notes
    got = run(model, {"x": normal(6, 1, 64)})["y"]
    assert np.abs(got - before).max() < 0.1


@pytest.mark.parametrize(("columns", "integers"), [(64, 2), (4096, 1)])
def test_what_is_computed_from_little_stays_so_where_its_integers_outweigh_the_others(
    columns, integers
):
    """A matrix of 16 rows tiled from 16 numbers, beside one of 16 x 64 that is held."""
    model = parse_model(
        "h = MatMul(x, w)  a = Tile(u, n)  y = MatMul(h, a)",
        inputs={"x": (5, 64)},
        constants={"w": normal(64, 16), "u": normal(16, 1), "n": np.array([1, columns])},
    )
    ctx = Context(model, target=FUSED)
    Int8().run(model, ctx)
    assert operators(model).count("MatMulIntegerToFloat") == integers
    assert ("Tile" in operators(model)) == (integers == 1)


def test_without_samples_the_report_says_what_is_missing():
    model = parse_model(
        "y = Conv(x, w)", inputs={"x": (1, 4, 5, 5)}, constants={"w": normal(4, 4, 1, 1)}
    )
    ctx = Context(model, target=FUSED)
    assert Int8().run(model, ctx) == 0
    assert any("Without --samples" in n for n in ctx.notes)
    assert any("without samples" in r.reason for r in ctx.refusals)


@pytest.mark.parametrize("head", ["MatMul(h, u)", "Gemm <transB=1> (h, t)"])
@pytest.mark.parametrize("target", [PLAIN, FUSED])
def test_a_tied_table_is_stored_once(head, target):
    """GPT-2: the embedding table is the head's weight; its int8 rows were in the file twice."""
    before = f"u = Transpose <perm=[1, 0]> (t)  e = Gather(t, i)  h = Relu(e)  y = {head}"
    before = before if "u)" in head else before.removeprefix("u = Transpose <perm=[1, 0]> (t)  ")
    model = check(
        Int8(),
        before,
        inputs={"i": np.array([0, 7, 199])},
        constants={"t": normal(200, 64)},
        target=target,
        tolerance=TOLERANCE,
    )
    stored = [v.const_value for v in model.graph.initializers.values()]
    assert sum(t.nbytes for t in stored if t.size >= 200 * 64) == 200 * 64


def test_an_untied_table_keeps_its_own_scales():
    model = check(
        Int8(),
        "e = Gather(t, i)  h = Relu(e)  y = MatMul(h, w)",
        inputs={"i": np.array([0, 7, 199])},
        constants={"t": normal(200, 64), "w": normal(64, 200, seed=1)},
        target=FUSED,
        tolerance=TOLERANCE,
    )
    assert "GatherBlockQuantized" in operators(model)
    assert "Transpose" not in operators(model)


def worst(result):
    return max(e.rel_l2 for e in result.report.steps[0].error_vs_source.values())


def spectrum(**options):
    """The logarithm of the powers in bands, as what recognizes speech begins with."""
    text = "f = MatMul(x, w)  p = Mul(f, f)  b = MatMul(p, v)  c = Max(b, e)  y = Log(c)"
    constants = {"w": normal(64, 64), "v": np.abs(normal(64, 32)) ** 8, "e": np.float32(1e-7)}
    constants["w"] *= np.geomspace(1, 1e-4, 64, dtype=np.float32)
    constants["v"] *= np.eye(64, 32, dtype=np.float32) + np.eye(64, 32, -32, dtype=np.float32)
    model = parse_model(text, inputs={"x": ("n", 64)}, constants=constants)
    return optimize(model, "int8", measure=False, **options)


def test_powers_of_a_spectrum_are_no_integers_where_nothing_says_how_large_they_are():
    """Ranges are found in each run, and most of a spectrum is far below its peak."""
    result = spectrum()
    assert worst(result) < 0.1
    assert any("went back to float" in note for note in result.report.steps[0].notes)


def test_who_lifts_the_limits_gets_integers():
    result = spectrum(budget=Budget(max_disagreement=np.inf))
    assert worst(result) > 0.1
