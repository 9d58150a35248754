"""Mixed bits: what matters little has few, and the outputs are as near as with 4 bits by 32."""

import numpy as np
import pytest
from graphopt.passes.weight_only import WeightOnly
from graphopt.passes.weight_only.allocation import REFERENCE, _packed, mixed_forms
from graphopt.passes.weight_only.blocks import form_of

from graphopt.analyses.linear import linear_of
from graphopt.backend import find_target
from graphopt.calibration.sensitivity import movement
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.testing import parse_model

TARGET = find_target("cpu-avx512-vnni")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 256)).astype(np.float32)


def weight(scale=1.0):
    return (scale / 16 * RNG.standard_normal((256, 256))).astype(np.float32)


def network():
    """Eight products side by side, half of which hardly reach the output."""
    names = [f"w{k}" for k in range(8)]
    text = "".join(f"h{k} = MatMul(x, w{k})\n" for k in range(8))
    text += f"y = Sum({', '.join(f'h{k}' for k in range(8))})"
    constants = {n: weight(0.02 if k % 2 else 1.0) for k, n in enumerate(names)}
    model = parse_model(text, inputs={"x": X}, constants=constants)
    return model, Context(model, target=TARGET, samples=Samples([{"x": X}]))


@pytest.mark.parametrize("block", [None, 128])
def test_products_that_matter_little_have_few_bits(block):
    model, ctx = network()
    ops = [op for n in model.graph if not isinstance(op := linear_of(n), str)]
    forms = mixed_forms(model, ops, ctx, block)
    assert len(forms) == 8
    few = {n.name for n, form in forms.items() if form.bits == 2}
    assert few == {f"MatMul_{k}" for k in (1, 3, 5, 7)}
    if block:
        assert {form.size for form in forms.values()} == {block}
    expected = [run(model, {"x": X})]

    def moved(forms):
        return movement(expected, [run(_packed(model, forms, ctx), {"x": X})])

    bits, size, _ = REFERENCE
    uniform = {op.node: form_of(op.matrix()[0], bits, (size,)) for op in ops}
    assert moved(forms) <= moved(uniform)
    assert "products chose: 4 of 2 bits" in ctx.notes[0]


def test_the_model_holds_them():
    model, ctx = network()
    assert WeightOnly(bits="mixed").run(model, ctx) == 8
    bits = [n.attributes["bits"].as_int() for n in model.graph if n.op_type == "MatMulNBits"]
    assert bits[1::2] == [2] * 4
    assert 2 not in bits[0::2]


def test_it_needs_samples():
    model, _ = network()
    with pytest.raises(UsageError, match="give --samples"):
        WeightOnly(bits="mixed").run(model, Context(model, target=TARGET))
