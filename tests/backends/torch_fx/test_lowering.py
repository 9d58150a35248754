"""Lowering to torch: the module computes what ONNX Runtime computes, weights go there and back."""

import numpy as np
import pytest

from graphopt import plugins
from graphopt.errors import GraphOptError
from graphopt.runtime import run
from graphopt.testing import parse_model
from graphopt.trainable import trainable, write_back

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


def test_the_backend_is_found_by_name():
    backend = plugins.find(plugins.BACKENDS)["torch"].load()
    assert list(backend.targets()) == ["torch"]
