"""Regions run alone: what is drawn for them, and what counts as equal."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.proving.numbering import numbered
from graphopt.proving.regions import check
from graphopt.proving.windows import windows_of
from graphopt.testing import parse_model


def told(before, after, inputs=None, constants=None):
    """The last window that was run, with the normal form out of the way."""
    models = [
        parse_model(text, inputs=inputs, constants=constants or {}) for text in (before, after)
    ]
    seen = []
    windows_of(numbered(models[0]), models[1], lambda w: seen.append(check(w)) or seen[-1])
    return seen[-1]


def scalar(x):
    return np.float32(x).reshape(())


@pytest.mark.parametrize(
    ("before", "after", "constants"),
    [
        # only numbers between 4 and 6, or about 40, tell these apart
        ("a = Clip(x, l, h)  y = Clip(a, l, g)", "y = Clip(x, l, h)", {"l": 0, "h": 6, "g": 4}),
        ("c = Greater(x, t)  y = Where(c, x, o)", "c = Less(t, x)  y = Where(c, o, o)",
         {"t": 40, "o": 0}),
        ("a = Add(x, t)  y = Log(a)", "a = Add(x, t)  b = Log(a)  y = Mul(b, o)",
         {"t": -100, "o": 2}),
    ],
)  # fmt: skip
def test_inputs_are_drawn_where_constants_decide(before, after, constants):
    verdict, means = told(before, after, None, {n: scalar(v) for n, v in constants.items()})
    assert verdict == "refuted"
    assert "inputs" in means


WRONG = {
    # only where two numbers are equal, only at a half
    "at least": ("y = Greater(x, t)", "y = GreaterOrEqual(x, t)", {"t": scalar(0.3)}),
    "halves": ("y = Round(x)", "a = Add(x, h)  y = Floor(a)", {"h": scalar(0.5)}),
    "ties": ("y = ArgMax<axis=1>(x)", "y = ArgMax<axis=1, select_last_index=1>(x)", {}),
    "what is no number": (
        "n = IsNaN(x)  y = Where(n, t, x)", "a = Add(x, t)  y = Identity(a)", {"t": scalar(0)},
    ),
    "what nearly vanishes": ("y = Identity(x)", "y = Shrink<lambd=1e-36, bias=0.0>(x)", {}),
    # a mask that matters where scores are as large as it is
    "a smaller mask": (
        "s = Mul(x, z)  y = Max(s, t)", "s = Mul(x, z)  y = Max(s, u)",
        {"t": scalar(-10000), "u": scalar(-7071)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_edges_are_drawn(kind):
    before, after, constants = WRONG[kind]
    assert told(before, after, None, constants)[0] == "refuted"


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers_fill_their_type(dtype):
    inputs = {"x": np.zeros((2, 3), dtype)}
    narrow = ir.DataType.from_numpy(np.dtype(np.int16 if dtype is np.int32 else np.int32))
    wide = ir.DataType.from_numpy(np.dtype(dtype))
    after = f"a = Cast<to={int(narrow)}>(x)  y = Cast<to={int(wide)}>(a)"
    assert told("y = Identity(x)", after, inputs)[0] == "refuted"
    through_float = f"a = Cast<to=1>(x)  y = Cast<to={int(wide)}>(a)"
    assert told("y = Identity(x)", through_float, inputs)[0] == (
        "refuted" if dtype is np.int64 else "checked"
    )


def test_axes_that_must_fit_each_other_do():
    inputs = {"x": ("N", 2), "w": (1, 3)}
    before = "t = Transpose<perm=[1,0]>(x)  y = MatMul(t, w)"
    verdict, _ = told(before, before.replace("y = MatMul(t", "n = Neg(t)  y = MatMul(n"), inputs)
    assert verdict == "refuted"  # N is 1


def test_an_axis_may_be_empty():
    zero = {"l": np.int64([0]), "i": np.int64(0).reshape(()), "n": scalar(1e-30)}
    verdict, means = told(
        "y = ReduceSum<keepdims=0>(x, l)",
        "f = Gather(x, i)  g = Mul(f, n)  s = ReduceSum<keepdims=0>(x, l)  y = Add(s, g)",
        {"x": ("N", 3)}, zero,
    )  # fmt: skip
    assert (verdict, means) == ("refuted", "it does not run at sizes {'N': 0}")


def test_one_part_of_an_output_does_not_hide_another():
    verdict, means = told(
        "a = Add(x, c)  y = Concat<axis=0>(x, a)",
        "u = Mul(x, h)  d = Mul(u, k)  a = Add(x, c)  y = Concat<axis=0>(d, a)", None,
        {"c": scalar(1), "h": scalar(1e-35), "k": scalar(1e35)},
    )  # fmt: skip
    assert (verdict, means) == ("refuted", "it loses digits where the source does not")


def test_sizes_go_past_every_limit():
    bounds = {"s": np.int64([0]), "e": np.int64([300]), "a": np.int64([0])}
    verdict, _ = told("y = Slice(x, s, e, a)", "y = Relu(x)", {"x": ("N", 2)}, bounds)
    assert verdict == "refuted"


@pytest.mark.parametrize(("side", "same"), [("Max(x)", "checked"), ("Neg(x)", "refuted")])
def test_a_region_of_rank_0_runs(side, same):
    odd = "b = Neg(x)  c = Sinh(b)  y = Neg(c)"
    assert told(f"a = {side}  y = Sinh(a)", odd, {"x": ()})[0] == same


def test_a_side_that_does_not_run_at_another_size():
    verdict, means = told(
        "y = Reshape(x, s)", "y = Reshape(x, t)", {"x": ("N", 4)},
        {"s": np.int64([-1, 4]), "t": np.int64([1, 4])},
    )  # fmt: skip
    assert verdict == "refuted"
    assert "does not run at sizes" in means


@pytest.mark.parametrize(("up", "down"), [(1e30, 1e-30), (1e-35, 1e35)])
def test_single_precision_may_not_be_worse(up, down):
    verdict, means = told(
        "y = Mul(x, o)", "a = Mul(x, c)  b = Mul(a, d)  y = Mul(b, o)", None,
        {"c": scalar(up), "d": scalar(down), "o": scalar(3)},
    )  # fmt: skip
    assert verdict == "refuted"
    assert means in ("it overflows where the source does not",
                     "it loses digits where the source does not")  # fmt: skip


def test_digits_that_cancel_are_missed():
    verdict, _ = told(
        "y = Mul(x, o)", "a = Add(x, c)  b = Sub(a, c)  y = Mul(b, o)", None,
        {"c": scalar(1e6), "o": scalar(1)},
    )  # fmt: skip
    assert verdict == "refuted"


def test_equal_regions_are_checked_and_say_on_how_many_inputs():
    verdict, means = told("c = Less(x, z)  y = Not(c)", "y = GreaterOrEqual(x, z)")
    assert verdict == "checked"
    assert means.startswith("equal on ")


def test_sizes_that_a_window_names_are_tried():
    before = "s = Size(x)  y = Equal(s, k)"
    verdict, _ = told(before, before.replace("k)", "j)"), {"x": ("N",)},
                      {"k": np.int64(4).reshape(()), "j": np.int64(5).reshape(())})  # fmt: skip
    assert verdict == "refuted"


HALF, BRAIN, SINGLE, DOUBLE = 10, 16, 1, 11


@pytest.mark.parametrize(
    ("dtype", "through", "back"),
    [(np.float32, HALF, SINGLE), (np.float32, BRAIN, SINGLE), (np.float64, SINGLE, DOUBLE),
     (np.float16, BRAIN, HALF)],
)  # fmt: skip
def test_what_rounds_is_missed(dtype, through, back):
    rounds = f"a = Cast<to={through}>(x)  y = Cast<to={back}>(a)"
    inputs = {"x": np.zeros((2, 3), dtype)}
    assert told(rounds, "y = Identity(x)", inputs)[0] == "refuted"
    assert told("y = Identity(x)", rounds, inputs)[0] == "refuted"


def test_a_narrower_type_is_told_from_another():
    one, two = (f"a = Cast<to={to}>(x)  y = Cast<to=1>(a)" for to in (HALF, BRAIN))
    assert told(one, two, {"x": (2, 3)})[0] == "refuted"


def test_a_number_of_the_type_is_not_rounded():
    wide = f"a = Cast<to=1>(x)  t = Transpose(a)  b = Cast<to={HALF}>(t)  n = Neg(b)  y = Max(b, n)"
    narrow = "u = Transpose(x)  y = Abs(u)"
    assert told(wide, narrow, {"x": np.zeros((2, 3), np.float16)})[0] == "checked"


def test_what_rounds_either_way_at_a_tie_is_equal():
    before = f"a = Mul(x, c)  b = Cast<to={HALF}>(a)  d = Cast<to=1>(b)  y = Abs(d)"
    after = f"p = Div(x, e)  q = Cast<to={HALF}>(p)  r = Cast<to=1>(q)  n = Neg(r)  y = Max(r, n)"
    inputs, constants = {"x": (128, 128)}, {"c": scalar(1 / 3), "e": scalar(3)}
    assert told(before, after, inputs, constants)[0] == "checked"


def test_a_mask_of_infinities_counts():
    mask = {"m": np.float32([0, -np.inf, 0])}
    assert told("y = Add(x, m)", "y = Abs(x)", {"x": (2, 3)}, mask)[0] == "refuted"
    assert told("y = Add(x, m)", "y = Identity(x)", {"x": (2, 3)}, mask)[0] == "refuted"


def test_axes_that_must_be_one_or_alike_are_others_too():
    """With N and M 1 the mean over either axis of d, -d is the same."""
    text = "d = Div(x, w)  m = ReduceMean<keepdims=1>(d, l)  s = Sub(d, m)  q = Mul(s, s)"
    constants = {"w": np.float32([[2], [3]]), "l": np.int64([-1]), "k": np.int64([0])}
    inputs = {"x": ("N", "M", 2)}
    before, after = (f"{text}  y = ReduceMean<keepdims=0>(q, {axis})" for axis in "lk")
    assert told(before, after, inputs, constants)[0] == "refuted"


def test_an_overflow_beside_a_zero_is_missed():
    held = {"c": scalar(1e-30), "d": scalar(1e-30)}
    verdict, means = told(
        "m = Mul(s, x)  y = Tanh(m)", "a = Div(x, c)  b = Mul(a, d)  n = Mul(s, b)  y = Tanh(n)",
        {"s": (2, 3), "x": (2, 3)}, held,
    )  # fmt: skip
    assert (verdict, means) == ("refuted", "it overflows where the source does not")


def test_what_is_no_number_elsewhere_hides_no_overflow():
    verdict, means = told(
        "r = Sqrt(z)  y = Div(x, r)", "a = Mul(x, c)  b = Mul(a, d)  r = Sqrt(z)  y = Div(b, r)",
        {"x": (4, 5), "z": (4, 5)}, {"c": scalar(1e30), "d": scalar(1e-30)},
    )  # fmt: skip
    assert (verdict, means) == ("refuted", "it overflows where the source does not")


def test_constants_of_half_precision_are_whole_numbers_too():
    half = {"x": np.zeros((2, 3), np.float16)}, {"k": np.float16([2, 4, 8])}
    assert told("a = Add(x, k)  y = Round(a)", "r = Round(x)  y = Add(r, k)", *half)[0] != "refuted"
    assert told("a = Add(x, k)  y = Round(a)", "r = Round(x)  y = Sub(r, k)", *half)[0] == "refuted"
