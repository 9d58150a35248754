import numpy as np
from graphopt.passes.fuse import Fuse

from graphopt.testing import check

ANGLES = np.outer(np.arange(5), 1.0 / 10 ** np.arange(3)).astype(np.float32)
BOTH = np.concatenate([ANGLES, ANGLES], -1)
CONSTANTS = {
    "zero": np.array([0]),
    "half": np.array([3]),
    "end": np.array([2**63 - 1]),
    "last": np.array([3]),
    "cos": np.cos(BOTH)[None, None],
    "sin": np.sin(BOTH)[None, None],
    "into": np.array([2, 5, 4, 6]),
}
BODY = """a = Mul(x, cos)
    b = Slice(x, zero, half, last)
    c = Slice(x, half, end, last)
    d = Neg(c)
    e = Concat <axis=-1> (d, b)
    f = Mul(e, sin)
    y = Add(a, f)"""
X = {"x": (2, 4, 5, 6)}


def test_halves():
    model = check(Fuse(), BODY, inputs=X, constants=CONSTANTS, opset=23)
    assert [n.op_type for n in model.graph] == ["RotaryEmbedding"]


def test_packed_heads_stay_packed():
    before = (
        "h = Reshape(x, into)  z = Transpose <perm=[0, 2, 1, 3]> (h)  "
        + BODY.replace("(x,", "(z,").replace("y = Add", "o = Add")
        + "  y = Transpose <perm=[0, 2, 1, 3]> (o)"
    )
    model = check(Fuse(), before, inputs={"x": (2, 5, 24)}, constants=CONSTANTS, opset=23)
    assert [n.op_type for n in model.graph] == ["RotaryEmbedding", "Reshape"]


def test_the_other_half_negated_is_no_rotation():
    body = BODY.replace("Neg(c)", "Neg(b)").replace("(d, b)", "(c, d)")
    check(Fuse(), body, unchanged=True, inputs=X, constants=CONSTANTS, opset=23)


def test_tables_with_different_halves_are_refused():
    constants = {**CONSTANTS, "cos": np.cos(np.concatenate([ANGLES, 2 * ANGLES], -1))[None, None]}
    check(Fuse(), BODY, because="halves", inputs=X, constants=constants, opset=23)


def test_tables_that_are_inputs_are_refused():
    constants = {k: v for k, v in CONSTANTS.items() if k != "cos"}
    inputs = {**X, "cos": (1, 1, 5, 6)}
    check(Fuse(), BODY, because="not constant", inputs=inputs, constants=constants, opset=23)
