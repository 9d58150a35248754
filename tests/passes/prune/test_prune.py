import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.prune import Prune

import graphopt
from graphopt import Context, parse
from graphopt.analyses.cost import cost
from graphopt.backend import find_target
from graphopt.errors import UsageError
from graphopt.execution.runtime import run
from graphopt.graph.kept import kept_indices, source_sizes
from graphopt.samples import Samples, stand_ins
from graphopt.target import ONNX
from graphopt.testing import parse_model

IMAGES = (10, 3, 6, 6)
RESIDUAL = """a = Conv <pads=[1, 1, 1, 1]> (x, w0, b0)  r = Relu (a)
b = Conv <pads=[1, 1, 1, 1]> (r, w1, b1)  c = Relu (b)  d = Conv <pads=[1, 1, 1, 1]> (c, w2, b2)
s = Add (d, r)  t = Relu (s)
e = Conv <pads=[1, 1, 1, 1]> (t, w3, b3)  f = Relu (e)  g = Conv <pads=[1, 1, 1, 1]> (f, w4, b4)
u = Add (g, t)  p = GlobalAveragePool (u)  h = Flatten (p)  y = Gemm (h, w5, b5)"""


def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def residual(rank=8, seed=0):
    """Two residual blocks of 16 channels, 24 inside; what is inside varies in about `rank` ways."""
    mix = normal(24, rank, seed=seed + 90) @ normal(rank, 144, seed=seed + 91) / 12
    mix2 = normal(24, rank, seed=seed + 92) @ normal(rank, 144, seed=seed + 93) / 12
    constants = {
        "w0": normal(16, 3, 3, 3, seed=seed) / 5,
        "w1": mix.reshape(24, 16, 3, 3) / rank**0.5,
        "w2": normal(16, 24, 3, 3, seed=seed + 2) / 15,
        "w3": mix2.reshape(24, 16, 3, 3) / rank**0.5,
        "w4": normal(16, 24, 3, 3, seed=seed + 4) / 15,
        "w5": normal(16, 5, seed=seed + 5),
    }
    constants |= {
        f"b{k}": normal(n, seed=k + 50) / 5 for k, n in enumerate((16, 24, 16, 24, 16, 5))
    }
    return parse_model(RESIDUAL, inputs={"x": IMAGES}, constants=constants)


def images(count=20, seed=7):
    return Samples([{"x": normal(*IMAGES, seed=seed + k)} for k in range(count)])


def error(model, other, seed=1000):
    feeds = {"x": normal(*IMAGES, seed=seed)}
    (a,), (b,) = run(model, feeds).values(), run(other, feeds).values()
    return float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(0)))


def pruned(one, model, **kwargs):
    copy = model.clone()
    ctx = Context(copy, **kwargs)
    return copy, one.run(copy, ctx), ctx


@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize("of", ["macs", "params", "units"])
@pytest.mark.parametrize("spread", ["global", "uniform"])
def test_removes_what_it_is_told(ratio, of, spread):
    model = residual()
    copy, edits, ctx = pruned(Prune(ratio=ratio, of=of, spread=spread), model)
    before, after = cost(Context(model)), cost(Context(copy))
    assert edits
    left = {"macs": after.macs / before.macs, "params": after.params / before.params}
    # one unit in 24 of each of two dimensions is at most 6 % of the work: half of it either way
    assert abs(left.get(of, 1 - ratio) - (1 - ratio)) <= 0.03
    assert any("no samples" in note for note in ctx.notes)
    run(copy, {"x": normal(*IMAGES, seed=0)})


def test_half_of_the_units_are_half_of_every_dimension():
    """A pair of heads beside 24 features: neither is spared for the other."""
    model = parse_model(
        """q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        o = com.microsoft.MultiHeadAttention <num_heads=2> (q, k, v)  a = MatMul(o, wo)
        h = MatMul(a, w1)  r = Relu(h)  y = MatMul(r, w2)""",
        inputs={"x": (1, 5, 8)},
        constants={
            name: normal(*shape, seed=k)
            for k, (name, shape) in enumerate(
                {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 6), "w1": (6, 24)}.items()
            )
        }
        | {"w2": normal(24, 3, seed=9)},
        opset=20,
    )
    copy, _, _ = pruned(Prune(ratio=0.5, of="units"), model)
    left = {n: tuple(v.shape) for n, v in copy.graph.initializers.items() if n in ("wq", "w1")}
    assert left == {"wq": (8, 6), "w1": (3, 12)}


def test_samples_choose_units_and_refit_what_reads_them():
    model = residual()
    plain, _, _ = pruned(Prune(ratio=0.5, compensate=False), model)
    chosen, _, _ = pruned(Prune(ratio=0.5, compensate=False), model, samples=images())
    refitted, _, ctx = pruned(Prune(ratio=0.5), model, samples=images())
    assert error(model, refitted) < 0.5 * min(error(model, plain), error(model, chosen))
    assert {e.rule for e in ctx.edits} == {"Prune", "Refit"}


def test_every_score_prunes():
    model = residual()
    for score in ("reconstruction", "activation", "l1", "l2", "fpgm", "random"):
        copy, edits, _ = pruned(Prune(score=score, compensate=False), model, samples=images(2))
        assert edits == 2, score
        assert cost(Context(copy)).macs <= 0.7 * cost(Context(model)).macs, score


def test_redundant_units_cost_nothing():
    model = residual()
    weights = model.graph.initializers
    for read, written, bias in (("w2", "w1", "b1"), ("w4", "w3", "b3")):
        w, v, b = (weights[n].const_value.numpy().copy() for n in (written, read, bias))
        w[12:], b[12:] = w[:12], b[:12]  # twelve channels, each twice
        for name, array in ((written, w), (read, v), (bias, b)):
            weights[name].const_value = ir.tensor(array, name=name)
    copy, _, _ = pruned(Prune(layers=(("*", 0.5),)), model, samples=images())
    assert copy.graph.initializers["w1"].shape[0] == 12
    # float32 least squares with a ridge of 1e-5 at least
    assert error(model, copy) < 1e-2


def test_a_refitted_product_keeps_the_bias_that_is_added_to_it():
    v = normal(8, 24, seed=1)
    v[:, 12:] = v[:, :12]  # twelve units, each twice
    model = parse_model(
        "a = MatMul (x, v)  b = Add (a, c)  r = Relu (b)  d = MatMul (r, w)  y = Add (d, e)",
        inputs={"x": (50, 8)},
        constants={
            "v": v,
            "c": np.tile(normal(12, seed=2), 2),
            "w": normal(24, 5, seed=3),
            "e": 10 + normal(5, seed=4),
        },
    )
    samples = Samples([{"x": normal(50, 8, seed=k)} for k in range(10)])
    copy, _, _ = pruned(Prune(layers=(("*", 0.5),)), model, samples=samples)
    feeds = {"x": normal(50, 8, seed=100)}
    (expected,), (got,) = run(model, feeds).values(), run(copy, feeds).values()
    np.testing.assert_allclose(got, expected, atol=1e-2)


def test_the_channel_multiple_is_kept():
    target = dataclasses.replace(ONNX, channel_multiple=8)
    copy, _, _ = pruned(Prune(ratio=0.3), residual(), target=target)
    widths = [v.shape[0] for v in copy.graph.initializers.values() if len(v.shape) == 4]
    assert all(w % 4 == 0 for w in widths)  # 24 channels hold three times 8
    assert min(widths) < 24


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((("w1", 0.0),), {"w1": 24}),
        ((("w1", 0.5),), {"w1": 12}),
        ((("w*", 0.25), ("w1", 0.5)), {"w1": 18, "w3": 18}),
        ((("Conv_2", 0.5), ("w?", 0.0)), {"w1": 12, "w3": 24}),
    ],
)
def test_layers_say_what_else(layers, expected):
    copy, _, _ = pruned(Prune(ratio=0.3, layers=layers), residual())
    for name, width in expected.items():
        assert copy.graph.initializers[name].shape[0] == width


def test_the_residual_width_goes_with_scope_all_only():
    inner, _, _ = pruned(Prune(ratio=0.2, spread="uniform"), residual())
    assert inner.graph.initializers["w0"].shape[0] == 16
    both, _, _ = pruned(Prune(ratio=0.2, spread="uniform", scope="all"), residual())
    assert both.graph.initializers["w0"].shape[0] < 16


def test_says_when_the_ratio_is_out_of_reach():
    _, _, ctx = pruned(Prune(ratio=0.95), residual())
    assert any("cannot be had" in note for note in ctx.notes)


def test_leaves_alone_what_has_no_free_dimension():
    model = parse_model(
        "y = Conv (x, w)", constants={"w": normal(4, 3, 1, 1, seed=0)}, inputs={"x": IMAGES}
    )
    _, edits, ctx = pruned(Prune(), model)
    assert edits == 0
    assert ctx.idle.startswith("no dimension is free to prune")


def test_says_what_would_cut_a_model_of_residual_streams_alone():
    text = "a = Conv (x, w)  b = Conv (a, v)  c = Add(a, b)  y = ReduceMean<keepdims=0>(c)"
    constants = {"w": normal(8, 3, 1, 1, seed=0), "v": normal(8, 8, 1, 1, seed=1)}
    model = parse_model(text, constants=constants, inputs={"x": IMAGES})
    _, edits, ctx = pruned(Prune(), model)
    assert edits == 0
    assert "scope='all'" in ctx.idle
    assert pruned(Prune(scope="all"), model)[1]


def test_denied_edits_change_nothing():
    model = residual()
    copy, edits, _ = pruned(Prune(ratio=0.5), model, samples=images(2), allow=lambda edit: False)
    assert edits == 0
    assert error(model, copy) == 0


def test_the_same_seed_gives_the_same_weights():
    model = residual()
    first, _, _ = pruned(Prune(ratio=0.5), model, samples=images(4), seed=3)
    second, _, _ = pruned(Prune(ratio=0.5), model, samples=images(4), seed=3)
    for name, value in first.graph.initializers.items():
        np.testing.assert_array_equal(
            value.const_value.numpy(), second.graph.initializers[name].const_value.numpy()
        )


def test_without_samples_images_are_invented():
    """Inputs drawn for checks are too few; the layers are refitted on invented images."""
    model = residual()
    drawn = stand_ins(model, shapes={"x": IMAGES})
    made, _, ctx = pruned(Prune(ratio=0.5), model, samples=drawn)
    cut, _, _ = pruned(Prune(ratio=0.5, compensate=False), model, samples=drawn)
    assert error(model, made) < 0.5 * error(model, cut)
    (note,) = [n for n in ctx.notes if "no samples" in n]
    assert "256 invented images" in note


def test_weights_alone_need_no_images():
    model = residual()
    drawn = stand_ins(model, shapes={"x": IMAGES})
    _, _, ctx = pruned(Prune(score="l2", compensate=False), model, samples=drawn)
    assert not any("invented" in note for note in ctx.notes)


def test_what_stands_in_for_other_inputs_does_not_count():
    text = "a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, v)"
    constants = {"w": normal(8, 32, seed=1), "v": normal(32, 4, seed=2)}
    model = parse_model(text, inputs={"x": (10, 8)}, constants=constants)
    drawn = stand_ins(model, shapes={"x": (10, 8)})
    _, _, ctx = pruned(Prune(ratio=0.3), model, samples=drawn)
    assert any("nothing was refitted" in note for note in ctx.notes)


def test_scores_that_need_samples_say_so():
    with pytest.raises(UsageError, match="needs samples"):
        pruned(Prune(score="activation"), residual())


@pytest.mark.parametrize(
    "spec",
    [
        "prune",
        "prune(ratio=0.5, of='params', scope='all')",
        "prune(layers=(('*.stem', 0.0), ('layer4*', 0.6)), compensate=False)",
    ],
)
def test_spec_round_trip(spec):
    (one,) = parse(spec)
    assert parse(str(one)) == [one]


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"floor": 2.0}, {"layers": (("a", 1.5),)}])
def test_refuses_shares_that_are_none(options):
    with pytest.raises(ValueError, match="share"):
        Prune(**options)


def test_batch_norms_behind_a_concatenation_are_estimated_again():
    text = """a = Conv (x, w0)  b = Conv (x, w1)  c = Relu (a)  d = Conv (c, w2)
    e = Concat <axis=1> (d, b)  n = BatchNormalization (e, s, t, m, v)  y = Relu (n)"""
    constants = {
        "w0": normal(8, 3, 1, 1, seed=0),
        "w1": normal(4, 3, 1, 1, seed=1),
        "w2": normal(4, 8, 1, 1, seed=2),
        "s": np.ones(8, np.float32),
        "t": np.zeros(8, np.float32),
        "m": normal(8, seed=3),
        "v": normal(8, seed=4) ** 2 + 0.5,
    }
    model = parse_model(text, inputs={"x": IMAGES}, constants=constants)
    _, _, ctx = pruned(Prune(layers=(("w0", 0.5),)), model, samples=images())
    touched = {e.node for e in ctx.edits if e.rule == "Refit"}
    assert "Conv_3" in touched
    assert "BatchNormalization_5" in touched | {r.node for r in ctx.refusals}
    assert "Conv_1" not in touched  # nothing it reads has changed


def test_too_few_samples_are_told():
    model = parse_model(
        "a = MatMul (x, w0)  b = Relu (a)  y = MatMul (b, w1)",
        inputs={"x": (8, 16)},
        constants={"w0": normal(16, 64, seed=0), "w1": normal(64, 4, seed=1)},
    )
    few = Samples([{"x": normal(8, 16, seed=2)}])
    many = Samples([{"x": normal(8, 16, seed=k)} for k in range(40)])
    _, _, ctx = pruned(Prune(), model, samples=few)
    assert any("too few samples" in note for note in ctx.notes)
    _, _, ctx = pruned(Prune(), model, samples=many)
    assert not ctx.notes


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_rounds_cut_no_deeper_than_one(ratio):
    """Floors and steps are shares of the size that the original has."""
    one = Prune(ratio=ratio, floor=0.25, score="l2", compensate=False)
    model = residual()
    for _ in range(4):
        model, _, _ = pruned(one, model)
    sizes = {n: len(i[0]) for n, i in kept_indices(model).items() if n in ("w1", "w3")}
    assert source_sizes(model)["w1"][0] == 24
    assert sizes == {"w1": 6, "w3": 6}


def test_rounds_keep_the_steps_of_the_target():
    """24 channels go in fours: 4 stay, however often what is left is pruned again."""
    target = dataclasses.replace(ONNX, channel_multiple=8)
    model = residual()
    for _ in range(3):
        model, _, _ = pruned(Prune(ratio=0.9, floor=0.0), model, target=target)
    assert {len(i[0]) for n, i in kept_indices(model).items() if n in ("w1", "w3")} == {4}


def test_the_demo_keeps_its_accuracy_over_two_rounds():
    held = np.load(Path(graphopt.__file__).parent / "data" / "digits.npz")
    images = {n: held[n].astype(np.float32) / 16 for n in ("calibration", "images")}
    model = graphopt.load(Path(graphopt.__file__).parent / "data" / "digits.onnx")
    samples = Samples([{"image": images["calibration"]}])
    for ratio in (0.55, 0.3):
        model, _, _ = pruned(Prune(ratio=ratio), model, samples=samples, target=find_target("cpu"))
    logits = run(model, {"image": images["images"]})["logits"]
    assert (logits.argmax(1) == held["labels"]).mean() > 0.98


@pytest.mark.parametrize("of", ["macs", "params"])
def test_a_model_whose_free_dimensions_do_no_work_says_so(of):
    model = parse_model(
        "a = Mul (x, k) b = Tanh (a) y = ReduceSum (b, axes)",
        constants={"k": normal(16, seed=0), "axes": np.array([1])},
        inputs={"x": "float[n, 16]"},
    )
    _, edits, ctx = pruned(Prune(of=of, scope="all"), model)
    assert edits == 0
    assert "to prune" in ctx.idle


@pytest.mark.parametrize("score", ["taylor", "fisher"])
def test_gradients_find_what_does_nothing(score):
    """Units whose weights are cut off downstream have no gradient: they go first."""
    pytest.importorskip("torch")
    model = residual()
    dead = (1, 5, 20)
    w2 = model.graph.initializers["w2"].const_value.numpy().copy()
    w2[:, dead] = 0
    model.graph.initializers["w2"].const_value = ir.tensor(w2, name="w2")
    one = Prune(ratio=0.05, score=score, layers=(("w0", 0.0), ("w3", 0.0)), compensate=False)
    copy, _, _ = pruned(one, model, samples=images(8))
    gone = set(range(24)) - set(kept_indices(copy)["w1"][0].tolist())
    assert gone
    assert gone <= set(dead)
    assert error(model, copy) < 1e-5


def test_sensitivity_spreads_by_what_the_outputs_do():
    """The block whose inside is worth less to the output loses more of it."""
    model = residual(rank=24)
    for name in ("w4", "b4"):
        held = model.graph.initializers[name]
        held.const_value = ir.tensor(held.const_value.numpy() / 10, name=name)
    one = Prune(ratio=0.3, score="l2", spread="sensitivity", compensate=False)
    copy, _, _ = pruned(one, model, samples=images())
    plain, _, _ = pruned(dataclasses.replace(one, spread="global"), model, samples=images())
    left = {k: copy.graph.initializers[k].shape[0] for k in ("w1", "w3")}
    assert left["w3"] < left["w1"]
    assert error(model, copy) < error(model, plain)


@pytest.mark.parametrize("one", [Prune(spread="sensitivity"), Prune(score="fisher")])
def test_what_needs_samples_says_so(one):
    with pytest.raises(UsageError, match="needs samples"):
        one.run(residual(), Context(residual()))
