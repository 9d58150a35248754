"""Sparsity: which weights go, what the others make up for, and how the file holds them."""

import numpy as np
import onnx
import pytest
from graphopt.passes.sparsify import Sparsify
from graphopt.passes.sparsify.sparsify import masked, refitted

import graphopt
from graphopt import Budget, optimize
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.io.writing import write_model
from graphopt.samples import Samples
from graphopt.testing import parse_model

RNG = np.random.default_rng(6)
MIX = RNG.standard_normal((64, 64)).astype(np.float32)
W = RNG.standard_normal((64, 48)).astype(np.float32)
X = RNG.standard_normal((400, 64)).astype(np.float32) @ MIX


def made(samples=None, w=W, text="y = MatMul(x, w)", x=X, **options):
    model = parse_model(text, inputs={"x": ("N", *x.shape[1:])}, constants={"w": w})
    ctx = Context(model, samples=samples)
    return model, ctx, Sparsify(**options).run(model, ctx)


def weight(model):
    return model.graph.initializers["w"].const_value.numpy()


def samples():
    return Samples([{"x": X[k : k + 50]} for k in range(0, 400, 50)])


def lost(model):
    off = X @ weight(model) - X @ W
    return np.linalg.norm(off) / np.linalg.norm(X @ W)


def test_without_samples_the_smallest_go():
    model, _, edits = made(ratio=0.5)
    assert edits == 1
    w = weight(model)
    assert (w == 0).sum() == W.size // 2
    np.testing.assert_array_equal(w[w != 0], W[w != 0])
    assert np.abs(W[w == 0]).max() <= np.abs(W[w != 0]).min()


def test_what_inputs_and_refits_know_leaves_less_error():
    errors = [lost(made(samples(), ratio=0.5, score=s)[0]) for s in ("magnitude", "wanda", "auto")]
    assert errors[2] < 0.6 * min(errors[:2])


@pytest.mark.parametrize("score", ["magnitude", "wanda", "admm"])
def test_two_of_four_along_the_inputs(score):
    w = weight(made(samples(), pattern="2:4", score=score)[0])
    groups = w.T.reshape(48, 16, 4)
    assert ((groups != 0).sum(axis=2) == 2).all()


def test_a_convolutions_groups_are_of_input_channels():
    w = RNG.standard_normal((16, 16, 3, 3)).astype(np.float32)
    x = RNG.standard_normal((4, 16, 8, 8)).astype(np.float32)
    seen = Samples([{"x": x}])
    model, _, edits = made(seen, w, "y = Conv(x, w)", x, pattern="1:4")
    assert edits == 1
    groups = weight(model).transpose(0, 2, 3, 1).reshape(16, 9, 4, 4)
    assert ((groups != 0).sum(axis=3) == 1).all()


def test_few_weights_are_stored_sparse_and_the_runtime_reads_them(tmp_path):
    model, ctx, _ = made(ratio=0.9)
    write_model(model, tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    assert [s.values.name for s in proto.graph.sparse_initializer] == ["w"]
    assert not proto.graph.initializer
    assert (tmp_path / "m.onnx").stat().st_size < 0.35 * W.nbytes
    np.testing.assert_allclose(
        graphopt.session(tmp_path / "m.onnx")({"x": X})["y"],
        X @ weight(model),
        rtol=1e-4,
        atol=1e-4,
    )
    assert "no time is saved" in ctx.notes[0]


def test_many_weights_are_stored_as_they_were():
    model, ctx, _ = made(ratio=0.5)
    assert not hasattr(model.graph.initializers["w"].const_value, "proto")
    assert "0 of 1" in ctx.notes[0]


def test_no_share_stores_what_is_sparse_already():
    w = np.where(np.abs(W) > 2, W, 0).astype(np.float32)
    model, _, edits = made(w=w, ratio=0.0)
    assert edits == 1
    np.testing.assert_array_equal(weight(model), w)
    assert hasattr(model.graph.initializers["w"].const_value, "proto")
    assert made(ratio=0.0)[2] == 0


def test_layers_say_how_much():
    model = parse_model(
        "a = MatMul(x, w)  y = MatMul(a, v)",
        inputs={"x": X},
        constants={"w": W, "v": np.ascontiguousarray(W.T)},
    )
    Sparsify(ratio=0.2, layers=((model.graph[0].name, 0),)).run(model, Context(model))
    np.testing.assert_array_equal(weight(model), W)
    assert (model.graph.initializers["v"].const_value.numpy() == 0).mean() == pytest.approx(
        0.2, 0.01
    )


def test_refits_leave_a_fraction_of_the_error():
    h = (X.T @ X / len(X)).astype(np.float64)
    w = W.T.astype(np.float64)
    zero = refitted(w, h, 0.5, 0, 0)
    plain = np.where(masked(np.abs(w), 0.5, 0, 0), 0, w)
    cost = [float(np.einsum("oi,ij,oj->", o, h, o)) for o in (zero - w, plain - w)]
    assert cost[0] < 0.3 * cost[1]


def test_in_a_pipeline_a_weaker_share_is_tried():
    model = parse_model("y = MatMul(x, w)", inputs={"x": X}, constants={"w": W})
    result = optimize(
        model,
        "sparsify(ratio=0.9)",
        samples={"x": X},
        budget=Budget(max_disagreement=0.2),
        measure=False,
    )
    assert result.report.steps[0].status == "kept"
    assert any("run as sparsify(ratio=0." in note for note in result.report.steps[0].notes)


@pytest.mark.parametrize(
    "options", [{"ratio": 1.0}, {"pattern": "4:2"}, {"pattern": "half"}, {"score": "best"}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=r"share|pattern|score"):
        Sparsify(**options)


def test_scores_that_need_samples_say_so():
    with pytest.raises(UsageError, match="--samples"):
        made(score="wanda")
