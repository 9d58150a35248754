import numpy as np
import pytest
from graphopt.passes.clean.clean import Clean

from graphopt import Context
from graphopt.testing import check, parse_model


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X = {"x": (2, 3, 4)}
NS = {"x": ("N", "S", 8)}


@pytest.mark.parametrize(
    ("node", "constants", "inputs"),
    [
        ("Identity(x)", {}, X),
        ("Dropout(x)", {}, X),
        ("Cast<to = 1>(x)", {}, X),
        ("CastLike(x, x)", {}, X),
        ("Reshape(x, c)", {"c": ints(2, 3, 4)}, X),
        ("Reshape(x, c)", {"c": ints(0, -1, 4)}, X),
        ("Reshape(x, c)", {"c": ints(0, 0, 8)}, NS),
        ("Flatten(x)", {}, {"x": (2, 3)}),
        ("Squeeze(x, c)", {"c": ints()}, {"x": (2, 3)}),
        ("Expand(x, c)", {"c": ints(1, 3, 1)}, X),
        ("Tile(x, c)", {"c": ints(1, 1, 1)}, X),
        ("Slice(x, a, b)", {"a": ints(0), "b": ints(2)}, X),
        ("Slice(x, a, b, d)", {"a": ints(0), "b": ints(2**63 - 1), "d": ints(1)}, NS),
        ("Transpose<perm = [0, 1, 2]>(x)", {}, X),
        ("Transpose<perm = [1, 0, 2]>(x)", {}, {"x": (1, 1, 4)}),
        ("Concat<axis = 1>(x)", {}, X),
        ("Sum(x)", {}, X),
        ("Max(x)", {}, X),
        ("Pad(x, c)", {"c": ints(0, 0, 0, 0, 0, 0)}, X),
        ("Resize(x, , c)", {"c": np.ones(4, np.float32)}, {"x": (1, 2, 3, 3)}),
        ("Resize(x, , , c)", {"c": ints(1, 2, 3, 3)}, {"x": (1, 2, 3, 3)}),
        ("ReduceMean(x, c)", {"c": ints(1)}, {"x": (2, 1, 4)}),
        ("ReduceSum<noop_with_empty_axes = 1>(x)", {}, X),
        ("MaxPool<kernel_shape = [1, 1]>(x)", {}, {"x": (1, 2, 3, 3)}),
        ("GlobalAveragePool(x)", {}, {"x": (1, 2, 1, 1)}),
        ("Gather<axis = 1>(x, c)", {"c": ints(0, 1, 2)}, X),
        ("Split<num_outputs = 1>(x)", {}, X),
        ("Concat<axis = 1>(x, c)", {"c": np.zeros((2, 0, 4), np.float32)}, X),
        ("Add(x, c)", {"c": np.zeros((1, 4), np.float32)}, X),
        ("Mul(c, x)", {"c": np.ones((), np.float32)}, X),
        ("Sub(x, c)", {"c": np.zeros((), np.float32)}, X),
        ("Div(x, c)", {"c": np.ones((3, 1), np.float32)}, X),
        ("Pow(x, c)", {"c": np.ones((), np.float32)}, X),
        ("Where(c, x, z)", {"c": np.array([True])}, {**X, "z": (4,)}),
    ],
)
def test_returns_its_input(node, constants, inputs):
    unused = "  u = Neg(z)" if "z" in inputs else ""
    after = f"y = Relu(x){unused}"
    check(
        Clean(),
        before=f"v = {node}  y = Relu(v){unused}",
        after=after,
        constants=constants,
        inputs=inputs,
    )


@pytest.mark.parametrize(
    ("node", "constants", "inputs"),
    [
        ("Dropout(x, r, t)", {"r": np.float32(0.0), "t": np.array(True)}, X),
        ("Cast<to = 11>(x)", {}, X),
        ("Reshape(x, c)", {"c": ints(3, 2, 4)}, X),
        ("Reshape(x, c)", {"c": ints(-1, 2, 4)}, {"x": ("N", "S", 4)}),
        ("Expand(x, c)", {"c": ints(2, 1, 3, 4)}, {"x": (1, 3, 4)}),
        ("Slice(x, a, b, d, e)", {"a": ints(1), "b": ints(-9), "d": ints(0), "e": ints(-1)}, X),
        ("Slice(x, a, b, d)", {"a": ints(1), "b": ints(2**62), "d": ints(0)}, NS),
        ("Transpose<perm = [1, 0, 2]>(x)", {}, {"x": (3, 3, 4)}),
        ("Pad(x, c)", {"c": ints(1, 0, 0, -1, 0, 0)}, X),
        ("Resize(x, , c)", {"c": np.array([1, 1, 1.2, 1.2], np.float32)}, {"x": (1, 2, 3, 3)}),
        ("ReduceMean(x, c)", {"c": ints(1)}, X),
        ("ReduceL2(x, c)", {"c": ints(1)}, {"x": (2, 1, 4)}),
        ("MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)", {}, {"x": (1, 2, 3, 3)}),
        ("Gather<axis = 1>(x, c)", {"c": ints(0, 2, 1)}, X),
        ("Concat<axis = 1>(x, x)", {}, X),
        ("Add(x, c)", {"c": np.zeros((5, 1, 1, 4), np.float32)}, X),
        ("Mul(x, c)", {"c": np.array([1, 1, 1, 2], np.float32)}, X),
        ("Sub(c, x)", {"c": np.zeros((), np.float32)}, X),
        ("Where(c, x, z)", {"c": np.array([True])}, {**X, "z": (5, 2, 3, 4)}),
        ("Where(c, x, z)", {"c": np.array([True, False, True, True])}, {**X, "z": (4,)}),
    ],
)
def test_does_something(node, constants, inputs):
    unused = "  u = Neg(z)" if "z" in inputs else ""
    check(
        Clean(),
        before=f"v = {node}  y = Relu(v){unused}",
        unchanged=True,
        constants=constants,
        inputs=inputs,
    )


@pytest.mark.parametrize(
    "step",
    [
        "w = Add(x, zero)",
        "w = Mul(one, x)",
        "w = Div(x, one)",
        "w = Slice(x, start, end)",
        "n = Neg(x)  w = Neg(n)",
    ],
)
def test_what_does_nothing_to_any_shape_needs_none(step):
    numbers = {
        "zero": np.float32(0),
        "one": np.float32(1),
        "start": ints(0),
        "end": ints(2**63 - 1),
    }
    model = parse_model(f"{step}  y = Relu(w)", inputs=X, constants=numbers)
    for value in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs)):
        value.shape = None
    Clean().run(model, Context(model))
    assert [n.op_type for n in model.graph] == ["Relu"]


@pytest.mark.parametrize("step", ["w = Add(x, zeros)", "w = Slice(x, start, end)"])
def test_what_may_do_something_to_another_shape_stays(step):
    numbers = {"zeros": np.zeros(1, np.float32), "start": ints(0), "end": ints(2**20)}
    model = parse_model(f"{step}  y = Relu(w)", inputs=X, constants=numbers)
    for value in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs)):
        value.shape = None
    Clean().run(model, Context(model))
    assert len(model.graph) == 2


SIZES = {"c": ints(1, 2, 1)}


@pytest.mark.parametrize(
    ("parts", "left"),
    [("a, b, c_", None), ("x, a, b, c_, x", ["x", "x", "x"]), ("b, a, b, c_", ["b", "x"])],
)
def test_parts_that_come_together_again_are_the_whole(parts, left):
    before = f"a, b, c_ = Split<axis = 2>(x, c)  v = Concat<axis = -1>({parts})  y = Relu(v)"
    model = check(Clean(), before=before, constants=SIZES, inputs=X)
    joined = [[i.name for i in n.inputs] for n in model.graph if n.op_type == "Concat"]
    assert joined == ([left] if left else [])
    assert sum(n.op_type == "Split" for n in model.graph) == ("b" in (left or ""))


@pytest.mark.parametrize("parts", ["b, a, c_", "a, b", "a, c_, b", "a, b, b, c_"])
def test_parts_in_another_order_stay(parts):
    before = f"a, b, c_ = Split<axis = 2>(x, c)  v = Concat<axis = 2>({parts})  y = Relu(v)"
    check(Clean(), before=before, unchanged=True, constants=SIZES, inputs=X)


def test_parts_that_come_together_along_another_axis_stay():
    before = "a, b = Split<axis = 1, num_outputs = 2>(x)  v = Concat<axis = 0>(a, b)  y = Relu(v)"
    check(Clean(), before=before, unchanged=True, inputs={"x": (2, 4)})


def test_a_false_condition_takes_the_other_side():
    no = {"c": np.array([False])}
    inputs = {"z": (4,), "x": (2, 4)}
    check(Clean(), "w = Neg(z)  v = Where(c, w, x)  y = Relu(v)", inputs=inputs, constants=no)


def test_a_dropout_whose_mask_is_used_stays():
    check(Clean(), before="a, m = Dropout(x)  y = Relu(a)  n = Not(m)", unchanged=True)


def test_an_identity_between_input_and_output_stays():
    check(Clean(), before="y = Identity(x)", unchanged=True)


def test_a_noop_that_is_an_output_hands_on_its_name():
    model = check(Clean(), before="a = Relu(x)  y = Identity(a)", after="y = Relu(x)")
    assert model.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("between", "to", "same"),
    [(11, 6, True), (7, 10, True), (9, 1, False), (3, 1, False), (10, 1, False)],
)
def test_a_cast_between_is_skipped_where_it_holds_every_value(between, to, same):
    inputs = {"x": np.array([[-300, 7, 100000]], np.int32)}
    before = f"a = Cast<to = {between}>(x)  y = Cast<to = {to}>(a)"
    if same and to == 6:
        check(Clean(), before=before, after="y = Identity(x)", inputs=inputs)
    elif same:
        check(Clean(), before=before, after=f"y = Cast<to = {to}>(x)", inputs=inputs)
    else:
        check(Clean(), before=before, because="loses values", inputs=inputs)


def test_not_not_and_relu_relu():
    flags = {"x": np.array([True, False])}
    check(Clean(), before="a = Not(x)  b = Not(a)  y = Not(b)", after="y = Not(x)", inputs=flags)
    check(Clean(), before="a = Relu(x)  y = Relu(a)", after="y = Relu(x)")


def test_and_with_a_constant():
    inputs = {"x": np.array([True, False])}
    true = {"c": np.array(True)}
    check(Clean(), "a = And(x, c)  y = Not(a)", "y = Not(x)", inputs=inputs, constants=true)
    check(Clean(), "a = Or(x, c)  y = Not(a)", unchanged=True, inputs=inputs, constants=true)


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div", "Pow"])
def test_an_operand_expanded_to_the_shape_of_the_other(name):
    check(
        Clean(),
        f"r = Relu(x)  w = Expand(z, s)  y = {name}(r, w)",
        f"r = Relu(x)  y = {name}(r, z)",
        inputs={"x": np.ones((2, 3), np.float32), "z": (2, 1)},
        constants={"s": np.array([2, 3])},
    )


def test_an_expanded_value_added_to_itself_stays_expanded():
    check(
        Clean(),
        "r = Relu(z)  w = Expand(r, s)  y = Add(w, w)",
        unchanged=True,
        inputs={"z": (2, 1)},
        constants={"s": np.array([2, 3])},
    )


def test_an_operand_expanded_beyond_the_other_stays():
    check(
        Clean(),
        "w = Expand(z, s)  y = Add(x, w)",
        unchanged=True,
        inputs={"x": (1, 3), "z": (2, 1)},
        constants={"s": np.array([2, 3])},
    )
