"""Invented inputs that fit, or who stands in the way."""

import numpy as np
import onnx
import pytest

from graphopt import Pass, optimize
from graphopt.errors import InputError
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.samples.stand_ins import BATCH, IMAGES, ROOM, many, stand_ins
from graphopt.testing import parse_model


def table(text, rows=5):
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 17]> g (int64[n] a, int64[n] b, float[n, 4] x) '
        f"=> (float[n, 4] y) {{ {text} h = Add(g, x) y = Identity(h) }}"
    )
    held = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    model.graph.initializer.append(onnx.numpy_helper.from_array(held, "t"))
    return model


def report(model):
    return optimize(model, "clean", measure=False).report


def test_indices_that_are_computed_are_humble():
    """A product of two ids lies beyond what either might index alone."""
    found = report(table("k = Mul(a, b) g = Gather(t, k)"))
    assert not any("not compared" in n for n in found.notes)
    assert found.steps[0].error_vs_source["y"].rel_l2 == 0


@pytest.mark.parametrize("index", ["k = Add(a, o)", "k = Sub(a, o)"])
def test_an_input_that_nothing_fits_is_named(index):
    """Only ids of 100 and more, or less, are rows of this table."""
    text = f"o = Constant <value_int = 100> () m = Neg(a) {index} g = Gather(t, k) n = Neg(b)"
    found = report(table(text))
    (line,) = [n for n in found.notes if "UNVERIFIED" in n]
    assert line == "UNVERIFIED: nothing invented for 'a' fits; give --samples"
    assert any("not compared" in n for n in found.notes)
    with pytest.raises(InputError, match="nothing invented for 'a' fits: give --samples"):
        optimize(table(text), [RunsIt()], measure=False)


class RunsIt(Pass):
    """A pass of a user that asks the model."""

    name = "runs-it"

    def run(self, model, ctx):
        return len(run(model, next(iter(stand_ins(model, shapes=ctx.shapes))))) - 1


def test_states_start_at_zero_and_take_what_the_model_gave():
    """Log(c + 1): a state below -1, of which a random one has many, is nothing the model meets."""
    text = "one = Constant <value_float = 1.0> ()  c = Add(c0, one)  g = Log(c)  p = Abs(x)"
    model = parse_model(f"{text}  cn = Add(g, p)  y = Neg(cn)", inputs={"x": (2, 3), "c0": (2, 3)})
    model.graph.outputs.append(next(n for n in model.graph if n.outputs[0].name == "cn").outputs[0])
    first, second = stand_ins(model, shapes={"x": (2, 3), "c0": (2, 3)})
    assert not first["c0"].any()
    np.testing.assert_array_equal(second["c0"], run(model, first)["cn"])
    assert np.isfinite(run(model, second)["y"]).all()
    assert not np.array_equal(first["x"], second["x"])


def test_caches_that_grow_are_drawn():
    text = "present_k = Concat <axis = 1> (past_k, x)  y = Neg(present_k)"
    sizes = {"x": (1, 1, 4), "past_k": (1, 3, 4)}
    model = parse_model(text, inputs=sizes)
    model.graph.outputs.append(next(iter(model.graph)).outputs[0])
    for value in (model.graph.inputs[1], model.graph.outputs[-1]):
        value.shape = type(model.graph.inputs[0].shape)([1, value.name, 4])
    first, second = stand_ins(model, shapes=sizes)
    assert first["past_k"].shape == second["past_k"].shape == (1, 3, 4)
    assert second["past_k"].any()


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((None, 1, 8, 8), BATCH), ((1, 3, 8, 8), 1), ((None, 8, 8, 3), BATCH)],
)
def test_images_are_invented_in_numbers(shape, batch):
    model = parse_model("y = Relu (x)", inputs={"x": shape})
    sizes = {"x": tuple(n or 1 for n in shape)}
    found = many(model, stand_ins(model, shapes=sizes))
    assert found.synthetic
    arrays = [feeds["x"] for feeds in found]
    assert len(arrays) == IMAGES // batch
    assert {a.shape for a in arrays} == {(batch, *shape[1:])}
    assert len({a.tobytes() for a in arrays}) == len(arrays)


def test_large_images_go_through_few_at_once():
    model = parse_model("y = Relu (x)", inputs={"x": (None, 3, 720, 720)})
    found = many(model, stand_ins(model, shapes={"x": (1, 3, 720, 720)}), images=8)
    (rows,) = {len(feeds["x"]) for feeds in found}
    assert 1 < rows < BATCH
    assert rows * 3 * 720 * 720 * 4 <= ROOM


def test_nothing_but_images_is_invented_in_numbers():
    model = parse_model("y = Relu (x)", inputs={"x": (4, 8)})
    assert many(model, stand_ins(model, shapes={"x": (4, 8)})) is None


def test_nothing_is_invented_in_place_of_placeholders():
    model = parse_model("y = Relu (x)", inputs={"x": (1, 3, 8, 8)})
    drawn = stand_ins(model, shapes={"x": (1, 3, 8, 8)})
    assert many(model, Samples(drawn, synthetic=True, placeholders=True)) is None
    watched = Samples(drawn, synthetic=True, placeholders=True).watched(lambda *_: None)
    assert watched.placeholders
    assert watched.without(0, 2).placeholders
