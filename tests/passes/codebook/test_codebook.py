"""Codebooks: what they stand for, what a runtime computes from them, where they are no smaller."""

import numpy as np
import pytest
from graphopt.passes.codebook import Codebook
from graphopt.passes.codebook.codebook import clustered

from graphopt import optimize
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

RNG = np.random.default_rng(4)
W = RNG.standard_normal((96, 75)).astype(np.float32)
X = RNG.standard_normal((5, 96)).astype(np.float32)


def made(w=W, opset=21, **options):
    text = "y = MatMul(x, w)"
    model = parse_model(text, inputs={"x": X}, constants={"w": w}, opset=opset)
    ctx = Context(model)
    return model, ctx, Codebook(**options).run(model, ctx)


@pytest.mark.parametrize(("bits", "most"), [(1, 0.7), (2, 0.5), (4, 0.17), (8, 0.02)])
@pytest.mark.parametrize("opset", [12, 21])
def test_the_runtime_multiplies_by_what_is_near(bits, most, opset):
    w = np.tile(W, (8, 1))  # 57,600: tables pay
    model = parse_model(
        "y = MatMul(x, w)", inputs={"x": ("N", len(w))}, constants={"w": w}, opset=opset
    )
    assert Codebook(bits=bits).run(model, Context(model)) == 1
    held = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    assert held < w.size * bits / 8 + 256 * 4 * 8 / bits + 64
    back = run(model, {"x": np.eye(len(w), dtype=np.float32)})["y"]
    assert np.linalg.norm(back - w) < most * np.linalg.norm(w)


def test_sizes_that_fill_no_byte_are_cut():
    w = np.tile(W, (3, 1))[:, :73][:287]  # 20,951: no multiple of 4
    model = parse_model("y = MatMul(x, w)", inputs={"x": ("N", 287)}, constants={"w": w})
    assert Codebook(bits=2).run(model, Context(model)) == 1
    back = run(model, {"x": np.eye(287, dtype=np.float32)})["y"]
    assert back.shape == w.shape
    assert np.linalg.norm(back - w) < 0.5 * np.linalg.norm(w)


def test_few_values_come_back_exactly():
    w = RNG.choice(np.array([-0.5, 0, 0.25, 2], np.float32), (200, 64))
    vectors = w.reshape(-1, 2)
    codes, index = clustered(vectors, RNG)
    np.testing.assert_array_equal(codes[index], vectors)


def test_what_would_be_no_smaller_stays():
    model, ctx, edits = made(RNG.standard_normal((96, 2)).astype(np.float32))
    assert edits == 0
    assert "no smaller" in ctx.refusals[0].reason
    assert [n.op_type for n in model.graph] == ["MatMul"]


def test_layers_say_which():
    text = "a = MatMul(x, w)  y = MatMul(a, v)"
    v = RNG.standard_normal((75, 96)).astype(np.float32)
    constants = {"w": W, "v": v}
    model = parse_model(text, inputs={"x": X}, constants=constants)
    first = model.graph[0].name
    assert Codebook(layers=((first, 0),)).run(model, Context(model)) == 1
    assert set(model.graph.initializers) & {"w", "v"} == {"w"}


def test_in_a_pipeline_it_is_undone_where_outputs_say_something_else():
    model = parse_model("y = MatMul(x, w)", inputs={"x": X}, constants={"w": W})
    kept = optimize(model, "codebook(bits=8)", samples={"x": X}, measure=False)
    assert kept.report.steps[0].status == "kept"
    assert kept.report.after.bytes < 0.5 * kept.report.before.bytes
    undone = optimize(model, "codebook(bits=1)", samples={"x": X}, measure=False)
    assert undone.report.steps[0].status == "undone"


@pytest.mark.parametrize("options", [{"bits": 3}, {"layers": (("*", 5),)}])
def test_other_bits_are_refused(options):
    with pytest.raises(ValueError, match="bits"):
        Codebook(**options)
