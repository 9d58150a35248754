"""Nothing lowered is tied to a device: new tensors are made where inputs or weights are."""

import pytest
from operator_cases import PLAIN, SMOOTH, model_of

from graphopt.execution.trainable import trainable

torch = pytest.importorskip("torch")
CASES = {**SMOOTH, **PLAIN}
MAKERS = ("tensor", "arange", "zeros", "ones", "full", "empty", "eye", "scalar_tensor")


@pytest.mark.parametrize("name", CASES)
def test_new_tensors_take_their_device_from_others(name):
    module = trainable(model_of(name, *CASES[name])[0])
    for node in module.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", "") in MAKERS:
            assert isinstance(node.kwargs["device"], torch.fx.Node), node
        held = (*node.args, *node.kwargs.values())
        assert not any(isinstance(a, torch.device | torch.Tensor) for a in held), node
