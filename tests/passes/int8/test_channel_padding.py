import dataclasses

import numpy as np
import pytest
from graphopt.passes.int8 import Int8

from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.target import ONNX, Int8Scheme
from graphopt.testing import check, parse_model

PACKED = dataclasses.replace(ONNX, int8=dataclasses.replace(Int8Scheme(), conv_pack=4))
TOLERANCE = 0.03  # as in test_insert


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized(before, x, constants):
    model = parse_model(before, inputs={"x": x}, constants=constants, opset=20)
    return check(
        Int8(),
        model,
        inputs={"x": x},
        samples=Samples([{"x": x}], "test"),
        target=PACKED,
        tolerance=TOLERANCE,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_first_convolution_gets_channels_of_zeros(channels):
    model = quantized(
        "y = Conv <pads=[1, 1, 1, 1]> (x, w, b)",
        normal(2, channels, 9, 9) + 1,  # its zero point is not 0
        {"w": normal(8, channels, 3, 3), "b": normal(8, seed=1)},
    )
    pad = next(n for n in model.graph if n.op_type == "Pad")
    assert pad.inputs[0].producer().op_type == "QuantizeLinear"
    weight = next(
        v.const_value.numpy()
        for v in model.graph.initializers.values()
        if v.const_value.dtype.name == "INT8" and v.const_value.numpy().ndim == 4
    )
    assert weight.shape == (8, 4, 3, 3)
    assert not weight[:, channels:].any()


@pytest.mark.parametrize(
    ("x", "w", "group"),
    [
        ((1, 4, 9, 9), (8, 4, 3, 3), 1),
        ((1, 6, 9, 9), (6, 3, 3, 3), 2),
        ((1, 18, 5, 5), (8, 18, 3, 3), 1),
    ],
)
def test_other_convolutions_keep_their_channels(x, w, group):
    model = quantized(f"y = Conv <group={group}> (x, w)", normal(*x), {"w": normal(*w)})
    assert "Pad" not in [n.op_type for n in model.graph]


def test_a_patch_embedding_keeps_its_channels():
    """So many outputs that an added channel costs more than copying patches."""
    model = quantized(
        "y = Conv <strides=[4, 4]> (x, w)", normal(1, 3, 8, 8), {"w": normal(400, 3, 4, 4)}
    )
    assert "Pad" not in [n.op_type for n in model.graph]


def test_two_convolutions_share_the_padded_input():
    x = normal(1, 3, 9, 9)
    model = quantized(
        "y = Conv (x, w)  z = Conv (x, v)", x, {"w": normal(8, 3, 3, 3), "v": normal(4, 3, 1, 1)}
    )
    assert [n.op_type for n in model.graph].count("Pad") == 1
    assert len(run(model, {"x": x})) == 2
