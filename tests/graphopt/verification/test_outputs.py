import math

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import ModelError
from graphopt.testing import parse_model
from graphopt.verification.comparison import compare_outputs
from graphopt.verification.graph import check_graph, fingerprint
from graphopt.verification.outputs import FLOOR, Judge


def outputs(*arrays):
    return [{"y": np.asarray(a)} for a in arrays]


def one(a, b):
    return compare_outputs(outputs(np.float32(a)), outputs(np.float32(b)))


def test_figures_follow_their_definitions():
    e = one([3.0, 4.0], [3.0, 5.0]).errors["y"]
    assert e.rel_l2 == pytest.approx(1 / 5)
    assert e.max_abs == 1
    assert e.sqnr_db == pytest.approx(20 * math.log10(5))
    assert e.cosine == pytest.approx(29 / math.sqrt(25 * 34))
    assert e.top1 is None


def test_sums_run_over_all_runs():
    whole = compare_outputs(outputs([3.0, 4.0, 1.0, 1.0]), outputs([3.0, 5.0, 1.0, 1.0]))
    parts = compare_outputs(outputs([3.0, 4.0], [1.0, 1.0]), outputs([3.0, 5.0], [1.0, 1.0]))
    assert parts.errors["y"].rel_l2 == pytest.approx(whole.errors["y"].rel_l2)


def test_top1_is_the_share_of_rows_that_agree():
    a = np.eye(4, dtype=np.float32)
    b = a.copy()
    b[0] = b[0, ::-1]
    assert compare_outputs(outputs(a), outputs(b)).errors["y"].top1 == 0.75


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ([1.0, math.nan], [1.0, 2.0], "NaN or Inf"),
        ([1.0, math.inf], [1.0, -math.inf], "NaN or Inf"),
        ([1.0, 2.0], [1.0], "shape"),
    ],
)
def test_what_cannot_be_compared_is_infinitely_wrong(a, b, says):
    compared = one(a, b)
    assert says in compared.broken
    assert compared.worst == math.inf


def test_nan_at_the_same_place_is_equal():
    assert one([1.0, math.nan, math.inf], [1.0, math.nan, math.inf]).worst == 0


def test_a_channel_of_nothing_that_becomes_large_overflows_nothing():
    a = np.array([[0, 1], [0, 1]], np.float32)
    b = np.array([[1e12, 1], [1e12, 1]], np.float32)
    compared = compare_outputs([{"y": a}], [{"y": b}])  # a warning would be an error
    assert compared.parts["y"] == pytest.approx(math.sqrt(2) * 1e162, rel=1e-6)


def test_the_tolerance_is_the_floor_or_four_times_the_runtimes_noise():
    model = parse_model("y = Relu(x)")
    judge = Judge(model, [{"x": np.ones((2, 3), np.float32)}])
    assert judge.tolerance("y") == FLOOR
    judge.noise = compare_outputs([{"y": np.ones(8)}], [{"y": np.ones(8) * (1 + 1e-4)}])
    assert judge.tolerance("y") == pytest.approx(4e-4)
    judge.noise = compare_outputs([{"y": np.ones(8)}], [{"y": np.ones(8) * 1.5}])
    assert judge.tolerance("y") == 0.1, "chaos is no excuse"


def test_a_model_the_runtime_cannot_run_is_said_to_be_so():
    model = parse_model("y = my.domain.Magic(x)")
    assert Judge(model, [{"x": np.ones((2, 3), np.float32)}]).unable != ""


def test_fingerprint_sees_structure_and_tensors_and_survives_cloning():
    model = parse_model("h = Add(x, c)  y = Relu(h)", constants={"c": np.ones(3, np.float32)})
    same = model.clone()
    assert fingerprint(same) == fingerprint(model)
    same.graph.initializers["c"].const_value = ir.tensor(np.zeros(3, np.float32))
    assert fingerprint(same) != fingerprint(model)
    other = model.clone()
    other.graph[1].op_type = "Neg"
    assert fingerprint(other) != fingerprint(model)


def test_an_invalid_graph_is_named():
    model = parse_model("y = Relu(x)")
    model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="NoSuchOperator"):
        check_graph(model)


def test_a_declared_shape_that_does_not_follow_is_found_by_the_full_check():
    model = parse_model("y = Relu(x)")
    model.graph.outputs[0].shape = ir.Shape([7, 7])
    check_graph(model, full=False)
    with pytest.raises(ModelError):
        check_graph(model)


def test_a_further_run_that_fails_is_left_out_alone():
    model = parse_model("y = MatMul(x, w)", inputs={"x": ("N", "M")},
                        constants={"w": np.ones((3, 2), np.float32)})  # fmt: skip
    runs = [{"x": np.ones(shape, np.float32)} for shape in ((1, 3), (2, 3), (2, 4), (5, 3))]
    judge = Judge(model, runs[:1], runs[1:])
    assert judge.unable == ""
    assert [len(f["x"]) for f in judge.extra] == [2, 5]
    assert [o["y"].shape for o in judge.beyond] == [(2, 2), (5, 2)]
    assert "does not run" in Judge(model, runs[2:]).unable


def test_what_rounding_the_inputs_does_is_told_on_the_runs_in_question():
    """Of sin(1e7 x) nothing is left after a rounding of x, unless x is 0; of sin(x) everything."""
    runs = [{"x": np.linspace(1, 2, 6, dtype=np.float32).reshape(2, 3)}, {"x": np.zeros((2, 3))}]
    runs = [{n: a.astype(np.float32) for n, a in run.items()} for run in runs]
    steep = parse_model("a = Mul(x, c)  y = Sin(a)", constants={"c": np.float32(1e7)})
    judge = Judge(steep, runs)
    other = [{"y": run["y"] + np.float32(0.5)} for run in judge.source]
    first, last = (slice(k, k + 1) for k in (0, 1))
    apart = [compare_outputs(judge.source[k], other[k]) for k in (first, last)]
    assert not judge.equal(apart[0])
    assert judge.rounds_alike(apart[0], first)
    assert not judge.rounds_alike(apart[1], last)
    tame = Judge(parse_model("y = Sin(x)"), runs)
    moved = [{"y": run["y"] * np.float32(1.001)} for run in tame.source]
    assert not tame.rounds_alike(compare_outputs(tame.source, moved), slice(None))
    short = [{"y": run["y"][:1]} for run in judge.source]
    assert not judge.rounds_alike(compare_outputs(judge.source, short), slice(None))


@pytest.mark.parametrize(("kind", "alike"), [(10, True), (1, False)])
def test_rounding_is_that_of_the_type_a_model_computes_in(kind, alike):
    """Inside, half precision rounds float32 inputs too: what moves by that is no difference."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 64)).astype(np.float32)
    w = rng.standard_normal((64, 8))
    dtype = np.float16 if kind == 10 else np.float32

    def model(weights):
        text = f"h = Cast<to={kind}>(x)  m = MatMul(h, w)  y = Cast<to=1>(m)"
        return parse_model(text, inputs={"x": x}, constants={"w": weights.astype(dtype)})

    judge = Judge(model(w), [{"x": x}])
    moved = w * (1 + 2.0**-11 * rng.choice((-1, 1), w.shape))
    compared = compare_outputs(judge.source, judge.outputs(model(moved)))
    assert 1e-5 < compared.worst < 1e-2
    assert judge.rounds_alike(compared, slice(None)) == alike
