import dataclasses

import numpy as np
import pytest
from graphopt.passes.fuse import Fuse

from graphopt.target import ONNX
from graphopt.testing import check

RNG = np.random.default_rng(3)
LAST = np.array([-1])
EPS = np.array(1e-5, np.float32)
TWO = np.array(2.0, np.float32)
C = {"axes": LAST, "eps": EPS, "two": TWO}
X = {"x": (2, 4, 6)}


def f(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


LAYER = """m = ReduceMean(x, axes)  d = Sub(x, m)  q = Pow(d, two)  v = ReduceMean(q, axes)
           e = Add(v, eps)  s = Sqrt(e)  n = Div(d, s)"""


def test_layer_norm_with_scale_and_shift():
    check(
        Fuse(),
        before=f"{LAYER}  o = Mul(n, g)  y = Add(o, b)",
        after="y = LayerNormalization <epsilon=9.999999747378752e-06> (x, g, b)",
        inputs=X,
        constants={**C, "g": f(6), "b": f(6)},
    )


def test_layer_norm_with_a_scale_that_is_an_input():
    check(
        Fuse(),
        before=f"{LAYER}  y = Mul(n, g)",
        after="n = LayerNormalization <epsilon=9.999999747378752e-06> (x, c)  y = Mul(n, g)",
        inputs={**X, "g": (6,)},
        constants=C,
    )


def test_layer_norm_of_two_axes():
    check(
        Fuse(),
        before=f"{LAYER}  y = Mul(n, g)",
        after="y = LayerNormalization <axis=-2, epsilon=9.999999747378752e-06> (x, g)",
        inputs=X,
        constants={**C, "axes": np.array([1, 2]), "g": f(4, 6)},
    )


def test_a_mean_over_a_middle_axis_is_no_layer_norm():
    check(Fuse(), LAYER, because="not the last", inputs=X, constants={**C, "axes": np.array([1])})


def test_means_over_different_axes_are_no_layer_norm():
    body = LAYER.replace("ReduceMean(q, axes)", "ReduceMean(q, others)")
    check(
        Fuse(),
        body,
        because="different axes",
        inputs=X,
        constants={**C, "others": np.array([1, 2])},
        target=dataclasses.replace(ONNX, opset=20),
    )


def test_a_layer_norm_of_an_old_opset_stays():
    old = dataclasses.replace(ONNX, opset=16)
    body = LAYER.replace("ReduceMean(x, axes)", "ReduceMean <axes=[-1]> (x)").replace(
        "ReduceMean(q, axes)", "ReduceMean <axes=[-1]> (q)"
    )
    check(Fuse(), body, because="at this opset", inputs=X, constants=C, opset=16, target=old)


RMS = [
    "q = Pow(x, two)  m = ReduceMean(q, axes)  e = Add(m, eps)  s = Sqrt(e)  n = Div(x, s)",
    "q = Mul(x, x)  m = ReduceMean(q, axes)  e = Add(m, eps)  s = Sqrt(e)  r = Reciprocal(s)"
    "  n = Mul(x, r)",
]


@pytest.mark.parametrize("body", RMS)
def test_rms_norm(body):
    check(
        Fuse(),
        before=f"{body}  y = Mul(g, n)",
        after="y = RMSNormalization <epsilon=9.999999747378752e-06> (x, g)",
        inputs=X,
        constants={**C, "g": f(6)},
        opset=23,
    )


def test_rms_norm_takes_no_shift():
    check(
        Fuse(),
        before=f"{RMS[0]}  y = Add(n, b)",
        after="n = RMSNormalization <epsilon=9.999999747378752e-06> (x, g)  y = Add(n, b)",
        inputs=X,
        constants={**C, "b": f(6)},
        opset=23,
    )


def test_the_root_of_another_values_square_is_no_rms_norm():
    body = RMS[0].replace("Pow(x, two)", "Pow(z, two)")
    check(Fuse(), body, unchanged=True, inputs={**X, "z": (2, 4, 6)}, constants=C, opset=23)


def test_instance_norm_takes_a_scale_and_shift_of_its_channels():
    check(
        Fuse(),
        before="n = InstanceNormalization(x, g, h)  o = Mul(n, s)  y = Sub(t, o)",
        after="y = InstanceNormalization(x, g, h)",
        inputs=X,
        constants={"g": f(4), "h": f(4), "s": f(4, 1), "t": f(1, 4, 1)},
    )


def test_a_scale_across_other_axes_stays():
    check(
        Fuse(),
        before="n = LayerNormalization(x, g)  y = Mul(n, s)",
        because="normalized axes",
        inputs=X,
        constants={"g": f(6), "s": f(4, 1)},
    )


SOFTMAX = "m = ReduceMax(x, axes)  c = Sub(x, m)  e = Exp(c)  t = ReduceSum(e, axes)  "


def test_softmax_and_log_softmax():
    check(
        Fuse(),
        before=SOFTMAX + "y = Div(e, t)",
        after="y = Softmax <axis=-2> (x)",
        inputs=X,
        constants={"axes": np.array([1])},
    )
    check(
        Fuse(),
        before=SOFTMAX + "l = Log(t)  y = Sub(c, l)",
        after="y = LogSoftmax(x)",
        inputs=X,
        constants={"axes": LAST},
    )


def test_a_softmax_over_two_axes_stays():
    check(
        Fuse(),
        before=SOFTMAX + "y = Div(e, t)",
        because="one axis",
        inputs=X,
        constants={"axes": np.array([1, 2])},
    )


def test_instance_norm_written_out():
    check(
        Fuse(),
        before=f"{LAYER}  o = Mul(n, g)  y = Add(o, b)",
        after="y = InstanceNormalization <epsilon=9.999999747378752e-06> (x, g, b)",
        inputs={"x": (2, 3, 4, 5)},
        constants={**C, "axes": np.array([2, 3]), "g": f(3, 1, 1), "b": f(1, 3, 1, 1)},
    )


def test_a_scale_of_the_spatial_axes_makes_it_a_layer_norm():
    check(
        Fuse(),
        before=f"{LAYER}  y = Mul(n, g)",
        after="y = LayerNormalization <axis=-2, epsilon=9.999999747378752e-06> (x, g)",
        inputs={"x": (2, 3, 4, 5)},
        constants={**C, "axes": np.array([2, 3]), "g": f(4, 5)},
    )
