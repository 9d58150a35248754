"""Shapes of the runtime's own operators: what it computes is what was inferred."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analyses.shapes.analysis import infer
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

F = np.float32
MS = "com.microsoft."
RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F)


def u8(*shape: int) -> np.ndarray:
    return RNG.integers(0, 255, shape).astype(np.uint8)


S, Z = np.array(0.02, F), np.array(128, np.uint8)
CASES = {
    "EmbedLayerNormalization": (
        f"y, m, e = {MS}EmbedLayerNormalization(a, a, w, p, t, g, g, k)",
        {"a": np.zeros((2, 5), np.int32), "k": np.ones((2, 5), np.int32)},
        {"w": f(7, 16), "p": f(9, 16), "t": f(2, 16), "g": f(16)},
    ),
    "QLinearConcat": (
        f"y = {MS}QLinearConcat<axis=-2>(s, z, a, s, z, b, s, z)",
        {"a": u8(2, 3, 4), "b": u8(2, 6, 4)},
        {"s": S, "z": Z},
    ),
    "QLinearWhere": (
        f"y = {MS}QLinearWhere(c, a, s, z, b, s, z, s, z)",
        {"c": np.ones((4, 1), bool), "a": u8(2, 1, 3), "b": u8(3)},
        {"s": S, "z": Z},
    ),
    "QLinearAveragePool": (
        f"y = {MS}QLinearAveragePool<kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]>"
        "(a, s, z, s, z)",
        {"a": u8(1, 3, 9, 8)},
        {"s": S, "z": Z},
    ),
    "QGemm": (
        f"y = {MS}QGemm<transB=1>(a, s, z, b, s, z, c, s, z)",
        {"a": u8(3, 4)},
        {"s": S, "z": Z, "b": u8(5, 4), "c": np.arange(5, dtype=np.int32)},
    ),
    "QGemm in floats": (
        f"y = {MS}QGemm(a, s, z, b, s, z)",
        {"a": u8(3, 4)},
        {"s": S, "z": Z, "b": u8(4, 5)},
    ),
    "QLinearAdd": (
        f"y = {MS}QLinearAdd(a, s, z, b, s, z, s, z)",
        {"a": u8(2, 3, 4), "b": u8(3, 1)},
        {"s": S, "z": Z},
    ),
    "FusedConv": (
        f'y = {MS}FusedConv<kernel_shape=[3, 3], strides=[2, 2], activation="Relu">(a, w)',
        {"a": f(1, 2, 8, 9)},
        {"w": f(4, 2, 3, 3)},
    ),
    "FusedMatMul": (
        f"y = {MS}FusedMatMul<transA=1, alpha=2.0>(a, b)",
        {"a": f(2, 4, 3), "b": f(2, 4, 5)},
        {},
    ),
    "LayerNormalization with statistics": (
        "y, m, i = LayerNormalization<axis=1>(a, s)",
        {"a": f(2, 4, 5)},
        {"s": f(4, 5)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_runtime_computes_what_was_inferred(case):
    text, inputs, constants = CASES[case]
    model = parse_model(text, inputs=inputs, constants=constants)
    shapes = infer(model)
    made = run(model, inputs)
    for value in model.graph.outputs:
        want = made[value.name]
        assert shapes.shape(value) == want.shape, value.name
        assert shapes.dtype(value).numpy() == want.dtype, value.name


def test_halves_of_the_last_axis():
    model = parse_model(f"y = {MS}BiasSplitGelu(a, b)", inputs={"a": (2, 5, 8), "b": (8,)})
    assert infer(model).shape(model.graph.outputs[0]) == (2, 5, 4)
