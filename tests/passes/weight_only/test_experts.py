"""Mixtures of experts in a few bits: what the runtime computes, and what stays as it is."""

import numpy as np
import pytest
from graphopt.passes.weight_only import WeightOnly
from graphopt.passes.weight_only.blocks import Form, in_blocks

from graphopt.analyses.cost import cost
from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.pipeline.optimize import optimize
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
X = RNG.standard_normal((7, 128)).astype(np.float32)
P = RNG.standard_normal((7, 4)).astype(np.float32)
CPU = find_target("cpu")


def weights(gates, bias):
    made = {
        "w1": RNG.standard_normal((4, gates * 64, 128)).astype(np.float32) / 11,
        "w2": RNG.standard_normal((4, 128, 64)).astype(np.float32) / 8,
    }
    if bias:
        made |= {
            "b1": RNG.standard_normal((4, gates * 64)).astype(np.float32),
            "b2": RNG.standard_normal((4, 128)).astype(np.float32),
        }
    return made


def mixture(attributes, constants, inputs="x, p, w1, b1, w2, b2"):
    return parse_model(
        f"y = com.microsoft.MoE <k=2, {attributes}> ({inputs})",
        inputs={"x": X, "p": P},
        constants=constants,
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("attributes", "gates", "bias"),
    [
        ('activation_type="relu"', 1, True),
        ('activation_type="gelu", normalize_routing_weights=1', 1, False),
        ('activation_type="swiglu", swiglu_fusion=1, activation_alpha=1.7', 2, True),
    ],
)
def test_the_runtime_computes_what_the_blocks_stand_for(attributes, gates, bias, bits):
    given = weights(gates, bias)
    inputs = "x, p, w1, b1, w2, b2" if bias else "x, p, w1, , w2"
    model = mixture(attributes, given, inputs)
    before = cost(Context(model)).macs
    assert WeightOnly(bits=bits).run(model, Context(model, target=CPU)) == 1
    node = list(model.graph)[-1]
    assert (node.op_type, node.attributes["k"].as_int()) == ("QMoE", 2)
    assert cost(Context(model)).macs == before == 7 * 2 * 128 * 64 * (gates + 1)
    assert {n: v.const_value.shape.numpy()[-1] for n, v in model.graph.initializers.items()
            if n.endswith("_q")} == {"w1_q": 128 * bits // 8, "w2_q": 64 * bits // 8}  # fmt: skip
    near = dict(given)
    for name in ("w1", "w2"):
        rows = given[name].reshape(-1, given[name].shape[2])
        near[name] = in_blocks(rows, Form(bits, 64), np.float32).matrix(rows.shape[1])
        near[name] = near[name].reshape(given[name].shape)
    want = run(mixture(attributes, near, inputs), {"x": X, "p": P})["y"]
    got = run(model, {"x": X, "p": P})["y"]
    # activations are rounded to 8 bits at run time
    assert np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)


def test_what_cannot_be_packed_stays_with_a_reason():
    given = weights(1, True)
    odd = {**given, "w1": given["w1"][:, :40].copy(), "w2": given["w2"][:, :, :40].copy(),
           "b1": given["b1"][:, :40].copy()}  # fmt: skip
    for constants, options, why in (
        (odd, {}, "blocks of 32 do not divide the rows of its experts"),
        (given, {"block": 128}, "blocks of 128 do not divide"),
        ({**given, "w2": given["w2"] * np.inf}, {}, "is not finite"),
        (given, {"layers": (("*", 0),)}, "layers= says so"),
    ):
        model = mixture('activation_type="relu"', constants)
        ctx = Context(model, target=CPU)
        assert WeightOnly(**options).run(model, ctx) == 0
        assert [n.op_type for n in model.graph] == ["MoE"]
        assert why in ctx.refusals[0].reason


def test_the_whole_pipeline_takes_it():
    model = mixture('activation_type="silu"', weights(1, True))
    result = optimize(model, "clean,fold,fuse,weight_only(bits=8)", measure=False)
    assert [n.op_type for n in result.model.graph] == ["Softmax", "QMoE"]
    got, want = (run(m, {"x": X, "p": P})["y"] for m in (result.model, model))
    assert 0 < np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
