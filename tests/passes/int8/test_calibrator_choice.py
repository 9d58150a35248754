import numpy as np
from graphopt.passes.int8 import Int8
from graphopt.passes.int8.calibrator_choice import best_ranges
from graphopt.passes.int8.plan import make_plan

from graphopt.calibration.ranges import calibrate
from graphopt.context import Context
from graphopt.execution.runtime import run
from graphopt.samples import Samples
from graphopt.target import ONNX
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)


def chosen(x, w):
    model = parse_model("y = Conv (x, w)", inputs={"x": x}, constants={"w": w})
    plan = make_plan(model.graph, ONNX, lambda node, mode: None)
    seen = calibrate(model, ["x"], [{"x": x}], "auto")
    ctx = Context(model, target=ONNX, samples=Samples([{"x": x}]))
    return best_ranges(model, ctx, plan, ctx.samples, [seen])[0]["x"]


def spiked():
    """Normal values and one value of 60 in channel 0."""
    x = RNG.standard_normal((4, 4, 20, 20)).astype(np.float32)
    x[0, 0, 0, 0] = 60
    return x


def test_an_outlier_that_is_hardly_read_is_clipped():
    w = RNG.standard_normal((8, 4, 1, 1)).astype(np.float32)
    w[:, 0] /= 1000
    assert chosen(spiked(), w).hi < 30


def test_an_outlier_that_is_all_that_is_read_is_kept():
    w = np.zeros((8, 4, 1, 1), np.float32)
    w[:, 0] = 1
    assert chosen(spiked(), w).hi > 30


def test_auto_loses_no_more_than_the_whole_range():
    x = spiked()
    w = RNG.standard_normal((8, 4, 1, 1)).astype(np.float32)
    w[:, 0] /= 1000
    off = []
    for calibrator in ("minmax", "auto"):
        model = parse_model("y = Conv (x, w)", inputs={"x": x}, constants={"w": w})
        expected = run(model, {"x": x})["y"]
        ctx = Context(model, samples=Samples([{"x": x}]))
        Int8(calibrator=calibrator, balance=False).run(model, ctx)
        off.append(np.linalg.norm(run(model, {"x": x})["y"] - expected))
    assert off[1] < 0.7 * off[0]
