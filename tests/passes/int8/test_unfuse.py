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


MATRIX = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("before", "after", "inputs"),
    [
        ("<alpha=0.5>(x, w)", "y = MatMul(x, v)", (3, 2, 5)),
        ("<transA=1>(x, w)", "t = Transpose<perm=[0, 2, 1]>(x)\ny = MatMul(t, w)", (3, 5, 2)),
    ],
)
def test_a_product_with_its_neighbours_becomes_a_product(before, after, inputs):
    constants = {"w": MATRIX, "v": 0.5 * MATRIX}
    check(
        Open(), f"y = com.microsoft.FusedMatMul{before}", after, inputs={"x": inputs},
        constants=constants,
    )  # fmt: skip


@pytest.mark.parametrize("op", ["Gemm<", 'com.microsoft.FusedGemm<activation="Relu", '])
def test_a_computed_addend_goes_behind_the_product(op):
    """Without fuse the product alone is a candidate: it must be one after fuse too."""
    last = "y = Add(a, s)" if op == "Gemm<" else "c = Add(a, s)\ny = Relu(c)"
    check(
        Open(),
        f"z = Neg(x)\nr = MatMul(z, w)\ny = {op}transA=0>(x, w2, r)",
        f"z = Neg(x)\nr = MatMul(z, w)\na = Gemm(x, w2)\n{last}".replace("(a, s)", "(a, r)"),
        inputs={"x": (2, 5)},
        constants={"w": MATRIX, "w2": -MATRIX},
    )


def test_slopes_up_to_one_are_a_maximum():
    slopes = np.float32([-0.5, 0.2, 1.0]).reshape(3, 1, 1)
    check(
        Open(), "y = PRelu(x, s)", "m = Mul(x, s)\ny = Max(x, m)", inputs=X, constants={"s": slopes}
    )
    steep = {"s": slopes * 2}
    check(Open(), "y = PRelu(x, s)", "y = PRelu(x, s)", inputs=X, constants=steep)
