"""The pass, on models of a few hundred weights."""

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from graphopt.passes.distill import Distill  # noqa: E402
from graphopt.passes.int8 import Int8  # noqa: E402
from graphopt.passes.prune import Prune  # noqa: E402

import graphopt  # noqa: E402
from graphopt import Budget, Context, optimize  # noqa: E402
from graphopt.execution.runtime import run, run_each  # noqa: E402
from graphopt.graph.kept import kept_indices  # noqa: E402
from graphopt.graph.provenance import made_by  # noqa: E402
from graphopt.pass_ import format_pass  # noqa: E402
from graphopt.samples import Samples  # noqa: E402
from graphopt.spec import parse  # noqa: E402
from graphopt.target import Int8Scheme, Target  # noqa: E402
from graphopt.testing import parse_model, structure  # noqa: E402

CLASSES = 5


def weights(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes:
        scale = 1.5 / np.sqrt(np.prod(shape[1:]) if len(shape) > 2 else shape[0])
        made[name] = (rng.standard_normal(shape) * scale).astype("f4")
    return made


def dense(batch="N", scale=4.0, hidden=24):
    """Two dense layers with every hidden unit twice, so that half of them can do the same.

    `scale` makes the outputs decided, as logits are.
    """
    made = weights(("w1", (8, hidden // 2)), ("b1", (hidden // 2,)), ("w2", (hidden, CLASSES)))
    made["w1"], made["b1"] = np.tile(made["w1"], 2), np.tile(made["b1"], 2)
    made["w2"] *= scale
    return parse_model(
        "h = Gemm(x, w1, b1)\nr = Relu(h)\ny = MatMul(r, w2)",
        inputs={"x": (batch, 8)},
        constants=made,
    )


def images():
    made = weights(("k1", (12, 1, 3, 3)), ("k2", (8, 12, 3, 3)), ("w", (8, CLASSES)))
    made["w"] *= 6
    return parse_model(
        "a = Conv <pads = [1, 1, 1, 1]> (x, k1)\n"
        "b = Relu(a)\n"
        "c = Conv <pads = [1, 1, 1, 1]> (b, k2)\n"
        "d = Relu(c)\n"
        "e = GlobalAveragePool(d)\n"
        "f = Flatten(e)\n"
        "y = MatMul(f, w)",
        inputs={"x": ("N", 1, 6, 6)},
        constants=made,
    )


def samples(shape=(8,), count=256, batch=32, seed=3):
    x = np.random.default_rng(seed).standard_normal((count, *shape)).astype("f4")
    return Samples([{"x": x[k : k + batch]} for k in range(0, count, batch)])


def smaller(model, given, ratio=0.5):
    """A pruned clone, not refitted: something is left to recover."""
    copy = model.clone()
    Prune(ratio=ratio, compensate=False, scope="all").run(copy, Context(copy, samples=given))
    return copy


def error(model, source, given):
    """Mean squared difference, whatever is added to all classes alike."""
    pairs = zip(run_each(model, given), run_each(source, given), strict=True)
    differences = [a["y"] - b["y"] for a, b in pairs]
    return float(np.mean([np.mean((d - d.mean(-1, keepdims=True)) ** 2) for d in differences]))


def distil(model, source, given, seed=0, progress=None, **options):
    options = {"epochs": 20, "lr": 1e-2, "batch": 16, **options}
    ctx = Context(
        model, source=source, samples=given, seed=seed, pass_name="distill", progress=progress
    )
    return Distill(**options).run(model, ctx), ctx


def scale(model, name, factor):
    value = model.graph.initializers[name]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)


def tensors(model):
    return {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}


def test_pruned_weights_learn_the_original_and_keep_their_shapes():
    source, given = dense(), samples()
    model = smaller(source, given)
    shapes = {n: a.shape for n, a in tensors(model).items()}
    before = error(model, source, given)
    edits, ctx = distil(model, source, given)
    assert edits == 3
    assert error(model, source, given) < 0.3 * before
    assert {n: a.shape for n, a in tensors(model).items()} == shapes
    assert kept_indices(model)["w2"][0].size == shapes["w2"][0]
    assert any("held-out loss" in n and "20 epochs" in n for n in ctx.notes)
    assert all("distill" in made_by(n) for n in model.graph if n.op_type != "Relu")


def test_in_a_pipeline_the_source_is_the_original():
    source, given = dense(), samples()
    passes = [
        Prune(ratio=0.5, scope="all", compensate=False),
        Distill(epochs=10, lr=1e-2, loss="mse"),
    ]
    free = Budget(max_disagreement=float("inf"))
    result = optimize(source, passes, samples=given, measure=False, target="onnx", budget=free)
    pruned, distilled = result.report.steps
    assert distilled.status == "kept"
    worst = [max(e.rel_l2 for e in s.error_vs_source.values()) for s in (pruned, distilled)]
    assert worst[1] < 0.7 * worst[0]


def test_images_through_convolutions():
    source, given = images(), samples((1, 6, 6), 64)
    model = smaller(source, given)
    before = error(model, source, given)
    distil(model, source, given)
    assert error(model, source, given) < 0.5 * before


def test_a_batch_norm_that_was_not_folded_is_trained_and_keeps_its_statistics():
    made = weights(("k1", (12, 1, 3, 3)), ("w", (12, CLASSES)))
    made["w"] *= 6
    rng = np.random.default_rng(4)
    made |= {n: (1 + 0.3 * rng.standard_normal(12)).astype("f4") for n in ("g", "s", "m")}
    made["v"] = np.full(12, 2, "f4")
    source = parse_model(
        "a = Conv <pads = [1, 1, 1, 1]> (x, k1)\nb = BatchNormalization(a, g, s, m, v)\n"
        "c = Relu(b)\nd = GlobalAveragePool(c)\ne = Flatten(d)\ny = MatMul(e, w)",
        inputs={"x": ("N", 1, 6, 6)},
        constants=made,
    )
    model, given = source.clone(), samples((1, 6, 6), 64)
    scale(model, "g", 0.5)
    before = error(model, source, given)
    distil(model, source, given)
    assert error(model, source, given) < 0.3 * before
    after = tensors(model)
    assert np.array_equal(after["m"], made["m"])
    assert np.array_equal(after["v"], made["v"])
    assert not np.array_equal(after["g"], 0.5 * made["g"])


def test_zeros_of_sparse_weights_stay():
    source, given = dense(), samples()
    model = source.clone()
    value = model.graph.initializers["w1"]
    mask = np.random.default_rng(1).random((8, 24)) < 0.5
    sparse = np.where(mask, 0, value.const_value.numpy())
    value.const_value = ir.tensor(sparse, name="w1")
    distil(model, source, given)
    after = tensors(model)["w1"]
    assert not after[mask].any()
    assert (after[~mask] != sparse[~mask]).mean() > 0.9


def test_the_same_seed_gives_the_same_weights_and_another_others():
    source, given = dense(), samples()
    start = smaller(source, given)
    found = []
    for seed in (0, 0, 1):
        model = start.clone()
        distil(model, source, given, seed=seed, epochs=2)
        found.append(tensors(model)["w2"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_without_samples_it_refuses_and_says_why():
    model = dense()
    for given in (None, Samples([{"x": np.zeros((2, 8), "f4")}], synthetic=True)):
        edits, ctx = distil(model, model.clone(), given)
        assert edits == 0
        assert "it trains on samples, and there are none" in ctx.refusals[0].reason


def test_what_it_cannot_train_it_refuses_with_the_reason():
    source = parse_model("y = NonZero(x)", inputs={"x": ("N", 8)})
    _, ctx = distil(source, source.clone(), samples())
    assert "no output holds finite float values" in ctx.refusals[0].reason
    one = Samples([{"x": np.zeros((1, 8), "f4")}])
    _, ctx = distil(dense(), dense(), one)
    assert "two samples at least" in ctx.refusals[0].reason
    made = {"w": np.ones((8, 4), "f2")}
    half = parse_model(
        "h = Cast <to = 10> (x)\ny = MatMul(h, w)", inputs={"x": ("N", 8)}, constants=made
    )
    _, ctx = distil(half, half.clone(), samples())
    assert "put distill before fp16" in ctx.refusals[0].reason


def test_outputs_too_large_to_keep_are_computed_again(monkeypatch):
    from graphopt.training import examples

    source, given = dense(), samples()
    start = smaller(source, given)
    found = []
    for large in (1 << 30, 100):
        monkeypatch.setattr(examples, "LARGE", large)
        model = start.clone()
        distil(model, source, given, epochs=2)
        found.append(tensors(model)["w2"])
    # outputs of one run against those of a batch of other rows: rounding, then two epochs of Adam
    assert np.allclose(found[0], found[1], atol=1e-2)


def test_a_model_that_is_the_original_already_stays_as_it_is():
    model, given = dense(), samples()
    before = tensors(model)
    edits, ctx = distil(model, model.clone(), given, epochs=1)
    assert edits == 0
    assert all(np.array_equal(before[n], a) for n, a in tensors(model).items())
    assert any("stay as they were" in n for n in ctx.notes)


def test_numbers_are_matched_by_their_squared_error():
    source, given = dense(scale=1.0), samples()
    model = smaller(source, given)
    before = error(model, source, given)
    _, ctx = distil(model, source, given)
    assert error(model, source, given) < 0.3 * before
    (note,) = ctx.notes
    first = float(note.split("held-out loss ")[1].split()[0])
    variance = np.var([o["y"] for o in run_each(source, given)])
    assert first == pytest.approx(before / variance, rel=0.5)  # on other samples


@pytest.mark.parametrize("loss", ["kl", "mse", "features"])
def test_every_loss_brings_the_outputs_nearer(loss):
    source, given = images(), samples((1, 6, 6), 64)
    model = smaller(source, given)
    before = error(model, source, given)
    edits, ctx = distil(model, source, given, loss=loss)
    assert edits
    assert error(model, source, given) < 0.7 * before
    assert not any("no intermediate" in n for n in ctx.notes)


def test_features_match_what_pruning_left_of_a_tensor():
    from graphopt.passes.distill.features import shared_features

    source, given = images(), samples((1, 6, 6), 64)
    model = smaller(source, given)
    feeds = next(iter(given))
    found = {f.theirs: f for f in shared_features(source, model, feeds, None)}
    cut = found["b"]
    kept = kept_indices(model)["k1"][0]
    assert np.array_equal(cut.kept[1], kept)
    clone = source.clone()
    clone.graph.outputs.append(next(n for n in clone.graph if n.op_type == "Relu").outputs[0])
    whole = run(clone, feeds)["b"]
    assert cut.variance == pytest.approx(whole.var(), rel=1e-4)


def test_several_outputs_of_several_kinds():
    made = weights(("w1", (8, 8)), ("w2", (16, CLASSES)), ("w3", (16, 1)))
    made["w1"], made["w2"] = np.tile(made["w1"], 2), 5 * made["w2"]
    source = parse_model(
        "h = MatMul(x, w1)\nr = Tanh(h)\ns = MatMul(r, w2)\n"
        "p = Softmax(s)\nv = MatMul(r, w3)\nk = ArgMax <axis = 1> (s)",
        inputs={"x": ("N", 8)},
        constants=made,
    )
    given = samples()
    model = smaller(source, given)
    distil(model, source, given)
    new = {"x": np.random.default_rng(9).standard_normal((2000, 8)).astype(np.float32)}
    got, want = run(model, new), run(source, new)
    assert (got["k"] == want["k"]).mean() > 0.9
    assert np.abs(got["p"] - want["p"]).mean() < 0.1
    assert ((got["v"] - want["v"]) ** 2).mean() < 0.3 * want["v"].var()


@pytest.mark.parametrize("fixed", [1, 4])
def test_a_fixed_batch_is_no_hindrance(fixed):
    source, given = dense(batch=fixed), samples(batch=fixed, count=128)
    model = smaller(source, given)
    before = error(model, source, given)
    distil(model, source, given)
    assert error(model, source, given) < 0.5 * before


def test_recurrent_layers_of_a_fixed_batch_are_not_run_with_another():
    """torch.lstm does not check the batch of its states: it wrote past their end."""
    made = weights(("w", (1, 16, 8)), ("r", (1, 16, 4)))
    source = parse_model(
        "y = LSTM <hidden_size = 4> (x, w, r, , , h, c)",
        inputs={"x": (3, 2, 8)},
        constants={**made, "h": np.zeros((1, 2, 4), "f4"), "c": np.zeros((1, 2, 4), "f4")},
    )
    model = source.clone()
    scale(model, "w", 0.5)
    given = Samples([{"x": np.random.default_rng(k).standard_normal((3, 2, 8)).astype("f4")}
                     for k in range(16)])  # fmt: skip
    before = error(model, source, given)
    distil(model, source, given)
    assert error(model, source, given) < 0.5 * before


def test_a_batch_that_the_graph_insists_on_is_kept():
    made = weights(("w1", (8, 24)), ("w2", (24, CLASSES)))
    source = parse_model(
        "h = MatMul(x, w1)\nr = Relu(h)\nf = Reshape(r, s)\ny = MatMul(f, w2)",
        inputs={"x": (2, 8)},
        constants={**made, "s": np.array([2, 24])},
    )
    model = source.clone()
    scale(model, "w2", 0.5)
    given = samples(batch=2, count=64)
    before = error(model, source, given)
    distil(model, source, given)
    assert error(model, source, given) < 0.5 * before


def test_sequences_of_several_lengths():
    made = weights(("e", (11, 8)), ("w", (8, CLASSES)))
    source = parse_model(
        "h = Gather(e, x)\nm = ReduceMean <keepdims = 0> (h, a)\ny = MatMul(m, w)",
        inputs={"x": np.zeros((1, 3), np.int64)},
        constants={**made, "a": np.array([1])},
    )
    source.graph.inputs[0].shape = ir.Shape(["N", "T"])
    for value in (*source.graph.outputs, *(o for n in source.graph for o in n.outputs)):
        value.shape = None
    model = source.clone()
    scale(model, "e", 0.3)
    rng = np.random.default_rng(0)
    given = Samples([{"x": rng.integers(0, 11, (8, 3 + k % 4))} for k in range(12)])
    before = error(model, source, given)
    distil(model, source, given)
    assert error(model, source, given) < 0.3 * before


def test_sequences_of_a_model_that_takes_one_at_a_time():
    made = weights(("w1", (8, 8)), ("w2", (8, CLASSES)))
    source = parse_model(
        "n = Shape <start = 1> (x)\nf = Reshape(x, n)\nh = MatMul(f, w1)\nr = Relu(h)\n"
        "y = MatMul(r, w2)",
        inputs={"x": ("N", "T", 8)},
        constants=made,
    )
    model = source.clone()
    scale(model, "w1", 0.3)
    rng = np.random.default_rng(0)
    lengths = [3, 3, 4, 5] * 4
    given = Samples([{"x": rng.standard_normal((1, n, 8)).astype("f4")} for n in lengths])
    before = error(model, source, given)
    distil(model, source, given)
    assert error(model, source, given) < 0.3 * before


LOADER = """
import numpy as np
def batches():
    rng = np.random.default_rng(0)
    for _ in range(6):
        x = rng.standard_normal((16, 8)).astype("f4")
        y = (x[:, 0] > 0).astype(np.int64)
        yield {form}
"""


@pytest.mark.parametrize(
    ("form", "labelled"),
    [
        ('{"x": x, "label": y}', True),
        ("(x, y)", True),
        ("x", False),
        ('{"x": __import__("torch").from_numpy(x)}', False),
    ],
)
def test_a_loader_with_or_without_labels(tmp_path, form, labelled):
    path = tmp_path / "data.py"
    path.write_text(LOADER.replace("{form}", form))
    source, given = dense(), samples()
    model = smaller(source, given)
    edits, _ = distil(model, source, None, data=f"{path}:batches", labels=1.0, epochs=30)
    assert edits
    x = next(iter(given))["x"]
    right = (run(model, {"x": x})["y"].argmax(1) == (x[:, 0] > 0)).mean()
    # with a weight of 1 the labels alone are learned, which the original knows nothing of
    assert (right > 0.75) == labelled


def test_a_loader_that_is_not_there(tmp_path):
    from graphopt.errors import UsageError

    model = dense()
    with pytest.raises(UsageError, match=r"file\.py:function"):
        distil(model, model.clone(), None, data="nothing")
    with pytest.raises(UsageError, match="no such file"):
        distil(model, model.clone(), None, data=str(tmp_path / "x.py:f"))


def test_pruning_and_training_alternate_as_steps_of_a_pipeline():
    from graphopt.analyses.cost import cost

    source, given = dense(hidden=64), samples()
    whole = Context(source).get(cost).macs
    model, losses = source.clone(), []
    for _ in range(2):
        ctx = Context(model, source=source, samples=given)
        Prune(ratio=1 - 0.4**0.5, compensate=False).run(model, ctx)
        before = error(model, source, given)
        distil(model, source, given, epochs=6)
        losses.append((before, error(model, source, given)))
    assert Context(model).get(cost).macs == pytest.approx(0.4 * whole, rel=0.1)
    assert losses[1][1] < losses[1][0]


def test_an_integer_model_is_trained_through_fake_quantization():
    source, given = images(), samples((1, 6, 6))
    model = smaller(source, given)
    ctx = Context(model, target=Target("t", int8=Int8Scheme(per_channel=False)), samples=given)
    assert Int8(balance=False).run(model, ctx)
    form, before = structure(model), error(model, source, given)
    edits, ctx = distil(model, source, given, epochs=20, lr=3e-3)
    assert edits
    assert structure(model) == form
    assert error(model, source, given) < 0.7 * before
    bits = {n.inputs[0].const_value.dtype for n in model.graph if _held(n)}
    assert bits == {ir.DataType.INT8}


def _held(node):
    return node.op_type == "DequantizeLinear" and node.inputs[0].const_value is not None


def test_an_interrupted_pass_continues_to_the_same_weights(tmp_path):
    source, given = dense(hidden=64), samples()
    start = smaller(source, given)
    expected = start.clone()
    distil(expected, source, given, epochs=2)

    def kill(text, done, total):
        if text.startswith("distill: epoch 2") and done >= 3:
            raise KeyboardInterrupt

    options = {"epochs": 2, "checkpoint": str(tmp_path / "kept")}
    with pytest.raises(KeyboardInterrupt):
        distil(start.clone(), source, given, progress=kill, **options)
    assert (tmp_path / "kept" / "distill.pt").exists()
    again = start.clone()
    distil(again, source, given, **options)
    assert all(np.array_equal(a, tensors(again)[n]) for n, a in tensors(expected).items())


def test_a_second_run_after_the_first_changes_little():
    source, given = dense(), samples()
    model = smaller(source, given)
    distil(model, source, given)
    once = error(model, source, given)
    distil(model, source, given)
    assert error(model, source, given) <= 1.1 * once


def test_options_are_checked():
    for wrong in ({"epochs": 0}, {"lr": 0.0}, {"labels": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Distill(**wrong)
    one = Distill(epochs=5, loss="features")
    assert parse(format_pass(one)) == [one]


def test_an_ensemble_teaches_one_model(tmp_path):
    """The mean of two models is learnt, not the original."""
    first, second = dense(), dense(scale=-2.0)
    for name, model in (("a", first), ("b", second)):
        graphopt.save(model, tmp_path / f"{name}.onnx")
    paths = f"{tmp_path}/a.onnx,{tmp_path}/b.onnx"
    student, given = dense(), samples()
    source = student.clone()

    def apart(model):
        feeds = next(iter(given))
        mean = (run(first, feeds)["y"] + run(second, feeds)["y"]) / 2
        return float(np.linalg.norm(run(model, feeds)["y"] - mean) / np.linalg.norm(mean))

    before = apart(student)
    distil(student, source, given, epochs=20, lr=0.02, loss="mse", teacher=paths)
    assert apart(student) < 0.25 * before


def test_a_teacher_of_another_interface_is_refused(tmp_path):
    other = parse_model("z = Relu(q)", inputs={"q": ("N", 8)})
    graphopt.save(other, tmp_path / "o.onnx")
    ctx = Context(dense(), samples=samples())
    assert Distill(teacher=f"{tmp_path}/o.onnx").run(ctx.model, ctx) == 0
    assert [r.reason for r in ctx.refusals] == ["the teacher takes q, the model x"]


def test_a_loss_that_rises_until_the_rate_falls_ends_no_training():
    source, given = dense(), samples(count=2304)
    model = source.clone()
    scale(model, "w2", 1.004)
    history = []
    ctx = Context(model, source=source, samples=given, pass_name="distill")
    ctx.scalar = lambda name, value, step: (
        history.append(value) if name == "distill/held_out_loss" else None  # not that of a part
    )
    assert Distill(epochs=12, lr=1e-2, batch=64).run(model, ctx)
    assert len(history) == 13
    assert min(history[1:4]) > history[0] > history[-1]


TOKENS = """
    x = Gather(words, ids)  m = Cast <to=1> (mask)  w = Unsqueeze(m, ax2)  xw = Mul(x, w)
    total = ReduceSum <keepdims=1> (xw, ax1)  c = Tanh(total)  r = Add(x, c)
    h = MatMul(r, w0)  g = Tanh(h)  y = MatMul(g, w1)"""


@pytest.mark.parametrize("loss", ["auto", "kl", "features"])
@pytest.mark.parametrize("flat", [False, True])
def test_tokens_that_the_mask_leaves_out_do_not_count(loss, flat):
    """What the filling holds changes no weight, as long as the split is the same."""
    made = weights(("words", (20, 8)), ("w0", (8, 12)), ("w1", (12, CLASSES)))
    axes = {"ax1": np.array([1]), "ax2": np.array([2]), "join": np.array([-1, CLASSES])}
    text = TOKENS.replace("y = MatMul(g, w1)", "z = MatMul(g, w1)  y = Reshape(z, join)")
    shapes = {name: np.zeros((16, 6), np.int64) for name in ("ids", "mask")}
    trained = []
    for filler in (3, 11):
        source = parse_model(text if flat else TOKENS, inputs=shapes, constants=made | axes)
        rng = np.random.default_rng(1)
        feeds = []
        for _ in range(4):
            mask = (np.arange(6) < rng.integers(1, 7, (16, 1))).astype(np.int64)
            feeds.append({"ids": np.where(mask, rng.integers(0, 20, mask.shape), filler)})
            feeds[-1]["mask"] = mask
        model = source.clone()
        scale(model, "w0", 0.8)
        edits, _ = distil(model, source, Samples(feeds), loss=loss, epochs=3)
        assert edits
        trained.append(tensors(model))
    for name, array in trained[0].items():
        np.testing.assert_allclose(array, trained[1][name], rtol=1e-5, atol=1e-6, err_msg=name)
