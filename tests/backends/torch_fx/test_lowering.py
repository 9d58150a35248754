"""Lowering to torch: the module computes what ONNX Runtime computes, weights go there and back."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import plugins
from graphopt.errors import GraphOptError
from graphopt.execution.runtime import run
from graphopt.execution.trainable import trainable, write_back
from graphopt.formats import load, save
from graphopt.testing import parse_model

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)


def weights(**shapes):
    return {k: RNG.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def small():
    model = parse_model(
        "a = Conv <pads=[1, 1, 1, 1]> (x, w, b)  r = Relu(a)  g = GlobalAveragePool(r)  "
        "f = Flatten(g)  y = Gemm <transB=1> (f, fc)",
        inputs={"x": (2, 3, 8, 8)},
        constants=weights(w=(4, 3, 3, 3), b=(4,), fc=(5, 4)),
    )
    model.graph.initializers["w"].name = "conv.weight/0"
    return model


def test_parameters_are_the_initializers_by_name():
    module = trainable(small())
    assert {n for n, _ in module.named_parameters()} == {"conv.weight/0", "b", "fc"}


def test_outputs_are_those_of_the_runtime():
    model, x = small(), RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    (y,) = trainable(model)(torch.from_numpy(x))
    expected = run(model, {"x": x})["y"]
    # both sum at most 27 products in float32, in another order
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_weights_that_nothing_reads_are_no_parameters():
    model = small()
    unread = ir.Value(name="unread.weight", const_value=ir.tensor(np.ones(3, np.float32)))
    model.graph.register_initializer(unread)
    module = trainable(model)
    assert set(module.meta["graphopt.parameters"]) == {"conv.weight/0", "b", "fc"}
    assert write_back(module, model) == 0


def test_trained_weights_go_back_as_new_tensors():
    model = small()
    before = model.graph.initializers["fc"].const_value
    held = before.numpy().copy()
    module = trainable(model)
    with torch.no_grad():
        module.fc.mul_(2)
    assert write_back(module, model) == 1
    np.testing.assert_array_equal(before.numpy(), held)
    np.testing.assert_array_equal(model.graph.initializers["fc"].const_value.numpy(), 2 * held)


def test_unknown_operators_are_named_with_their_nodes():
    model = parse_model("y = StringNormalizer(x)  z = com.acme.Magic(y)")
    with pytest.raises(GraphOptError, match=r"StringNormalizer .*com.acme:Magic|com.acme:Magic"):
        trainable(model)


def test_names_of_the_exporter_are_left_to_it():
    model = parse_model("y = Add(x, val_3)", inputs={"x": (4,)}, constants=weights(val_3=(4,)))
    module = trainable(model)
    assert [n for n, _ in module.named_parameters()] == ["val_3_"]
    with torch.no_grad():
        module.val_3_.zero_()
    assert write_back(module, model) == 1
    assert not model.graph.initializers["val_3"].const_value.numpy().any()


def test_dropout_in_training_is_refused():
    model = parse_model(
        "y = Dropout(x, r, t)",
        inputs={"x": (4,)},
        constants={"r": np.float32(0.5).reshape(()), "t": np.bool_(True).reshape(())},
    )
    with pytest.raises(GraphOptError, match="drops elements"):
        trainable(model)


def test_the_batch_may_differ_from_run_to_run():
    model = small()
    model.graph.inputs[0].shape = ir.Shape(["batch", 3, 8, 8])
    module = trainable(model)
    for batch in (1, 5):
        assert module(torch.zeros(batch, 3, 8, 8))[0].shape == (batch, 5)


def test_branches_and_loops_follow_the_runtime():
    body = """
    <ir_version: 10, opset_import: ["": 20]>
    g (float[2, 3] x, bool c, int64 n) => (float[2, 3] y, float[2, 3] z, float[k, 2, 3] all)
    <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
        y = If (c) <
            then_branch = a () => (float[2, 3] p) { p = Mul (x, w) },
            else_branch = b () => (float[2, 3] q) { q = Neg (x) }
        >
        t = Constant <value = bool {1}> ()
        z, all = Loop (n, t, x) <
            body = d (int64 i, bool on, float[2, 3] s) => (bool more, float[2, 3] r, float[2, 3] o)
            { more = Identity (on)  r = Add (s, w)  o = Mul (r, x) }
        >
    }
    """
    model = ir.from_proto(onnx.parser.parse_model(body))
    module = trainable(model)
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    for condition in (True, False):
        feeds = {"x": x, "c": np.array(condition), "n": np.array(3)}
        expected = run(model, feeds)
        got = module(*[torch.from_numpy(feeds[n]) for n in module.meta["graphopt.inputs"]])
        for want, have in zip(expected.values(), got, strict=True):
            np.testing.assert_allclose(have.detach().numpy(), want, rtol=1e-6)


def test_the_backend_is_found_by_name():
    backend = plugins.find(plugins.BACKENDS)["torch"].load()
    assert list(backend.targets()) == ["torch"]


def test_weights_tied_in_the_file_are_one_parameter(tmp_path):
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    model = parse_model(
        "a = MatMul(x, w)  y = MatMul(a, v)",
        inputs={"x": (2, 32)},
        constants={"w": weight, "v": weight},
    )
    both = model.graph.initializers
    both["v"].const_value = both["w"].const_value
    save(model, tmp_path / "tied.onnx", external=True)
    again = load(tmp_path / "tied.onnx")
    module = trainable(again)
    assert len(list(module.parameters())) == 1
    with torch.no_grad():
        next(module.parameters()).mul_(2)
    write_back(module, again)
    held = again.graph.initializers
    assert held["w"].const_value is held["v"].const_value
