"""Gradients of lowered operators beside finite differences, in float64."""

import numpy as np
import pytest
from operator_cases import SMOOTH, f, ints, model_of

from graphopt.execution.trainable import trainable

torch = pytest.importorskip("torch")

#: Operators whose lowering computes in float32 throughout cannot be checked in float64.
CHECKED = [n for n in SMOOTH if not n.startswith(("Resize", "DynamicQuantize"))]


def module_of(name, text, arrays):
    model, feeds = model_of(name, text, arrays)
    module = trainable(model).double()
    names = module.meta["graphopt.inputs"]
    inputs = [torch.from_numpy(feeds[n]) for n in names]
    return module, [x.double() if x.is_floating_point() else x for x in inputs]


@pytest.mark.parametrize("name", CHECKED)
def test_agrees_with_finite_differences(name):
    module, inputs = module_of(name, *SMOOTH[name])
    leaves = [x.requires_grad_() for x in inputs if x.is_floating_point()]
    leaves += list(module.parameters())
    rng = torch.Generator().manual_seed(3)
    directions = [torch.randn(x.shape, dtype=x.dtype, generator=rng) for x in leaves]

    def value():
        outputs = [y for y in module(*inputs) if y.is_floating_point()]
        return sum((y * torch.cos(torch.arange(y.numel()).reshape(y.shape))).sum() for y in outputs)

    gradients = torch.autograd.grad(value(), leaves, allow_unused=True)
    analytic = sum(
        float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None
    )
    eps, ends = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2):
            for x, d in zip(leaves, directions, strict=True):
                x.add_(d, alpha=sign * eps)
            ends.append(float(value()))
    numeric = (ends[0] - ends[1]) / (2 * eps)
    # central differences: error eps^2 f''' + 1e-16 |f| / eps, far below 1e-5 of the gradient
    assert analytic == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_quantization_passes_gradients_to_input_and_scale():
    step = np.float32(0.1).reshape(())
    zero = np.uint8(20).reshape(())
    text = "q = QuantizeLinear(x, s, o)  z = DequantizeLinear(q, s, o)"
    x = np.array([-9.0, -0.33, 0.0, 1.26, 99.0], np.float32)
    module, (given,) = module_of("QDQ", text, {"x": x, "s": step, "o": zero})
    module, given = module.float(), torch.from_numpy(x).requires_grad_()
    (z,) = module(given)
    dx, ds = torch.autograd.grad(z.sum(), [given, module.s])
    # inside the range 1 and q - z - x / s; outside 0 and q - z, with q at the end of the range
    np.testing.assert_array_equal(dx.numpy(), [0, 1, 1, 1, 0])
    expected = -20 + (-3 + 3.3) + 0 + (13 - 12.6) + 235
    assert float(ds) == pytest.approx(expected, abs=1e-3)


def test_integer_weights_are_float_parameters_on_their_grid():
    w = (np.arange(12) - 6).astype(np.int8).reshape(3, 4)
    text = "d = DequantizeLinear <axis=0> (w, s, o)  z = MatMul(x, d)"
    constants = {"w": w, "s": np.float32([0.1, 0.2, 0.3]), "o": ints(0, 1, 0, dtype=np.int8)}
    module, inputs = module_of("weight", text, {"x": f(2, 3), **constants})
    assert {n for n, _ in module.named_parameters()} == {"w", "s"}
    real = (w - constants["o"][:, None]) * constants["s"][:, None]
    np.testing.assert_allclose(module.w.detach().numpy(), real, rtol=1e-6)
    with torch.no_grad():
        module.w += 0.03  # on the grid itself the gradient of the scale is 0
    module.float()(*[x.float() for x in inputs])[0].sum().backward()
    assert module.w.grad.abs().min() > 0
    assert module.s.grad.abs().min() > 0
