"""Filling: which input is the mask, which rows count, and what a fit makes of it."""

import numpy as np
import pytest
from graphopt.passes.prune import Prune

from graphopt import Context
from graphopt.calibration.padding import padding_of
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.testing import parse_model

WORDS, LENGTH, WIDTH = 20, 6, 8
INPUTS = {name: np.zeros((16, LENGTH), np.int64) for name in ("ids", "kinds", "mask")}
#: A hidden layer and attention over tokens, then a mean over those that the mask leaves.
TEXT = """
    e1 = Gather(words, ids)  e2 = Gather(sorts, kinds)  x = Add(e1, e2)
    k = MatMul(x, wk)  kt = Transpose <perm=[0,2,1]> (k)  s = MatMul(x, kt)
    m = Cast <to=1> (mask)  away = Sub(m, one)  far = Mul(away, big)  wide = Unsqueeze(far, ax1)
    masked = Add(s, wide)  p = Softmax(masked)  a = MatMul(p, x)  r = Add(x, a)
    h = MatMul(r, w0)  g = Tanh(h)  o = MatMul(g, w1)
    w = Unsqueeze(m, ax2)  ow = Mul(o, w)  total = ReduceSum <keepdims=0> (ow, ax1)
    count = ReduceSum <keepdims=1> (m, ax1)  y = Div(total, count)"""


def model(text=TEXT, **more):
    rng = np.random.default_rng(0)
    shapes = {"words": (WORDS, WIDTH), "sorts": (2, WIDTH), "wk": (WIDTH, WIDTH)}
    shapes |= {"w0": (WIDTH, 16), "w1": (16, WIDTH)}
    constants = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    constants |= {"one": np.float32(1), "big": np.float32(1e4)}
    constants |= {"ax1": np.array([1], np.int64), "ax2": np.array([2], np.int64)}
    return parse_model(text, inputs=INPUTS, constants={**constants, **more})


def feeds(runs=4, rows=16, filler=3):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(runs):
        lengths = rng.integers(1, LENGTH + 1, rows)
        lengths[0] = 2
        mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
        ids = np.where(mask == 1, rng.integers(0, WORDS, mask.shape), filler)
        found.append({"ids": ids, "kinds": rng.integers(0, 2, mask.shape), "mask": mask})
    return found


def test_the_mask_is_the_input_whose_zeros_no_output_depends_on():
    built, given = model(), feeds()
    found = padding_of(built, given, Context(built))
    assert [m.tolist() for m in found.masks] == [(f["mask"] == 1).tolist() for f in given]
    assert {(n, -1) for n in ("r", "h", "g", "o", "s")} | {("kt", 1)} <= found.turned.keys()
    assert not any(found.turned.values())
    assert not {("kt", -1), ("h", 1), ("y", -1), ("count", -1)} & found.turned.keys()


def test_a_mask_that_is_taken_by_indices_is_one_too():
    """Newer exporters look the mask up at places they compute."""
    text = TEXT.replace(
        "m = Cast <to=1> (mask)",
        """mf = Reshape(mask, flat)  at = Range(zero, all, step)  square = Shape(mask)
        ar = Reshape(at, square)  mg = Gather(mf, ar)  m = Cast <to=1> (mg)""",
    )
    built = model(
        text, flat=np.array([-1], np.int64), zero=np.int64(0), step=np.int64(1),
        all=np.int64(16 * LENGTH),
    )  # fmt: skip
    found = padding_of(built, feeds(), Context(built))
    assert {("h", -1), ("o", -1)} <= found.turned.keys()


@pytest.mark.parametrize(
    "change",
    [
        ("masked = Add(s, wide)  p = Softmax(masked)", "p = Softmax(s)"),
        ("ow = Mul(o, w)", "ow = Add(o, w)"),
    ],
)
def test_filling_that_reaches_an_output_counts(change):
    built = model(TEXT.replace(*change))
    assert padding_of(built, feeds(), Context(built)) is None


def test_samples_without_filling_are_taken_whole():
    built = model()
    full = [{**f, "mask": np.ones_like(f["mask"])} for f in feeds()]
    assert padding_of(built, full, Context(built)) is None


def test_rows_follow_the_operator():
    built, given = model(), feeds()
    found = padding_of(built, given, Context(built))
    assert found.rows(("h", -1), 2, None).tolist() == (given[2]["mask"] == 1).ravel().tolist()
    turned = TEXT.replace(
        "h = MatMul(r, w0)  g = Tanh(h)  o = MatMul(g, w1)",
        """rt = Transpose <perm=[1,0,2]> (r)  h = MatMul(rt, w0)  g = Tanh(h)
        ot = MatMul(g, w1)  o = Transpose <perm=[1,0,2]> (ot)""",
    )
    other = model(turned)
    found = padding_of(other, given, Context(other))
    assert found.rows(("h", -1), 2, None).tolist() == (given[2]["mask"].T == 1).ravel().tolist()
    flat = TEXT.replace(
        "h = MatMul(r, w0)  g = Tanh(h)  o = MatMul(g, w1)",
        """rf = Reshape(r, join)  h = MatMul(rf, w0)  g = Tanh(h)  of = MatMul(g, w1)
        shape = Shape(r)  o = Reshape(of, shape)""",
    )
    other = model(flat, join=np.array([-1, WIDTH], np.int64))
    found = padding_of(other, given, Context(other))
    assert found.rows(("h", -1), 2, None).tolist() == (given[2]["mask"] == 1).ravel().tolist()


def test_a_fit_is_of_the_tokens_that_count():
    """What other words the filling holds changes neither units nor weights."""
    made = []
    for filler in (3, 11):
        built = model()
        ctx = Context(built, samples=Samples(feeds(filler=filler)))
        assert Prune(ratio=0.3, layers=(("w0", 0.5),)).run(built, ctx)
        made.append({k: v.const_value.numpy() for k, v in built.graph.initializers.items()})
    assert made[0]["w0"].shape == (WIDTH, 8)
    for name, array in made[0].items():
        np.testing.assert_allclose(array, made[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert run(built, feeds()[0])["y"].shape == (16, WIDTH)
