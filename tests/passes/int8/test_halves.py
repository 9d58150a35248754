"""Models in half precision on the CPU: integers as for floats, the model's own types outside."""

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.int8 import Int8
from graphopt.passes.int8.halves import close_halves, open_halves

import graphopt
from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.target import Target
from graphopt.testing import parse_model

CPU = find_target("cpu")
RNG = np.random.default_rng(0)
W = (RNG.standard_normal((64, 64)) / 8).astype(np.float16)
V = (RNG.standard_normal((64, 24)) / 8).astype(np.float16)
C = np.full(1, 0.5, np.float16)
TEXT = """a = MatMul(x, w)  b = Add(a, c)
r = Relu(b)  f = Cast <to=1> (r)  h = Cast <to=10> (f)  y = MatMul(h, v)"""


def halves(text=TEXT):
    x = RNG.standard_normal((9, 64)).astype(np.float16)
    return parse_model(text, inputs={"x": x}, constants={"w": W, "v": V, "c": C})


def test_opened_it_computes_floats_and_closed_it_is_stored_in_halves():
    model = halves()
    x = RNG.standard_normal((9, 64)).astype(np.float16)
    want = run(model, {"x": x})["y"]
    made = model.clone()
    names = open_halves(made, Context(made, target=CPU))
    assert names == {"w", "v", "c"}
    products = [n for n in made.graph if n.op_type == "MatMul"]
    assert {v.dtype for n in products for v in n.outputs} == {ir.DataType.FLOAT}
    assert [v.dtype for v in (*made.graph.inputs, *made.graph.outputs)] == [
        ir.DataType.FLOAT16, ir.DataType.FLOAT16,
    ]  # fmt: skip
    assert [v.name for v in made.graph.outputs] == ["y"]
    np.testing.assert_allclose(run(made, {"x": x})["y"], want, rtol=2e-3, atol=2e-3)
    close_halves(made, names)
    held = {n: v.const_value.dtype for n, v in made.graph.initializers.items()}
    assert held.pop("c") == ir.DataType.FLOAT  # too small to be worth a Cast
    assert set(held.values()) == {ir.DataType.FLOAT16}
    np.testing.assert_allclose(run(made, {"x": x})["y"], want, rtol=2e-3, atol=2e-3)


def test_where_the_target_has_halves_nothing_is_opened():
    model = halves()
    fast = Target("t", precisions=("float32", "float16"), int8=CPU.int8)
    assert open_halves(model, Context(model, target=fast)) is None
    plain = parse_model("y = Relu(x)", inputs={"x": (2, 3)}, constants={})
    assert open_halves(plain, Context(plain, target=CPU)) is None


@pytest.mark.parametrize("given", [True, False])
def test_int8_makes_integers_of_them(given):
    model = halves()
    samples = [{"x": RNG.standard_normal((9, 64)).astype(np.float16)} for _ in range(8)]
    result = graphopt.optimize(
        model, "int8", samples=samples if given else None, target="cpu", measure=False
    )
    (step,) = result.report.steps
    assert step.status == "kept"
    kinds = [n.op_type for n in result.model.graph]
    assert given or "MatMul" not in kinds  # the guard may leave one of them to floats
    assert result.report.after.bytes < result.report.before.bytes
    x = samples[0]["x"]
    want, got = (run(m, {"x": x})["y"] for m in (model, result.model))
    assert got.dtype == np.float16
    assert 0 < np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


def test_nothing_is_opened_where_nothing_becomes_integer():
    model = halves("y = Relu(x)")
    ctx = Context(model, target=CPU)
    assert Int8().run(model, ctx) == 0
    assert [n.op_type for n in ctx.model.graph] == ["Relu"]
