import numpy as np
from graphopt.passes.clean.clean import Clean

from graphopt.testing import check


def test_elements_of_split_values_are_parts():
    check(
        Clean(),
        before="s = SplitToSequence<axis = 1>(x, n)  a = SequenceAt(s, i)  b = SequenceAt(s, j)  "
        "y = Sub(a, b)",
        after="a, b = Split<axis = 1>(x, sizes)  y = Sub(a, b)",
        inputs={"x": (2, 6)},
        constants={"n": np.int64(3), "i": np.int64(0), "j": np.int64(-1)},
    )


def test_elements_of_an_unbound_value_are_gathered():
    check(
        Clean(),
        before="s = SplitToSequence<axis = 1, keepdims = 0>(x)  y = SequenceAt(s, i)",
        after="y = Gather<axis = 1>(x, i)",
        inputs={"x": (2, 6)},
        constants={"i": np.int64(1)},
    )


def test_an_element_of_a_list_is_itself():
    check(
        Clean(),
        before="s = SequenceConstruct(x, z)  a = SequenceAt(s, i)  y = Add(x, a)",
        after="y = Add(x, z)",
        inputs={"x": (3,), "z": (3,)},
        constants={"i": np.int64(1)},
    )


def test_a_list_joined_is_a_concat():
    check(
        Clean(),
        before="s = SequenceConstruct(x, z)  y = ConcatFromSequence<axis = 0>(s)",
        after="y = Concat<axis = 0>(x, z)",
        inputs={"x": (2,), "z": (3,)},
    )


def test_a_position_that_varies_stays():
    check(
        Clean(),
        before="s = SequenceConstruct(x, z)  y = SequenceAt(s, i)",
        unchanged=True,
        inputs={"x": (2,), "z": (2,), "i": np.array(1, np.int64)},
    )
