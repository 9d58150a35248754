"""Depth: which branches are found, which one goes, how what is left is repaired."""

import numpy as np
import pytest
from graphopt.passes.depth import Depth

from graphopt import Budget, optimize
from graphopt.analyses.residual import residuals
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.testing import parse_model

RNG = np.random.default_rng(5)
INPUTS = {"x": ("N", 6)}


def weights(**scales):
    """Square matrices w, and v by which each branch ends, of the given scales."""
    made = {}
    for name, scale in scales.items():
        made[f"w{name}"] = RNG.standard_normal((6, 6)).astype(np.float32)
        made[f"v{name}"] = (scale * RNG.standard_normal((6, 6))).astype(np.float32)
    return made


def block(name, x, y):
    return f"""m{name} = MatMul({x}, w{name})  r{name} = Relu(m{name})
        f{name} = MatMul(r{name}, v{name})  {y} = Add({x}, f{name})"""


def stack(**scales):
    text = block("a", "x", "p") + block("b", "p", "q") + block("c", "q", "y")
    return parse_model(text, inputs=INPUTS, constants=weights(**scales))


def samples(n=8, rows=32):
    return Samples([{"x": RNG.standard_normal((rows, 6)).astype(np.float32)} for _ in range(n)])


def sums(model):
    return [r.node.outputs[0].name for r in residuals(Context(model))]


def test_blocks_are_found_in_order_with_their_streams():
    found = residuals(Context(stack(a=1, b=1, c=1)))
    assert [(r.stream.name, r.node.outputs[0].name) for r in found] == [
        ("x", "p"),
        ("p", "q"),
        ("q", "y"),
    ]
    assert [[n.op_type for n in r.branch] for r in found] == [["MatMul", "Relu", "MatMul"]] * 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("f = Relu(x)  y = Add(f, x)", ["y"]),  # either operand
        ("f = Relu(x)  g = Neg(x)  y = Add(f, g)", []),  # two branches, nothing passes by
        ("f = Relu(x)  s = Add(x, f)  y = Mul(s, f)", []),  # the branch is read elsewhere
        ("f = MatMul(x, w)  s = Add(x, f)  y = Relu(s)", ["s"]),  # what is added is broadcast
        ("m = MatMul(x, w)  f = Mul(m, x)  y = Add(m, f)", []),  # what passes by is
        ("f = Relu(x)  g = Relu(f)  h = Mul(f, g)  y = Add(x, h)", ["y"]),  # forks inside
        ("y = Add(x, x)", []),
        ("y = Add(x, w2)", []),
    ],
)
def test_what_is_a_residual_branch(text, found):
    constants = {"w": np.ones((6, 1), np.float32), "w2": np.ones((1, 6), np.float32)}
    assert sums(parse_model(text, inputs=INPUTS, constants=constants)) == found


def test_what_attends_is_one_branch_with_its_normalization():
    text = """n = LayerNormalization<axis=-1>(x, one)
        q = MatMul(n, wa)  k = MatMul(n, va)  kt = Transpose<perm=[1,0]>(k)
        s = MatMul(q, kt)  p = Softmax<axis=-1>(s)  o = MatMul(p, n)  y = Add(x, o)"""
    constants = weights(a=1) | {"one": np.ones(6, np.float32)}
    (only,) = residuals(Context(parse_model(text, inputs=INPUTS, constants=constants)))
    assert len(only.branch) == 7
    assert only.stream.name == "x"


def test_the_branch_that_is_missed_least_goes_first():
    for least in "abc":
        model = stack(**{k: 0.01 if k == least else 1 for k in "abc"})
        ctx = Context(model, samples=samples(), pass_name="depth")
        assert Depth().run(model, ctx) == 1
        assert f"w{least}" not in model.graph.initializers
        assert len([n for n in model.graph if n.op_type == "MatMul"]) == 4


def test_what_a_branch_did_per_channel_is_put_back():
    """x + (a - 1) x + b is a x + b: the repair is exact."""
    scale, shift = (RNG.standard_normal(6).astype(np.float32) for _ in range(2))
    text = "m = MatMul(x, d)  f = Add(m, b)  s = Add(x, f)  y = Tanh(s)"
    constants = {"d": np.diag(scale - 1), "b": shift}
    model = parse_model(text, inputs=INPUTS, constants=constants)
    x = RNG.standard_normal((5, 6)).astype(np.float32)
    expected = run(model, {"x": x})["y"]
    assert Depth().run(model, Context(model, samples=samples(), pass_name="depth")) == 1
    assert [n.op_type for n in model.graph] == ["Mul", "Add", "Tanh"]
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_layers_name_what_goes_and_what_stays():
    model = stack(a=1, b=0.01, c=1)
    names = {o.name: n.name for n in model.graph for o in n.outputs}
    one = Depth(blocks=0, layers=((names["q"], 0), (names["y"], 1)))
    assert one.run(model, Context(model, samples=samples(), pass_name="depth")) == 1
    assert "wc" not in model.graph.initializers
    assert {"wa", "wb"} <= set(model.graph.initializers)
    assert model.graph.outputs[0].name == "y"


def test_a_branch_too_many_is_won_back_by_taking_fewer():
    source = stack(a=1, b=1e-5, c=1)
    result = optimize(source, "depth(blocks=2)", samples=samples(), measure=False)
    (step,) = result.report.steps
    assert (step.status, step.edits) == ("kept", 1)
    assert "run as depth" in " ".join(step.notes)
    names = {v for v in result.model.graph.initializers if v.startswith("w")}
    assert names == {"wa", "wc"}


def test_without_samples_it_is_refused_and_nonsense_is_an_error():
    with pytest.raises(UsageError, match="depth needs samples: give --samples"):
        optimize(stack(a=1, b=1, c=1), "depth", measure=False)
    with pytest.raises(UsageError, match="from 0 on, not -1"):
        Depth(blocks=-1)
    with pytest.raises(UsageError, match=r"takes 1 .remove. or 0, not 2"):
        Depth(layers=(("*", 2),))


def test_a_model_without_branches_says_so():
    model = parse_model("y = Relu(x)", inputs=INPUTS)
    result = optimize(model, "depth", samples=samples(), measure=False, budget=Budget())
    assert result.report.steps[0].reason.startswith("no sum adds a branch")


def test_named_branches_go_without_samples_and_are_not_repaired():
    model = stack(a=1, b=1, c=1)
    (name,) = (n.name for n in model.graph for o in n.outputs if o.name == "q")
    one = Depth().only(((name, 1),))
    assert one.run(model, Context(model, pass_name="depth")) == 1
    assert "wb" not in model.graph.initializers
    assert not [n for n in model.graph if n.op_type == "Mul"]
    assert Depth().run(model, Context(model, pass_name="depth")) == 0


def test_it_says_what_could_go_and_what_goes_with_it():
    model = stack(a=1, b=1, c=1)
    ctx = Context(model)
    removed = Depth().removes(model, ctx)
    assert Depth().choices(model, ctx) == dict.fromkeys(removed, (1,))
    kinds = {n.name: n.op_type for n in model.graph}
    assert [[kinds[n] for n in nodes] for nodes in removed.values()] == [
        ["MatMul", "Relu", "MatMul"]
    ] * 3
