import numpy as np
import pytest
from graphopt.passes.prune import Prune
from graphopt.passes.prune.recurrent import Cell, cell

from graphopt import Context
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.testing import parse_model

STEPS, BATCH, INPUTS, HIDDEN = 6, 8, 5, 12


def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def build(kind, direction="forward", before_reset=0, copies=1):
    """A recurrent layer and a product; of `copies` > 1, that many units do the same."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    d, own = (2 if direction == "bidirectional" else 1), HIDDEN // copies
    w = np.tile(normal(d, gates, own, INPUTS, seed=1), (1, 1, copies, 1)).reshape(d, -1, INPUTS)
    r = np.tile(normal(d, gates, own, own, seed=2), (1, 1, copies, copies)) / (2 * copies)
    b = np.tile(normal(d, 2 * gates, own, seed=3), (1, 1, copies)).reshape(d, -1)
    reset = f", linear_before_reset={before_reset}" if kind == "GRU" else ""
    text = (
        f'h = {kind} <hidden_size={HIDDEN}, direction="{direction}"{reset}> (x, w, r, b)'
        "  t = Transpose <perm=[0, 2, 1, 3]> (h)  f = Reshape (t, s)  y = MatMul (f, v)"
    )
    constants = {
        "w": w,
        "r": r.reshape(d, -1, HIDDEN),
        "b": b,
        "s": np.array([STEPS, BATCH, d * HIDDEN]),
        "v": normal(d * HIDDEN, 4, seed=4),
    }
    return parse_model(text, inputs={"x": (STEPS, BATCH, INPUTS)}, constants=constants)


KINDS = [
    ("LSTM", "forward", 0),
    ("LSTM", "reverse", 0),
    ("LSTM", "bidirectional", 0),
    ("GRU", "bidirectional", 1),
    ("GRU", "forward", 0),
    ("RNN", "forward", 0),
]


@pytest.mark.parametrize(("kind", "direction", "before_reset"), KINDS)
def test_units_that_say_the_same_go_without_loss(kind, direction, before_reset):
    model = build(kind, direction, before_reset, copies=2)
    samples = Samples([{"x": normal(STEPS, BATCH, INPUTS, seed=k)} for k in range(40)])
    feeds = {"x": normal(STEPS, BATCH, INPUTS, seed=99)}
    (before,) = run(model, feeds).values()
    ctx = Context(model, samples=samples)
    assert Prune(layers=(("*", 0.5),)).run(model, ctx)
    assert model.graph.initializers["r"].shape[-1] == HIDDEN // 2
    (after,) = run(model, feeds).values()
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    if kind == "GRU" and not before_reset:
        assert error < 0.5  # the candidate's R cannot be refitted: its input is not in the graph
    else:
        assert error < 0.02  # ridges of 1e-5, over six steps


@pytest.mark.parametrize(("kind", "direction", "before_reset"), KINDS)
def test_stores_what_it_is_given(kind, direction, before_reset):
    model = build(kind, direction, before_reset)
    feeds = {"x": normal(STEPS, BATCH, INPUTS, seed=99)}
    op = cell(next(iter(model.graph)))
    assert isinstance(op, Cell)
    (before,) = run(model, feeds).values()
    op.store(model, [op.weights(d) for d in range(len(op.reverse))])
    (after,) = run(model, feeds).values()
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("h, i = GRU <hidden_size=12> (x, w, r, , n)", "lengths"),
        ("h = GRU <hidden_size=12, layout=1> (x, w, r)", "first axis"),
        ("h = GRU <hidden_size=12> (x, x, r)", "computed"),
        ("h = Relu (x)", ""),
    ],
)
def test_leaves_alone(text, reason):
    constants = {
        "w": normal(1, 36, INPUTS, seed=1),
        "r": normal(1, 36, HIDDEN, seed=2),
        "n": np.full(BATCH, 3, np.int32),
    }
    model = parse_model(text, inputs={"x": (STEPS, BATCH, INPUTS)}, constants=constants, loose=True)
    found = cell(next(iter(model.graph)))
    assert isinstance(found, str)
    assert reason in found


def test_what_feeds_saturated_gates_counts_little():
    """The first state reads the first input, thrice, but is always 1."""
    constants = {
        "w": np.array([[[3, 0], [0, 1]]], np.float32),
        "r": np.zeros((1, 2, 2), np.float32),
        "b": np.array([[20, 0, 0, 0]], np.float32),
    }
    model = parse_model(
        "y = RNN <hidden_size=2> (x, w, r, b)", inputs={"x": (STEPS, BATCH, 2)}, constants=constants
    )
    op = cell(next(iter(model.graph)))
    assert isinstance(op, Cell)
    x = normal(STEPS, BATCH, 2, seed=5)
    (y,) = run(model, {"x": x}).values()
    (reader,) = op.readers(np.arange(2), None, [[x, y]])
    assert np.abs(reader.weight[0]).max() < 1e-3
    assert reader.weight[1, 1] > 0.3
    np.testing.assert_array_equal(reader.units, [0, 1, -1, -1])
