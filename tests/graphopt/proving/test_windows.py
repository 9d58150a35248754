"""Rewrites between two small graphs: right ones are proved, wrong ones never are."""

import numpy as np
import pytest

from graphopt.proving.numbering import numbered
from graphopt.proving.regions import check
from graphopt.proving.windows import windows_of
from graphopt.testing import parse_model


def c(*values):
    return np.array(values, np.float32) if len(values) > 1 else np.float32(*values).reshape(())


def k(*values):
    return np.array(values, np.int64)


def whole(*shape, dtype=np.int32):
    return np.zeros(shape, dtype)


def verdict(before, after, inputs=None, constants=None, others=None, opset=20):
    """Of the whole difference: the weakest of what the outputs rest on."""
    old = parse_model(before, inputs=inputs, constants=constants, opset=opset)
    new = parse_model(
        after, inputs=inputs, constants=constants if others is None else others, opset=opset
    )
    found = windows_of(numbered(old), new, check)
    if found.open:
        refuted = any(w.verdict == "refuted" for w in found.windows)
        return "refuted" if refuted else "assumed"
    lasting = {w.verdict for w in found.windows} & {"proved", "checked"}
    return "checked" if "checked" in lasting else "proved"


N3 = {"x": ("N", 3)}
ONES = {"x": ("N", 1), "z": ("N", 1)}
ONE = {"a": k(1)}
PROVED = [
    ("a = Relu(x)  y = Relu(a)", "y = Relu(x)", None, {}),
    ("a = Transpose<perm=[1,0]>(x)  y = Transpose<perm=[1,0]>(a)", "y = Identity(x)", N3, {}),
    (
        "s = Shape(x)  r = Reshape(x, f)  y = Reshape(r, s)",
        "y = Identity(x)",
        {"x": ("N", "M")},
        {"f": k(-1)},
    ),
    ("m = Mul(x, c)  y = Mul(m, d)", "y = Mul(x, e)", N3, {"c": c(2), "d": c(3), "e": c(6)}),
    *(
        (
            f'p = Pad<mode="{mode}">(x, n)  t = Transpose<perm=[0,2,1]>(p)  y = Relu(t)',
            f'u = Transpose<perm=[0,2,1]>(x)  r = Relu(u)  y = Pad<mode="{mode}">(r, o)',
            {"x": ("N", 8, "L")},
            {"n": k(0, 0, 3, 0, 0, 2), "o": k(0, 3, 0, 0, 2, 0)},
        )
        for mode in ("edge", "reflect", "wrap")
    ),
    ("a = Add(x, z)  y = Add(a, x)", "b = Add(x, x)  y = Add(z, b)", None, {}),
    (
        "d = Div(x, z)  s = Softmax(d)  y = Mul(s, c)",
        "q = Div(x, z)  y = Softmax(q)",
        {"x": ("N", 1), "z": ("N", 1)},
        {"c": c(1)},
    ),
    (
        "a = Div(x, e)  y = Where(t, a, i)",
        "a = Div(x, e)  m = Where(t, n, i)  y = Add(a, m)",
        {"x": (3, 3), "t": np.ones((3, 3), bool)},
        {"e": c(8), "i": c(-np.inf), "n": c(0)},
    ),
    (
        "a = MatMul(x, w)  y = Add(a, b)",
        "y = Gemm(x, w, b)",
        {"x": ("N", 3)},
        {"w": np.ones((3, 2), np.float32), "b": c(1, 2)},
    ),
    (
        "y = ReduceMean<keepdims=0>(x, a)",
        "s = ReduceSum<keepdims=0>(x, a)  y = Mul(s, h)",
        {"x": (3, 2)},
        {**ONE, "h": c(0.5)},
    ),
    ("y = Split<axis=1, num_outputs=1>(x)", "y = Identity(x)", N3, {}),
    ("a = Relu(x)  d = Relu(x)  y = Add(a, d)", "a = Relu(x)  y = Add(a, a)", N3, {}),
    (
        "m = MatMul(x, w)  r = ReduceMax<keepdims=0>(m, a)  y = ReduceMax<keepdims=0>(r, o)",
        "m = MatMul(x, w)  r = ReduceMax<keepdims=0>(m, a)  y = ReduceMax<keepdims=0>(r, o)",
        {"x": (3, 4), "w": (4, 3)},
        {"a": k(0), "o": k(0)},
    ),
]


AB, BOTH = {"x": ("N", "A", "B")}, {"a": k(1), "b": k(2), "ab": k(1, 2)}
PROVED += [
    (f"m = Reduce{f}(x, b)  y = Reduce{f}(m, a)", f"y = Reduce{f}(x, ab)", AB, BOTH)
    for f in ("Max", "Min", "Prod", "L1", "L2")
]
FILTERS = {
    "w": np.ones((1, 1, 2), np.float32),
    "c": c(2),
    "v": np.full((1, 1, 2), 2, np.float32),
    "u": c(2, 1).reshape(1, 1, 2),
    "o": c(1).reshape(1, 1, 1),
    "p": k(0, 0, 1, 0, 0, 1),
}
PROVED += [
    ("y = Where(c, x, x)", "y = Identity(x)", {"c": whole(1, dtype=bool), "x": ("N", 3)}, {}),
    ("n = Not(x)  y = Not(n)", "y = Identity(x)", {"x": whole(3, dtype=bool)}, {}),
    ("y = And(x, t)", "y = Identity(x)", {"x": whole(3, dtype=bool)}, {"t": np.array(True)}),
    ("a = Cast<to=11>(x)  y = Cast<to=7>(a)", "y = Cast<to=7>(x)", N3, {}),
    (
        "a = Concat<axis=1>(x, z)  y = Concat<axis=1>(w, a)",
        "y = Concat<axis=1>(w, x, z)",
        {"x": ("N", "A"), "z": ("N", "B"), "w": ("N", "C")},
        {},
    ),
    (
        "m = ReduceMax(x, a)  d = Sub(x, m)  l = ReduceLogSumExp(d, a)  y = Sub(d, l)",
        "y = LogSoftmax<axis=1>(x)",
        AB,
        BOTH,
    ),
    ("m = Conv(x, w)  y = Mul(m, c)", "y = Conv(x, v)", {"x": ("N", 1, "L")}, FILTERS),
    ("m = Conv<strides=[2]>(x, w)  y = Mul(m, c)", "y = Conv<strides=[2]>(x, v)",
     {"x": ("N", 1, "L")}, FILTERS),
    ("m = Pad(x, p)  y = Conv<pads=[0, 1]>(m, w)", "y = Conv<pads=[1, 2]>(x, w)",
     {"x": ("N", 1, "L")}, FILTERS),
    ("q = SequenceConstruct(x, z)  y = SequenceAt(q, i)", "y = Identity(z)", None, {"i": k(-1)}),
    ("q = SequenceConstruct(x, z)  y = ConcatFromSequence<axis=1>(q)", "y = Concat<axis=1>(x, z)",
     {"x": ("N", 2), "z": ("N", 3)}, {}),
    ("q = SplitToSequence<axis=1, keepdims=0>(x)  y = SequenceAt(q, i)", "y = Gather<axis=1>(x, i)",
     {"x": ("N", 3)}, {"i": np.int64(1).reshape(())}),
    ("m = ConvTranspose(x, w)  y = Mul(m, c)", "y = ConvTranspose(x, v)", {"x": ("N", 1, "L")},
     FILTERS),
    ("m = Conv<pads=[0, 1]>(x, w)  y = Add(m, x)", "y = Conv<pads=[0, 1]>(x, u)",
     {"x": ("N", 1, "L")}, FILTERS),
    ("m = Conv<pads=[0, 1]>(x, w)  n = Conv(x, o)  s = Add(m, n)  y = Relu(s)",
     "s = Conv<pads=[0, 1]>(x, u)  y = Relu(s)", {"x": ("N", 1, "L")}, FILTERS),
    ("m = MatMul(x, w)  y = Add(m, x)", "y = MatMul(x, u)", {"x": ("N", 2)},
     {"w": np.ones((2, 2), np.float32), "u": np.array([[2, 1], [1, 2]], np.float32)}),
    ("y = PRelu(x, s)", "y = LeakyRelu<alpha=0.25>(x)", N3, {"s": c(0.25)}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "inputs", "constants"), PROVED)
def test_right_rewrites_are_proved(before, after, inputs, constants):
    assert verdict(before, after, inputs, constants) == "proved"


SHIFTED = "d = Sub(x, m)  e = Exp(d)  s = ReduceSum<keepdims=1>(e, a)  y = Div(e, s)"
SLICE = {"s": k(0), "e": k(5), "a": k(0)}
#: before, after, inputs, constants, constants of the new side where they differ
REFUTED = {
    "rows past the fifth": ("y = Slice(x, s, e, a)", "y = Identity(x)", N3, SLICE, None),
    "rows past the fifth lost": ("y = Identity(x)", "y = Slice(x, s, e, a)", N3, SLICE, None),
    "a maximum no longer taken off": (
        f"m = ReduceMax<keepdims=1>(x, a)  {SHIFTED}",
        "e = Exp(x)  s = ReduceSum<keepdims=1>(e, a)  y = Div(e, s)",
        None, ONE, None,
    ),
    "no number guarded against": (
        "d = Div(x, z)  n = IsNaN(d)  y = Where(n, o, d)", "y = Div(x, z)", None, {"o": c(0)}, None,
    ),
    "a root guarded": (
        "d = Sqrt(x)  n = IsNaN(d)  y = Where(n, o, d)", "y = Sqrt(x)", None, {"o": c(0)}, None,
    ),
    "digits lost": (
        "y = Identity(x)", "a = Add(x, c)  y = Sub(a, c)", None, {"c": c(1e8)}, None,
    ),
    "all digits lost": (
        "y = Identity(x)", "a = Add(x, c)  y = Sub(a, c)", None, {"c": c(1e30)}, None,
    ),
    "negative numbers": ("y = Identity(x)", "s = Sqrt(x)  y = Mul(s, s)", None, {}, None),
    "a sign": ("m = Mul(x, x)  y = Sqrt(m)", "y = Identity(x)", None, {}, None),
    "a transpose of equal sizes": (
        "a = Transpose<perm=[1, 0]>(x)  y = Relu(a)", "y = Relu(x)", {"x": (3, 3)}, {}, None,
    ),
    "a size of the probe": (
        "s = Shape(x)  e = Expand(z, s)  y = Add(e, x)",
        "e = Expand(z, s)  y = Add(e, x)",
        {"x": ("N", 3), "z": (1, 1)}, {}, {"s": k(2, 3)},
    ),
    "a batch of the probe": (
        "y = ReduceMean<keepdims=0>(x, a)", "s = ReduceSum<keepdims=0>(x, a)  y = Mul(s, h)",
        N3, {"a": k(0), "h": c(0.5)}, None,
    ),
    "a limit": (
        "a = Clip(x, l, h)  y = Clip(a, l, g)", "y = Clip(x, l, h)",
        None, {"l": c(0), "h": c(6), "g": c(4)}, None,
    ),
    "another axis": ("y = CumSum(x, a)", "y = CumSum(x, b)", None, {"a": k(0), "b": k(1)}, None),
    "a slope": ("y = LeakyRelu<alpha=0.1>(x)", "y = LeakyRelu<alpha=0.11>(x)", None, {}, None),
    "epsilon": (
        "y = LayerNormalization(x, s)", "y = LayerNormalization<epsilon=0.0001>(x, s)",
        {"x": (2, 3)}, {"s": c(1, 2, 3)}, None,
    ),
    "operands": ("y = Sub(x, z)", "y = Sub(z, x)", None, {}, None),
    "a constant": (
        "y = Mul(x, c)", "y = Mul(x, c)", None, {"c": c(1, 2, 3)}, {"c": c(1, 2, 3.003)},
    ),
    "a row for a column": (
        "y = Add(x, b)", "r = Reshape(b, s)  y = Add(x, r)",
        {"x": (3, 3)}, {"b": c(1, 2, 3), "s": k(3, 1)}, None,
    ),
    "whole numbers": (
        "a = Cast<to=7>(x)  y = Cast<to=1>(a)", "y = Identity(x)", None, {}, None,
    ),
    "other groups": (
        "y = GroupNormalization<num_groups=2>(x, s, b)",
        "y = GroupNormalization<num_groups=4>(x, s, b)",
        {"x": (2, 4, 3), "s": (4,), "b": (4,)}, {}, None,
    ),
    "the way of a shift": (
        'y = BitShift<direction="LEFT">(x, z)', 'y = BitShift<direction="RIGHT">(x, z)',
        {"x": whole(3, dtype=np.uint32), "z": whole(3, dtype=np.uint32)}, {}, None,
    ),
    "an extreme for another": (
        "a = ReduceMax(x, b)  y = ReduceMin(a, o)", "y = ReduceMax(x, ab)", AB,
        {**BOTH, "o": k(1)}, None,
    ),
    "one axis of two": (
        "a = ReduceMax(x, b)  y = ReduceMax(a, o)", "y = ReduceMax(x, b)", AB,
        {**BOTH, "o": k(1)}, None,
    ),
    "the other side": ("y = Where(c, x, z)", "y = Identity(z)", None, {"c": np.array(True)}, None),
    "a sum of magnitudes": (
        "a = ReduceSum(x, b)  y = ReduceL1(a, o)", "y = ReduceL1(x, ab)", AB,
        {**BOTH, "o": k(1)}, None,
    ),
    "a filter turned around": (
        "y = ConvTranspose(x, w)", "y = Conv<pads=[1, 1]>(x, w)", {"x": (1, 1, 5)},
        {"w": c(1, 2).reshape(1, 1, 2)}, None,
    ),
    "another stride": (
        "y = Conv<strides=[2]>(x, w)", "y = Conv<strides=[3]>(x, w)", {"x": (1, 1, "L")},
        FILTERS, None,
    ),
    "a tap beside the middle": (
        "m = Conv<pads=[1, 0]>(x, w)  y = Add(m, x)", "y = Conv<pads=[1, 0]>(x, u)",
        {"x": (1, 1, "L")}, FILTERS, None,
    ),
    "another slope": (
        "y = PRelu(x, s)", "y = LeakyRelu<alpha=0.5>(x)", N3, {"s": c(0.25)}, None,
    ),
    "another channel": (
        "m = MatMul(x, w)  y = Add(m, x)", "y = MatMul(x, u)", {"x": ("N", 2)},
        {"w": np.ones((2, 2), np.float32), "u": np.array([[1, 2], [2, 1]], np.float32)}, None,
    ),
    "padding on the other side": (
        "m = Pad(x, p)  y = Conv(m, w)", "y = Conv<pads=[0, 2]>(x, w)", {"x": (1, 1, "L")},
        FILTERS, None,
    ),
    "another element": (
        "q = SequenceConstruct(x, z)  a = SequenceAt(q, i)  y = Relu(a)",
        "y = Relu(x)", {"x": (2,), "z": (2,)}, {"i": k(-1)}, None,
    ),
    "the last of equal places": (
        "y = ArgMax(x)", "y = ArgMax<select_last_index=1>(x)",
        {"x": whole(9, dtype=np.int32)}, {}, None,
    ),
    "another zero point": (
        "y = QuantizeLinear(x, s, z)", "y = QuantizeLinear(x, s, w)", None,
        {"s": c(0.1), "z": np.uint8(7).reshape(()), "w": np.uint8(8).reshape(())}, None,
    ),
    "parts in another order": (
        "a = Concat<axis=1>(x, z)  y = Concat<axis=1>(w, a)", "y = Concat<axis=1>(w, z, x)",
        {"x": ("N", 2), "z": ("N", 2), "w": ("N", 2)}, {}, None,
    ),
    "and for or": (
        "y = And(x, z)", "y = Or(x, z)",
        {"x": whole(9, dtype=bool), "z": whole(9, dtype=bool)}, {}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUTED)
def test_wrong_rewrites_are_refuted(name):
    before, after, inputs, constants, others = REFUTED[name]
    opset = 21 if "Group" in before else 20
    others = others if others is None else {**constants, **others}
    assert verdict(before, after, inputs, constants, others, opset) == "refuted"


@pytest.mark.parametrize(
    ("before", "after", "inputs", "constants", "others"),
    [
        # equal over the reals; not where x is 0, or far from it, or a whole number
        ("m = Mul(x, x)  y = Div(m, x)", "y = Identity(x)", None, {}, None),
        ("y = Div(x, x)", "o = Mul(x, z)  y = Add(o, e)", None, {"z": c(0), "e": c(1)}, None),
        ("d = Sub(x, c)  y = Exp(d)", "e = Exp(x)  y = Mul(e, g)", None,
         {"c": c(50.0)}, {"g": c(np.exp(-50.0))}),
        ("y = Mul(x, c)", "a = Mul(x, e)  b = Mul(a, e)  y = Mul(b, d)", None,
         {"c": c(1)}, {"e": c(1e11), "d": c(1e-22)}),
        ("q = Div(x, z)  y = Mul(q, z)", "y = Identity(x)",
         {"x": whole(3), "z": whole(3)}, {}, None),
        ("m = ReduceMean<keepdims=0>(x, a)  y = ReduceMean<keepdims=0>(m, a)",
         "y = ReduceMean<keepdims=0>(x, b)", {"x": whole(2, 3)}, {"a": k(0), "b": k(0, 1)}, None),
        ("a = Cast<to=10>(x)  y = Cast<to=1>(a)", "y = Identity(x)", None, {}, None),
        ("a = Cast<to=11>(x)  y = Cast<to=7>(a)", "y = Identity(x)",
         {"x": whole(3, dtype=np.int64)}, {}, None),
        # sizes that are held to a number, or to each other, on the new side alone
        ("y = Relu(x)", "r = Reshape(x, s)  y = Relu(r)", {"x": ("N", 3)},
         {}, {"s": k(2, 3)}),
        ("y = Attention(x, x, z)", "r = Reshape(z, s)  y = Attention(x, x, r)",
         {"x": ("B", 2, "T", 4), "z": ("B", 2, "T", 4)}, {}, {"s": k(0, 2, 2, 4)}),
        # infinities and what is no number among constants
        ("y = Add(x, c)", "y = Add(x, c)", None, {"c": c(-np.inf, 1, 2)}, {"c": c(-5, 1, 2)}),
        ("y = Add(x, c)", "y = Add(x, c)", None, {"c": c(np.nan, 1, 2)}, {"c": c(-5, 1, 2)}),
        ("y = Mul(x, c)", "y = Mul(x, c)", None, {"c": c(np.inf, 1, 2)}, {"c": c(5, 1, 2)}),
        # what a zero, or a difference, takes away is no number where an input is infinite
        ("y = Mul(x, c)", "a = Mul(x, c)  b = Mul(z, n)  y = Add(a, b)", None,
         {"c": c(2)}, {"c": c(2), "n": c(0)}),
        ("y = Mul(x, c)", "a = Mul(x, c)  b = Add(a, z)  y = Sub(b, z)", None, {"c": c(2)}, None),
        ("y = LayerNormalization(x, s)",
         "a = ReduceMean<keepdims=1>(x, l)  d = Sub(x, a)  r = Sqrt(d)  q = Div(d, r)"
         "  y = Mul(q, s)", None, {"s": c(0, 0, 0)}, {"s": c(0, 0, 0), "l": k(-1)}),
        # padding of another mode, of other sizes
        ('y = Pad<mode="reflect">(x, p)', 'y = Pad<mode="edge">(x, p)', N3,
         {"p": k(0, 1, 0, 1)}, None),
        ('y = Pad<mode="reflect">(x, p)', 'y = Pad<mode="reflect">(x, p)', N3,
         {"p": k(0, 1, 0, 2)}, {"p": k(0, 2, 0, 1)}),
        # of one element there is a softmax only where it is a number
        ("d = Div(x, z)  y = Softmax(d)", "q = Div(z, x)  y = Softmax(q)", ONES, {}, None),
        ("y = Softmax(x)", "q = Div(x, z)  y = Softmax(q)", ONES, {}, None),
        ("y = LogSoftmax(x)", "q = Div(x, z)  y = LogSoftmax(q)", ONES, {}, None),
        ("y = ReduceMax<keepdims=1>(x, l)", "q = Div(x, z)  m = Mul(q, z)"
         "  y = ReduceMax<keepdims=1>(m, l)", ONES, {"l": k(1)}, None),
        # roots of what is negative, inverses of what is 0
        ("y = Relu(x)", "a = Sqrt(x)  b = Pow(a, n)  y = Relu(b)", None, {"n": c(2)}, None),
        ("y = Relu(x)", "a = Log(x)  b = Exp(a)  y = Relu(b)", None, {}, None),
        ("y = Relu(x)", "a = Reciprocal(x)  b = Reciprocal(a)  y = Relu(b)", None, {}, None),
        # an infinity that is hidden, or is not
        ("a = Div(x, z)  y = Where(t, a, i)",
         "a = Div(x, z)  m = Where(t, n, i)  y = Add(a, m)",
         {"x": (3, 3), "z": (3, 3), "t": np.ones((3, 3), bool)},
         {"i": c(-np.inf), "n": c(0)}, None),
        # an axis that may be empty has no first element
        ("y = ReduceSum<keepdims=0>(x, l)",
         "f = Gather(x, i)  g = Mul(f, n)  s = ReduceSum<keepdims=0>(x, l)  y = Add(s, g)",
         N3, {"l": k(0)}, {"l": k(0), "i": k(0).reshape(()), "n": c(1e-30)}),
        # exponentials that vanish are not equal
        ("s = Add(x, c)  y = Softmax<axis=-1>(s)", "s = Add(x, c)  y = Softmax<axis=-1>(s)", N3,
         {"c": c(0, -10000, -20000)}, {"c": c(0, -7071, -20000)}),
        ("s = Add(x, c)  y = Softmax<axis=-1>(s)", "s = Add(x, c)  y = Softmax<axis=-1>(s)", N3,
         {"c": c(0, -np.inf, -np.inf)}, {"c": c(0, np.inf, np.inf)}),
        # an axis named twice
        ("y = ReduceMean<keepdims=0>(x, a)", "y = ReduceMean<keepdims=0>(x, b)", {"x": (4, 1, 4)},
         {"a": k(0, 1, 2)}, {"b": k(0, 2, 2)}),
        # a maximum over both axes is not that over the diagonal
        ("m = MatMul(x, w)  y = ReduceMax<keepdims=0>(m, b)",
         "m = MatMul(x, w)  d = Mul(m, i)  r = ReduceMax<keepdims=0>(d, a)"
         "  y = ReduceMax<keepdims=0>(r, a)", {"x": (3, 4), "w": (4, 3)},
         {"a": k(0), "b": k(0, 1)}, {"a": k(0), "i": np.eye(3, dtype=np.float32)}),
        # every second element has a neighbour that is infinite, times 0
        ("r = Reshape(x, p)  a, b = Split<axis=-1, num_outputs=2>(r)  m = Mul(a, w)  d = Add(b, m)"
         "  c = Concat<axis=-1>(a, d)  y = Reshape(c, f)",
         "r = Reshape(x, p)  a, b = Split<axis=-1, num_outputs=2>(r)  s = Concat<axis=-1>(b, a)"
         "  t = Reshape(s, f)  m = Mul(t, v)  y = Add(x, m)",
         {"x": (3, 4)}, {"p": k(3, 2, 2), "f": k(3, 4), "w": c(2)},
         {"p": k(3, 2, 2), "f": k(3, 4), "v": c(0, 2, 0, 2)}),
        # a neighbour or another channel that is infinite, times 0
        ("y = Relu(x)", "m = Conv<pads=[1, 1]>(x, w)  y = Relu(m)", {"x": ("N", 1, "L")}, {},
         {"w": c(0, 1, 0).reshape(1, 1, 3)}),
        ("y = Relu(x)", "m = MatMul(x, i)  y = Relu(m)", {"x": ("N", 3)}, {},
         {"i": np.eye(3, dtype=np.float32)}),
    ],
)  # fmt: skip
def test_what_holds_over_the_reals_alone_is_not_proved(before, after, inputs, constants, others):
    opset = 23 if "Attention" in before else 20
    assert verdict(before, after, inputs, constants, others, opset) != "proved"


def test_branches_exchanged_are_not_proved():
    def choice(first, second):
        then = f"then_branch = g () => (t) {{ t = {first}(x) }}"
        return f"y = If<{then}, else_branch = h () => (e) {{ e = {second}(x) }}>(k)"

    before, after = choice("Relu", "Neg"), choice("Neg", "Relu")
    inputs = {"k": np.array(True), "x": (2, 3)}
    text = "z = Identity(x)  "
    assert verdict(text + before, text + before, inputs) == "proved"
    assert verdict(text + before, text + after, inputs) != "proved"


def test_a_rare_difference_is_sought_once_a_nearer_cut_shows_it():
    held = {"c": np.linspace(-0.9, 0.7, 8, dtype=np.float32)[[3, 0, 6, 1, 7, 2, 5, 4]],
            "d": c(0, 0, 0.02, 0, 0, 0, 0, 0)}  # fmt: skip
    before = "s = Add(x, c)  y = ArgMax<axis=1, keepdims=0>(s)"
    after = "s = Add(x, c)  h = Add(s, d)  y = ArgMax<axis=1, keepdims=0>(h)"
    assert verdict(before, after, {"x": ("N", 8)}, held) == "refuted"


def test_a_name_that_another_tool_gives_to_something_else_hides_nothing_behind_it():
    """onnxsim calls a convolution that took a norm in by the name of the one that had not."""
    old = "a = Mul(x, c)  b = Mul(a, d)  r = Relu(b)  s = Mul(r, d)  t = Relu(s)  y = Transpose(t)"
    new = "a = Mul(x, e)  r = Relu(a)  s = Mul(r, d)  t = Relu(s)  y = Transpose(t)"
    assert verdict(old, new, N3, {"c": c(2), "d": c(3), "e": c(6)}) == "proved"
    assert verdict(old, new, N3, {"c": c(2), "d": c(3), "e": c(5)}) == "refuted"


def test_scales_that_rounding_may_carry_over_a_size_are_compared_all_the_same():
    shape = {"x": (1, 1, 8, 8)}
    text = 'r = Resize<mode="nearest">(x, , f)  m = Mul(r, c)  y = Mul(m, d)'
    after = 'r = Resize<mode="nearest">(x, , f)  y = Mul(r, e)'
    given = {"f": c(1, 1, 2, 2), "c": c(2), "d": c(3)}
    for e, expected in ((6, "proved"), (7, "refuted")):
        assert verdict(text, after, shape, given | {"e": c(e)}) == expected


@pytest.mark.parametrize(("bias", "expected"), [(1e-30, "proved"), (1e30, "checked")])
def test_a_small_bias_makes_nothing_small(bias, expected):
    weights = {"w": np.full((2, 3, 1, 1), 1e-7, np.float32), "b": np.full(2, bias, np.float32)}
    before = "h = Conv(x, w)  s = Reshape(b, shape)  y = Add(h, s)"
    shape = {"shape": np.array([1, 2, 1, 1])}
    found = verdict(before, "y = Conv(x, w, b)", {"x": ("n", 3, 2, 2)}, {**weights, **shape})
    assert found == expected


VIEWS = {"zero": k(0), "w": np.arange(36, dtype=np.float32).reshape(1, 4, 3, 3)}


def test_axes_of_size_1_belong_to_no_other_axis():
    """Unknown sizes beside them are not taken for parts of one, however they are indexed."""
    before = """r = Relu(x)
        a = Transpose<perm=[0, 2, 3, 1]>(r)  b = Squeeze(a, zero)
        d = Unsqueeze(b, zero)  e = Transpose<perm=[0, 3, 1, 2]>(d)  y = Conv(e, w)"""
    after = "r = Relu(x)  y = Conv(r, w)"
    assert verdict(before, after, {"x": (1, 4, "h", "v")}, VIEWS) == "proved"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # what says nothing but the shape need not be the same, where that is
        ("s = Shape(x)  r = Resize(z, , , s)  y = Relu(r)",
         "t = Relu(x)  s = Shape(t)  r = Resize(z, , , s)  y = Relu(r)"),
        # no normal form of what reads it, whose sizes nothing tells
        ("a = Relu(x)  b = Relu(a)  u = NonZero(b)  f = Cast<to=1>(u)  y = Sinh(f)",
         "b = Relu(x)  u = NonZero(b)  f = Cast<to=1>(u)  y = Sinh(f)"),
        # a size is below 2^31, by whichever integers it goes
        ("s = Shape(x)  a = Cast<to=6>(s)  b = Cast<to=7>(a)  y = Reshape(z, b)",
         "s = Shape(x)  y = Reshape(z, s)"),
    ],
)  # fmt: skip
def test_one_operator_of_equal_arguments(before, after):
    inputs = {"x": ("N", 3, 4, "W"), "z": ("N", 3, 4, "W")}
    assert verdict(before, after, inputs) == "proved"


def test_one_operator_of_other_arguments_is_another():
    before = "a = Relu(x)  u = NonZero(a)  y = Cast<to=1>(u)"
    after = "a = Abs(x)  u = NonZero(a)  y = Cast<to=1>(u)"
    assert verdict(before, after, {"x": ("N", 3)}) == "refuted"


def _normalized(kind, off=1.0):
    """Conv, BatchNormalization of a type, and the weights of the Conv that does both."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 4, 3, 3)).astype(kind)
    s, b, m = (rng.standard_normal(8).astype(kind) for _ in range(3))
    v = rng.uniform(0.5, 2, 8).astype(kind)
    by = s.astype(np.float64) / np.sqrt(v.astype(np.float64) + 1e-5)
    folded = w * by.reshape(8, 1, 1, 1) * off
    more = b - m.astype(np.float64) * by
    return {"w": w, "s": s, "b": b, "m": m, "v": v}, {
        "f": folded.astype(kind), "g": more.astype(kind)
    }  # fmt: skip


NORMALIZED = (
    "c = Conv(x, w)  y = BatchNormalization(c, s, b, m, v)",
    "y = Conv(x, f, g)",
)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_folded_constants_are_rounded_in_the_type_that_is_computed_in(kind):
    before, after = NORMALIZED
    x = {"x": np.zeros((1, 4, 6, 6), kind)}
    assert verdict(before, after, x, *_normalized(kind)) == "proved"
    assert verdict(before, after, x, *_normalized(kind, off=1.01)) == "refuted"


def test_half_precision_is_no_licence_where_the_source_has_none():
    constants, folded = _normalized(np.float32)
    before, after = NORMALIZED
    narrow = after.replace("f, g", "u, g").replace("y =", "u = Cast<to=1>(h)  y =")
    given = {"h": folded["f"].astype(np.float16), "g": folded["g"]}
    x = {"x": np.zeros((1, 4, 6, 6), np.float32)}
    assert verdict(before, narrow, x, constants, given) not in ("proved", "checked")
