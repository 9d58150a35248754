import re

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analyses.shapes.analysis import infer
from graphopt.execution.runtime import run
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)


def one(node: str, x, **weights):
    return parse_model(f"y = {node}", inputs={"x": x}, constants=weights)


def size(model: ir.Model, axis: int) -> str:
    dims = infer(model).shape(model.graph.outputs[0])
    return str(dims[axis])


NODES = [
    "Conv<pads=[1, 0]>(x, w)",
    "Conv<strides=[2], pads=[1, 1]>(x, w)",
    "Conv<strides=[3], dilations=[2], pads=[0, 2]>(x, w)",
    'Conv<auto_pad="SAME_UPPER", strides=[2]>(x, w)',
    'Conv<auto_pad="VALID", strides=[2]>(x, w)',
    "ConvTranspose<strides=[3], pads=[1, 0], output_padding=[1]>(x, w)",
    "MaxPool<kernel_shape=[3], strides=[2]>(x)",
    "AveragePool<kernel_shape=[2], strides=[2], pads=[1, 0]>(x)",
]


@pytest.mark.parametrize("node", NODES)
def test_size_is_what_the_runtime_makes(node):
    w = RNG.standard_normal((4, 4, 3)).astype("f4")
    written = size(one(node, (1, 4, "L"), w=w), 2)
    assert not re.search("[?~]", written)
    formula = re.sub(r"floor\((.*)/(\d+)\)", r"((\1)//\2)", written)
    for n in (7, 8, 9, 10, 23):
        x = RNG.standard_normal((1, 4, n)).astype("f4")
        (y,) = run(one(node, (1, 4, n), w=w), {"x": x}).values()
        assert eval(formula, {"L": n}) == y.shape[2], (written, n)


def test_padding_of_half_the_kernel_keeps_the_size():
    assert (
        size(one("Conv<pads=[1, 1]>(x, w)", ("N", 4, "L"), w=np.zeros((8, 4, 3), "f4")), 2) == "L"
    )


def test_two_ways_down_meet_again():
    w = {"w": np.zeros((4, 4, 3), "f4"), "v": np.zeros((4, 4, 1), "f4")}
    text = """a = Conv<strides=[2], pads=[1, 1]>(x, w)  b = Conv<strides=[2]>(x, v)
    c = MaxPool<kernel_shape=[3], strides=[2], pads=[1, 1]>(x)  d = Add(a, b)  y = Add(d, c)"""
    model = parse_model(text, inputs={"x": (1, 4, "L")}, constants=w)
    assert size(model, 2) == "floor(1+L/2)"


def test_what_no_formula_gives_stays_unknown():
    pool = one("MaxPool<kernel_shape=[2], strides=[2], ceil_mode=1>(x)", (1, 4, "L"))
    assert size(pool, 2).startswith("?")
