"""What the front door takes, and how what it gives shows itself."""

import numpy as np
import onnx
import pytest
from graphopt.passes.fuse import Fuse

from graphopt import Budget, Limit, Samples, optimize
from graphopt.errors import ModelError, SamplesError, UsageError
from graphopt.pipeline.prepare import prepare

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 16)).astype(np.float32)


@pytest.fixture
def proto():
    made = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[batch, 16] x) => (float[batch, 4] y)
        { h = MatMul(x, w1)  a = Add(h, b1)  r = Relu(a)  y = MatMul(r, w2) }
    """)
    for name, shape in (("w1", (16, 32)), ("b1", (32,)), ("w2", (32, 4))):
        array = np.random.default_rng(len(name) + shape[0]).normal(size=shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def run(model, passes="fuse", **given):
    return optimize(model, passes, measure=False, **given)


def test_a_protobuf_gives_what_its_file_gives(proto, tmp_path):
    before = proto.SerializeToString(deterministic=True)
    onnx.save(proto, tmp_path / "a.onnx")
    for name, model in (("p.onnx", proto), ("f.onnx", tmp_path / "a.onnx")):
        run(model, "fuse, int8", samples={"x": X}).write(tmp_path / name)
    assert proto.SerializeToString(deterministic=True) == before
    assert (tmp_path / "p.onnx").read_bytes() == (tmp_path / "f.onnx").read_bytes()


def test_a_protobuf_is_checked_as_a_file_is(proto, tmp_path):
    with pytest.raises(ModelError, match="no graph"):
        run(onnx.ModelProto())
    onnx.save(
        proto, tmp_path / "a.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    apart = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    with pytest.raises(ModelError, match="the data of 'w1' lies in the file 'w': give the path"):
        run(apart)


@pytest.mark.parametrize(
    "samples",
    [
        {"x": X},
        X,
        [{"x": X[:32]}, {"x": X[32:]}],
        [X[:32], X[32:]],
        lambda: ({"x": X[k : k + 1]} for k in range(64)),
    ],
    ids=["dict", "array", "dicts", "arrays", "function"],
)
def test_samples_are_what_people_have(proto, samples):
    setting = prepare(proto, samples=samples, measure=False)
    assert setting.given
    assert np.array_equal(np.concatenate([feeds["x"] for feeds in setting.samples]), X)
    assert run(proto, samples=samples).report.validated


def test_samples_that_are_none_are_told(proto):
    with pytest.raises(SamplesError, match="cannot be made from int"):
        run(proto, "int8", samples=3)


def test_passes_by_name_and_as_objects_in_one_list(proto):
    specs = [s.spec for s in run(proto, ["clean, fold", Fuse(), "int8"], samples=X).report.steps]
    assert specs == ["clean", "fold", "fuse", "int8"]
    with pytest.raises(UsageError, match="no pass is called 'fusee'"):
        run(proto, ["clean", "fusee"])


def test_limits_are_text():
    budget = Budget(max_size="1MB", max_latency="0.5x")
    assert budget == Budget(max_size=Limit(1e6), max_latency=Limit(0.5, relative=True))
    for given in (1_000_000, "1", "5ms", "-1MB"):
        with pytest.raises(UsageError, match="is not a limit; write for example 10MB"):
            Budget(max_size=given)


def test_a_limit_as_text_judges_the_result(proto):
    assert run(proto, budget=Budget(max_size="10MB")).met
    missed = run(proto, budget=Budget(max_size="0.5x"))
    assert not missed.met
    assert any("is over --max-size" in n for n in missed.report.notes)


def score(predict):
    return 1.0


@pytest.mark.parametrize(
    "budget",
    [
        Budget(),
        Budget(max_error=0.01, max_size="1.5MB"),
        Budget(max_drop=0.5, evaluate=score, max_latency="5ms", max_size="0.3x"),
        Budget(max_drop=0.5, evaluate="score.py:score"),
    ],
)
def test_a_budget_shows_what_is_set_and_can_be_pasted_back(budget):
    assert eval(repr(budget), {"Budget": Budget, "score": score}) == budget


def test_everything_fits_a_line(proto):
    result = run(proto, ["fuse", "clean"], samples=X, budget=Budget(max_size="0.1x"))
    size = result.report.after.bytes / result.report.before.bytes
    told = f"net on cpu: 1 of 2 steps kept, {size:.2f}x size, budget missed"
    assert told == str(result.report)
    assert repr(result) == f"<Result {result.report}>"
    assert repr(result.report) == f"<Report {result.report}>"
    first = result.report.steps[0]
    assert repr(first) == f"<Step fuse: kept, {first.edits} edits>"
    assert repr(Samples([{"x": X}], "calib.npz")) == "<Samples from calib.npz>"
    assert repr(Samples([{"x": X}], synthetic=True)) == "<Samples drawn at random>"
    long = "prune(exclude=('" + "a" * 200 + "',))"
    assert len(repr(type(first)(long, "undone"))) < 80
