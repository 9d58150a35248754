"""Parts of models of a few hundred weights."""

import numpy as np
import pytest

pytest.importorskip("torch")

from graphopt.passes.distill import blocks, distill
from graphopt.passes.prune import Prune

from graphopt import Context
from graphopt.analyses.cost import cost
from graphopt.execution.observe import observe
from graphopt.samples import Samples
from graphopt.testing import parse_model


def residual(count=2, tied=False):
    """Blocks s + W2 relu(W1 s), each of which can do with half of its hidden units."""
    rng = np.random.default_rng(0)
    lines, constants = [], {}
    for k in range(count):
        for name, shape in ((f"a{k}", (8, 12)), (f"b{k}", (24, 8))):
            constants[name] = (rng.standard_normal(shape) / 3).astype("f4")
        constants[f"a{k}"] = np.tile(constants[f"a{k}"], 2)
        a, b = ("a0", "b0") if tied else (f"a{k}", f"b{k}")
        before = "x" if k == 0 else f"s{k - 1}"
        lines += [f"h{k} = MatMul({before}, {a})", f"r{k} = Relu(h{k})"]
        lines += [f"d{k} = MatMul(r{k}, {b})", f"s{k} = Add({before}, d{k})"]
    lines.append(f"y = Sigmoid(s{count - 1})")
    used = {n: c for n, c in constants.items() if not tied or n in ("a0", "b0")}
    return parse_model("\n".join(lines), inputs={"x": ("N", 8)}, constants=used)


def given(count=256):
    x = np.random.default_rng(3).standard_normal((count, 8)).astype("f4")
    return Samples([{"x": x[k : k + 32]} for k in range(0, count, 32)])


def cut(source, samples):
    model = source.clone()
    Prune(ratio=0.5, compensate=False).run(model, Context(model, samples=samples))
    return model


def off(source, model, name):
    new = {"x": np.random.default_rng(9).standard_normal((64, 8)).astype("f4")}
    (a,), (b,) = (observe(m, [name], [new]) for m in (source, model))
    return float(np.square(a[name] - b[name]).mean() / a[name].var())


def test_every_part_comes_nearer_to_the_original_on_samples_never_seen():
    source, samples = residual(), given()
    model = cut(source, samples)
    before = [off(source, model, n) for n in ("s0", "s1")]
    done = blocks.train_blocks(source, model, samples, None, Context(model), batch=32)
    assert done >= 2
    after = [off(source, model, n) for n in ("s0", "s1")]
    assert all(a < 0.5 * b for a, b in zip(after, before, strict=True))


def test_of_many_samples_parts_learn_the_first_and_the_whole_learns_all(monkeypatch):
    source, samples = residual(), given(count=320)
    model = cut(source, samples)
    rows = []
    monkeypatch.setattr(distill, "FEW", 80)
    monkeypatch.setattr(distill, "train_blocks", lambda s, m, some, *_, **__: rows.append(some))
    ctx = Context(model, source=source, samples=samples)
    assert distill.Distill(epochs=1).run(model, ctx) > 0
    (some,) = rows
    assert [len(feeds["x"]) for feeds in some] == [32, 32, 16]


def test_weights_that_several_parts_share_are_left_alone():
    source, samples = residual(tied=True), given()
    model = cut(source, samples)
    kept = {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items()}
    blocks.train_blocks(source, model, samples, None, Context(model), batch=32)
    inside = model.graph.initializers
    shared = [n for n in kept if len(inside[n].uses()) > 1]
    begins = list(model.graph.inputs)
    end = next(o for n in model.graph for o in n.outputs if o.name == "s0")
    assert shared
    assert blocks._part(model, begins, end) is None


def test_sizes_of_a_part_are_those_that_all_runs_have():
    part = parse_model("y = Relu(x)", inputs={"x": (1, 3, 8)})
    arrays = [np.zeros((1, 3, 8), np.float32)]
    blocks._typed(part, arrays, [[(1, 3, 8)], [(1, 5, 8)]])
    assert part.graph.inputs[0].shape == [None, None, 8]


def test_steps_in_time_are_no_rows():
    source = parse_model(
        "t = Transpose <perm = [1, 0, 2]> (x)\nr = Relu(t)\nm = Relu(x)\ny = ReduceMean(r)",
        inputs={"x": ("N", 32, 8)},
    )
    feeds = {"x": np.ones((32, 32, 8), "f4")}
    assert blocks._by_row(source, ["t", "m"], feeds) == {"t": False, "m": True}


def test_parts_take_fewer_rows_where_values_are_large(monkeypatch):
    source, samples = residual(), given(count=320)
    model = cut(source, samples)
    rows = []
    monkeypatch.setattr(distill, "train_blocks", lambda s, m, some, *_, **__: rows.append(some))
    ctx = Context(model, source=source, samples=samples, shapes={"x": (4, 8)})
    each = ctx.get(cost).peak_activation_bytes / 4
    monkeypatch.setattr(distill, "ROOM", int(40.5 * each))
    assert distill.Distill(epochs=1).run(model, ctx) > 0
    assert [len(feeds["x"]) for feeds in rows[0]] == [32, 8]
