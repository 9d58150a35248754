from dataclasses import dataclass

import numpy as np
import pytest
from graphopt.passes.int8.unfuse import open_fused

from graphopt import Pass
from graphopt.testing import check

W = {"w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)}
X = {"x": (1, 3, 6, 6)}


@dataclass(frozen=True)
class Open(Pass):
    def run(self, model, ctx):
        return open_fused(model, ctx)


@pytest.mark.parametrize(
    ("fused", "plain"),
    [
        ('<activation="Relu">', "y = Relu(a)"),
        ('<activation="LeakyRelu", activation_params=[0.3]>', "y = LeakyRelu<alpha=0.3>(a)"),
        (
            '<activation="HardSigmoid", activation_params=[0.2, 0.4]>',
            "y = HardSigmoid<alpha=0.2, beta=0.4>(a)",
        ),
        ('<activation="Clip", activation_params=[-0.5, 0.5]>', "y = Clip(a, low, high)"),
    ],
)
def test_a_fused_convolution_becomes_its_parts(fused, plain):
    before = f"y = com.microsoft.FusedConv{fused}(x, w)"
    check(Open(), before, f"a = Conv(x, w)\n{plain}", inputs=X, constants=W)


def test_a_summand_goes_before_the_activation():
    check(
        Open(),
        'z = Neg(s)\ny = com.microsoft.FusedConv<activation="Relu">(x, w, b, z)',
        "z = Neg(s)\na = Conv(x, w, b)\nc = Add(a, z)\ny = Relu(c)",
        inputs={**X, "s": (1, 4, 4, 4)},
        constants={**W, "b": np.ones(4, np.float32)},
    )


def test_a_fused_product_becomes_its_parts():
    check(
        Open(),
        'y = com.microsoft.FusedGemm<activation="LeakyRelu", activation_alpha=0.2, transB=1>(x, w)',
        "a = Gemm<transB=1>(x, w)\ny = LeakyRelu<alpha=0.2>(a)",
        inputs={"x": (2, 5)},
        constants={"w": np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)},
    )


def test_plain_operators_are_left_alone():
    check(Open(), "a = Conv(x, w)\ny = Relu(a)", unchanged=True, inputs=X, constants=W)
