import numpy as np
import pytest
from graphopt.passes.fp16 import Fp16
from graphopt.passes.int8 import Int8
from graphopt.passes.prune import Prune
from graphopt.passes.svd import Svd
from graphopt.passes.weight_only import WeightOnly

from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.graph import provenance
from graphopt.layers import by_layer, by_node
from graphopt.samples import Samples
from graphopt.spec import parse
from graphopt.target import Target
from graphopt.testing import parse_model

TARGET = Target(
    "t", operators=frozenset({"com.microsoft:MatMulNBits"}), precisions=("float32", "float16")
)
RNG = np.random.default_rng(0)


def test_the_first_pattern_that_matches_counts():
    known = {"a": ("enc.fc1",), "b": ("enc.fc2", "was"), "c": ("head",)}
    assert by_layer((("was", 1), ("enc*", 2), ("*", 3)), known, "p") == {"a": 2, "b": 1, "c": 3}
    assert by_layer((("enc.fc?", 2),), known, "p") == {"a": 2, "b": 2}
    assert by_layer((), known, "p") == {}


def test_a_pattern_that_matches_nothing_is_an_error_that_names_the_nearest():
    with pytest.raises(UsageError, match=r"'heed' matches no name \(did you mean 'head'"):
        by_layer((("heed", 1),), {"c": ("head",)}, "p")


def test_nodes_are_known_by_what_they_were_made_of():
    model = parse_model("y = MatMul(x, w)", inputs={"x": (2, 2)}, constants={"w": np.eye(2)})
    (node,) = model.graph
    origin = parse_model("y = Relu(x)", inputs={"x": (2,)}).graph[0]
    origin.name = "encoder/fc"
    provenance.derive([node], [origin], "fuse")
    assert by_node((("encoder/*", 4),), model.graph, "p") == {node: 4}


@pytest.mark.parametrize(
    "spec",
    [
        "prune(layers=(('nowhere*', 0.5),))",
        "svd(layers=(('nowhere*', 8),))",
        "int8(layers=(('nowhere*', 'float'),))",
        "weight_only(layers=(('nowhere*', 8),))",
        "fp16(layers=(('nowhere*', 'float'),))",
    ],
)
def test_every_pass_with_a_strength_refuses_a_pattern_that_matches_nothing(spec):
    w = RNG.standard_normal((32, 32)).astype(np.float32)
    text = "a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v)"
    model = parse_model(text, inputs={"x": (4, 32)}, constants={"w": w, "v": w.T.copy()})
    (one,) = parse(spec)
    samples = Samples([{"x": RNG.standard_normal((4, 32)).astype(np.float32)}])
    with pytest.raises(UsageError, match="layers: 'nowhere\\*' matches no name"):
        one.run(model, Context(model, target=TARGET, samples=samples))


@pytest.mark.parametrize(("cls", "value"), [(Prune, 1.0), (Svd, -1), (Svd, 1.5), (WeightOnly, 3)])
def test_values_that_are_none_are_refused(cls, value):
    with pytest.raises((ValueError, UsageError), match="layers: '\\*'"):
        cls(layers=(("*", value),))


@pytest.mark.parametrize("spec", ["int8(layers=(('*', 'half'),))", "fp16(layers=(('*', 8),))"])
def test_a_spec_names_what_layers_takes(spec):
    with pytest.raises(UsageError, match="option 'layers' takes"):
        parse(spec)


def test_bits_by_layer():
    w = RNG.standard_normal((160, 128)).astype(np.float32)
    text = "a = MatMul(x, w)  b = MatMul(x, v)  c = MatMul(x, u)"
    constants = {"w": w, "v": w + 1, "u": w + 2}
    model = parse_model(text, inputs={"x": (9, 160)}, constants=constants)
    WeightOnly(layers=(("MatMul_1", 8), ("MatMul_2", 0))).run(model, Context(model, target=TARGET))
    made = [n.attributes.get_int("bits", 0) for n in model.graph]
    assert sorted(made) == [0, 4, 8]


@pytest.mark.parametrize(
    ("form", "operator"),
    [("static", "QuantizeLinear"), ("dynamic", "DynamicQuantizeLinear"), ("float", "MatMul")],
)
def test_the_form_of_integers_by_layer(form, operator):
    x = RNG.standard_normal((4, 16)).astype(np.float32)
    w = RNG.standard_normal((16, 16)).astype(np.float32)
    model = parse_model("y = MatMul(x, w)", inputs={"x": x}, constants={"w": w})
    one = Int8(layers=(("Mat*", form),))
    one.run(model, Context(model, target=TARGET, samples=Samples([{"x": x}])))
    assert operator in [n.op_type for n in model.graph]
    assert isinstance(Fp16(layers=(("a", "half"),)), Fp16)
