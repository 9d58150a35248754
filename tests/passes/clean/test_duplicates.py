import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.clean import duplicates
from graphopt.passes.clean.clean import Clean
from graphopt.passes.clean.duplicates import merge_initializers

import graphopt
from graphopt import Context
from graphopt.testing import check, parse_model


def from_text(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def test_equal_nodes_are_computed_once():
    check(
        Clean(),
        before="a = Exp(x)  b = Exp(x)  c = Add(a, z)  d = Add(z, b)  y = Mul(c, d)",
        after="a = Exp(x)  c = Add(a, z)  y = Mul(c, c)",
        inputs={"x": (2, 3), "z": (2, 3)},
    )


@pytest.mark.parametrize(
    "other", ["b = Log(x)", "b = Exp(z)", "b = Softmax<axis = 0>(x)", "b = Sub(z, x)"]
)
def test_different_nodes_stay(other):
    before = f"a = Softmax<axis = 1>(x)  e = Sub(x, z)  {other}  f = Add(a, e)  y = Mul(f, b)"
    check(Clean(), before=before, unchanged=True, inputs={"x": (2, 3), "z": (2, 3)})


def test_random_numbers_are_not_merged():
    text = "a = RandomNormalLike(x)  b = RandomNormalLike(x)  y = Sub(a, b)"
    model = parse_model(text)
    assert Clean().run(model, Context(model)) == 0


def test_two_equal_outputs_stay_two():
    check(Clean(), before="y = Exp(x)  z = Exp(x)", unchanged=True)


def test_an_output_is_merged_into_an_inner_value():
    model = check(Clean(), before="a = Exp(x)  b = Neg(a)  y = Exp(x)")
    assert [n.op_type for n in model.graph] == ["Exp", "Neg"]
    assert [o.name for o in model.graph.outputs] == ["b", "y"]


def test_a_branch_uses_what_was_computed_before_it():
    text = """<ir_version: 10, opset_import: ["" : 20]> g (bool c, float[3] x) => (y, e) {
        e = Exp(x)
        y = If(c) <
            then_branch = t () => (a) { q = Exp(x) a = Neg(q) },
            else_branch = f () => (b) { b = Abs(x) }
        >
    }"""
    model = from_text(text)
    check(Clean(), model, inputs={"c": np.array(True)})
    assert sum(n.op_type == "Exp" for n in model.graph.all_nodes()) == 1


def test_equal_initializers_are_stored_once():
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    before = "a = Add(x, v)  y = Mul(a, w)"
    model = check(Clean(), before=before, constants={"v": w, "w": w.copy()})
    assert len(model.graph.initializers) == 1


def test_zeros_of_either_sign_and_types_are_different():
    constants = {
        "v": np.array([0.0], np.float32),
        "w": np.array([-0.0], np.float32),
        "u": np.array([0.0], np.float64),
    }
    model = parse_model("a = Add(x, v)  b = Add(a, w)  y = CastLike(b, u)", constants=constants)
    assert merge_initializers(model, Context(model)) == 0


def test_text_is_compared():
    text = "y = Concat<axis = 0>(a, b, c)"
    constants = {"a": np.array(["p"], object), "b": np.array(["p"], object)}
    model = parse_model(text, constants={**constants, "c": np.array(["q"], object)})
    assert merge_initializers(model, Context(model)) == 1


def test_large_weights_are_compared_to_the_last_byte():
    w = np.zeros(3 << 19, np.float32)
    v = w.copy()
    v[1_000_003] = 1
    model = parse_model("a = Add(x, v)  y = Add(a, w)", constants={"v": v, "w": w})
    assert merge_initializers(model, Context(model)) == 0


def test_weights_tied_by_one_place_in_a_file_are_one_without_a_look(tmp_path, monkeypatch):
    w, v = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    text = "a = MatMul(x, w)  y = MatMul(a, v)"
    model = parse_model(text, inputs={"x": (2, 64)}, constants={"w": w, "v": v})
    graphopt.save(model, tmp_path / "m.onnx", external=True)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    first, second = proto.graph.initializer
    second.ClearField("external_data")
    second.external_data.extend(first.external_data)
    onnx.save(proto, tmp_path / "tied.onnx")
    tied = graphopt.load(tmp_path / "tied.onnx")
    graphopt.save(tied, tmp_path / "still.onnx", external=True)
    assert (tmp_path / "still.onnx.data").stat().st_size == w.nbytes
    monkeypatch.setattr(duplicates, "_equal", lambda *_: pytest.fail("contents were compared"))
    assert merge_initializers(tied, Context(tied)) == 1
    graphopt.save(tied, tmp_path / "one.onnx")
    assert w.nbytes < (tmp_path / "one.onnx").stat().st_size < w.nbytes + 1000
