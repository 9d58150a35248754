"""Passes that promise equal outputs and are wrong where one look at the outputs does not see it."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import Pass, Samples, optimize
from graphopt.errors import PassError
from graphopt.pipeline.prepare import prepare
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)


@dataclasses.dataclass(frozen=True)
class Wrong(Pass):
    """Does to the model what `how` names."""

    how: str = ""

    def run(self, model, ctx):
        if not ctx.edit(self, "model"):
            return 0
        return HOWS[self.how](model, model.graph)


def swap_outputs(model, graph):
    graph.outputs[0], graph.outputs[1] = graph.outputs[1], graph.outputs[0]
    return 1


def add_one(model, graph):
    """The integers of k are one more: nothing beside their size in L2."""
    node = next(n for n in graph if n.op_type == "Mul" and n.outputs[0].name == "k")
    one = ir.Value(name="one_more", const_value=ir.tensor(np.int64(1), name="one_more"))
    graph.initializers["one_more"] = one
    more = ir.node("Add", [node.inputs[0], one], name="more")
    graph.insert_before(node, more)
    node.replace_input_with(0, more.outputs[0])
    return 1


def zero_scores(model, graph):
    value = graph.initializers["scale"]
    array = value.const_value.numpy().copy()
    array[-1] = 0
    value.const_value = ir.tensor(array, name="scale")
    return 1


def fixed_batch(model, graph):
    node = next(n for n in graph if n.op_type == "Reshape")
    target = node.inputs[1]
    target.const_value = ir.tensor(np.int64([1, 4]), name=target.name)
    return 1


def declared_shape(model, graph):
    graph.inputs[0].shape = ir.Shape([1, 4])
    return 1


def silent_interface(model, graph):
    """Returns 0 edits, and has changed what the output is declared as."""
    graph.outputs[0].shape = ir.Shape(["other", 4])
    return 0


def drop_small(model, graph):
    """A clip that only larger inputs than the samples would notice."""
    node = next(n for n in graph if n.op_type == "Clip")
    ten = ir.Value(name="ten", const_value=ir.tensor(np.float32(10), name="ten"))
    graph.initializers["ten"] = ten
    node.replace_input_with(2, ten)
    return 1


HOWS = {f.__name__: f for f in (
    swap_outputs, add_one, zero_scores, fixed_batch, declared_shape, silent_interface, drop_small,
)}  # fmt: skip


def model():
    return parse_model(
        """r = Reshape(x, shape)
        c = Clip(r, low, high)
        y = Mul(c, scale)
        z = Neg(r)
        i = Cast <to = 7> (r)
        k = Mul(i, thousand)""",
        inputs={"x": ("batch", 4)},
        constants={
            "shape": np.int64([-1, 4]),
            "low": np.float32(-100),
            "high": np.float32(100),
            "scale": np.float32([640, 640, 640, 0.1]),
            "thousand": np.int64(1000),
        },
    )


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("swap_outputs", "outputs y, z, k became z, y, k"),
        ("add_one", "changed k: its outputs differ"),
        ("zero_scores", "changed y: its outputs differ"),
        ("fixed_batch", "changed r: "),
        ("declared_shape", "shape [batch,4] became [1,4]"),
        ("silent_interface", "interface: output y: shape"),
        ("drop_small", "changed c: its outputs differ"),
    ],
)
def test_it_is_undone_and_told(how, why):
    given = Samples([{"x": RNG.uniform(1, 9, (1, 4)).astype(np.float32)}])
    before = model()
    result = optimize(before, [Wrong(how)], samples=given, measure=False)
    (step,) = result.report.steps
    assert step.status == "undone"
    assert why in step.reason
    assert [v.name for v in result.model.graph.outputs] == ["y", "z", "k"]


def change_the_source(model, ctx):
    for one in (model, ctx.source):
        next(n for n in one.graph if n.op_type == "Neg").op_type = "Abs"


def overwrite_a_weight(model, ctx):
    proto = model.graph.initializers["scale"].const_value.raw
    proto.raw_data = (np.frombuffer(proto.raw_data, np.float32) + 1).tobytes()


@dataclasses.dataclass(frozen=True)
class InPlace(Pass):
    """Changes what it shares with the source, and says nothing."""

    how: str = ""

    def run(self, model, ctx):
        {"graph": change_the_source, "weight": overwrite_a_weight}[self.how](model, ctx)
        return 0


@pytest.mark.parametrize("how", ["graph", "weight"])
def test_a_source_that_was_changed_in_place_is_noticed(how):
    given = ir.from_proto(ir.to_proto(model()))
    with pytest.raises(PassError, match="changed the source model itself"):
        optimize(given, [InPlace(how)], measure=False)


def test_outputs_that_say_nothing_are_told():
    nan = parse_model("y = Sqrt(x)", inputs={"x": (2, 2)})
    given = Samples([{"x": np.full((2, 2), -1, np.float32)}])
    result = optimize(nan, "clean", samples=given, measure=False)
    assert any(note.startswith("y: empty or NaN on every run") for note in result.report.notes)
    assert result.report.validated is False


@dataclasses.dataclass(frozen=True)
class Frozen(Pass):
    """Takes the length of a sequence for a constant."""

    def run(self, model, ctx):
        if not ctx.edit(self, "model"):
            return 0
        target = next(n for n in model.graph if n.op_type == "Reshape").inputs[1]
        target.const_value = ir.tensor(np.int64([1, 16, 4]), name=target.name)
        return 1


def test_other_axes_than_the_batch_are_tried_at_other_sizes():
    text = parse_model("h = Relu(x)  y = Reshape(h, shape)", inputs={"x": (1, "length", 4)},
                       constants={"shape": np.int64([1, -1, 4])})  # fmt: skip
    setting = prepare(text, measure=False)
    assert {len(f["x"][0]) for f in setting.judge.extra} == {16, 17, 8}
    assert optimize(text, [Frozen()], measure=False).report.steps[0].status == "undone"


def test_the_extremes_of_all_samples_are_tried():
    given = Samples([{"x": np.full((1, 4), v, np.float32)} for v in (1, -7, 30)])
    extra = prepare(model(), samples=given, measure=False).judge.extra
    assert any(set(np.unique(f["x"])) == {-7, 30} for f in extra)
