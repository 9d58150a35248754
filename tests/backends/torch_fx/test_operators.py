"""Every operator that can be lowered, beside ONNX Runtime on a small model."""

import numpy as np
import pytest
from operator_cases import PLAIN, SMOOTH, model_of

from graphopt.execution.runtime import run
from graphopt.execution.trainable import trainable

torch = pytest.importorskip("torch")

CASES = {**SMOOTH, **PLAIN}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_runtime(name):
    model, feeds = model_of(name, *CASES[name])
    expected = run(model, feeds)
    module = trainable(model)
    with torch.no_grad():
        got = module(*[torch.from_numpy(feeds[n]) for n in module.meta["graphopt.inputs"]])
    for want, tensor in zip(expected.values(), got, strict=True):
        have = tensor.numpy()
        assert have.dtype == want.dtype
        assert have.shape == want.shape
        if want.dtype.kind == "f":
            # float32 sums of at most some hundred terms, in another order
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=2e-5)
        else:
            np.testing.assert_array_equal(have, want)
