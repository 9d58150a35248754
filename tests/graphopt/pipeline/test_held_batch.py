"""Models that declare any batch and hold on to the one that they were exported with."""

import numpy as np
import pytest

from graphopt import Budget, optimize
from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.held_batch import held_batch
from graphopt.errors import SamplesError
from graphopt.pipeline.prepare import prepare
from graphopt.samples import open_samples
from graphopt.samples.rows import first_rows, free_rows
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
#: Met by all: with it a result is timed whatever became of the steps.
TIMED = Budget(max_latency="1000000ms")


def weights(*shape):
    return (RNG.standard_normal(shape) * 0.3).astype(np.float32)


def images(rows, batch="N"):
    """Two convolutions, pooling, and a Reshape to so many rows."""
    return parse_model(
        "a = Conv <pads = [1, 1, 1, 1]> (x, k1)  b = Relu(a)  "
        "c = Conv <pads = [1, 1, 1, 1]> (b, k2)  d = Relu(c)  "
        "e = GlobalAveragePool(d)  f = Reshape(e, s)  y = MatMul(f, w)",
        inputs={"x": (batch, 3, 16, 16)},
        constants={
            "k1": weights(16, 3, 3, 3),
            "k2": weights(16, 16, 3, 3),
            "w": weights(16, 5),
            "s": np.array([rows, 16]),
        },
    )


def steps(*_):
    """A Reshape to as many rows as the second axis has: of one sample, which no equation says."""
    return parse_model(
        "n = Shape <start = 1> (x)  f = Reshape(x, n)  a = MatMul(f, w1)  b = Relu(a)  "
        "y = MatMul(b, w2)",
        inputs={"x": ("N", "T", 64)},
        constants={"w1": weights(64, 64), "w2": weights(64, 5)},
    )


@pytest.mark.parametrize(
    ("model", "held"),
    [(images(1), 1), (images(4), 4), (images(-1), None), (images(1, 1), None), (steps(), None)],
)
def test_shapes_tell_the_batch(model, held):
    assert held_batch(model) == held


def in_fours(batch="N", other="N"):
    """Rows that are averaged in fours, behind a Squeeze that leaves open which axes there are."""
    return parse_model(
        "c = Concat <axis = 1> (x, z)  a = MatMul(c, w)  b = Unsqueeze(a, last)  d = Squeeze(b)  "
        "e = Reshape(d, s)  f = Transpose(e)  g = ReduceMean <keepdims = 0> (f, one)  "
        "y = Reshape(g, t)",
        inputs={"x": (batch, 6), "z": (other, 2)},
        constants={
            "w": weights(8, 7),
            "last": np.int64([-1]),
            "s": np.int64([4, -1]),
            "one": np.int64([1]),
            "t": np.int64([-1, 7]),
        },
    )


@pytest.mark.parametrize("other", ["N", "M"])
@pytest.mark.parametrize("samples", [None, {"x": weights(14, 6), "z": weights(14, 2)}])
def test_of_a_batch_in_fours_the_least_is_taken(other, samples):
    model = in_fours("N", other)
    assert held_batch(model) == 4
    shapes, _ = bind_shapes(model)
    assert shapes == {"x": (4, 6), "z": (4, 2)}
    result = optimize(model, "clean,int8", samples=samples, budget=TIMED, measure_seconds=0.1)
    assert result.report.before.latency_ms


def test_a_first_size_that_divides_every_row_holds_nothing():
    model = parse_model(
        "a = Transpose <perm = [1, 0]> (x)  b = Reshape(a, s)  y = Relu(b)",
        inputs={"x": ("N", 6)},
        constants={"s": np.int64([6, -1])},
    )
    assert held_batch(model) in (None, 1)


@pytest.mark.parametrize("like", [None, {"x": weights(4, 3, 16, 16)}])
@pytest.mark.parametrize(("rows", "bound"), [(1, 1), (4, 4), (-1, 1)])
def test_figures_are_of_that_batch(rows, bound, like):
    model = images(rows)
    shapes, _ = bind_shapes(model, {}, like, held_batch(model) if like else None)
    assert shapes["x"][0] == bound


def test_samples_come_in_that_batch_and_those_left_over_are_left_out():
    model, arrays = images(4), {"x": weights(14, 3, 16, 16)}
    found = open_samples(arrays, model, batch=held_batch(model))
    assert [len(feeds["x"]) for feeds in found] == [4, 4, 4]


def test_single_samples_are_gathered_into_it():
    model, items = images(4), [{"x": weights(3, 16, 16)} for _ in range(9)]
    found = open_samples(items, model, batch=held_batch(model))
    assert [len(feeds["x"]) for feeds in found] == [4, 4]


def test_too_few_for_it_are_said_to_be():
    with pytest.raises(SamplesError, match=r"too few for one batch of the model \(of 4\)"):
        optimize(images(4), "int8", samples={"x": weights(3, 3, 16, 16)})


def test_it_is_timed_in_that_batch():
    samples = {"x": weights(9, 3, 16, 16)}
    result = optimize(images(4), "int8", samples=samples, budget=TIMED, measure_seconds=0.2)
    assert result.report.before.latency_ms
    assert any("x=4x3x16x16" in note for note in result.report.notes)


@pytest.mark.parametrize("spec", ["int8", "prune(ratio=0.2)"])
def test_images_are_invented_in_that_batch(spec):
    result = optimize(images(1), spec, measure=False)
    (step,) = result.report.steps
    assert step.status == "kept"
    assert any("invented images" in note for note in step.notes)


@pytest.mark.parametrize(
    ("build", "shape"), [(images, (40, 3, 16, 16)), (steps, (40, 12, 64))], ids=["told", "found"]
)
def test_many_samples_in_one_array_run_one_by_one(build, shape):
    result = optimize(build(1), "int8", samples={"x": weights(*shape)}, measure=False)
    (step,) = result.report.steps
    assert step.status == "kept"
    assert result.report.validated
    told = [n for n in result.report.notes if "one row a run" in n]
    assert len(told) == (build is steps)


def test_frames_of_clips_come_in_clips():
    """What shifts channels along time (TSM) looks at frames in groups: view(-1, 8, c)."""
    model = parse_model(
        "a = Conv (x, k)  b = GlobalAveragePool(a)  c = Reshape(b, s)  "
        "d = ReduceMean <keepdims = 0> (c, one)  y = MatMul(d, w)",
        inputs={"x": ("N", 3, 8, 8)},
        constants={
            "k": weights(16, 3, 3, 3),
            "s": np.int64([-1, 8, 16]),
            "one": np.int64([1]),
            "w": weights(16, 5),
        },
    )
    assert held_batch(model) == 8
    result = optimize(model, "int8", budget=TIMED, measure_seconds=0.1)
    assert result.report.before.latency_ms
    prepared = prepare(model, samples={"x": weights(40, 3, 8, 8)}, measure=False).source.model
    feed = {"x": weights(24, 3, 8, 8)}
    assert free_rows(prepared, feed) == 0
    assert [len(first_rows(prepared, feed, n)["x"]) for n in (1, 8, 15, 16)] == [8, 8, 8, 16]
    assert not model.graph.meta.get("graphopt.held")


def test_a_length_that_comes_in_fours_is_of_its_usual_size():
    model = parse_model(
        "a = Squeeze(x)  b = Reshape(a, s)  y = Relu(b)",
        inputs={"x": (1, 1, "time")},
        constants={"s": np.int64([4, -1])},
    )
    shapes, _ = bind_shapes(model)
    assert shapes["x"][2] > 4
    assert not shapes["x"][2] % 4
