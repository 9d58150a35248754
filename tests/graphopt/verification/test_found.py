"""Rows whose number follows from values: matched one to one, in whichever order."""

import numpy as np
import pytest

from graphopt import Pass, optimize
from graphopt.graph.building import Builder
from graphopt.testing import parse_model
from graphopt.verification.found import counted_axis, unmatched

BOXES = np.array(
    [[0, 10.5, 20.2, 50.7, 60.1], [2, 100.3, 120.4, 180.6, 190.8], [1, 5.1, 200.9, 90.2, 260.3]]
)


def told(got, want=BOXES):
    return unmatched([want], [np.asarray(got, np.float64)])


def test_an_order_and_small_moves_are_no_other_boxes():
    assert told(BOXES) == (0, 6)
    assert told(BOXES[::-1]) == (0, 6)
    assert told(BOXES + np.array([0, 0.5, -0.5, 0.5, 0.5])) == (0, 6)


def test_another_class_another_place_and_another_number_are():
    assert told(BOXES + np.array([1, 0, 0, 0, 0])) == (6, 6)
    assert told(BOXES + np.array([0, 40, 0, 40, 0])) == (6, 6)
    assert told(BOXES[:2]) == (1, 5)
    assert told(np.concatenate([BOXES, BOXES[:1]])) == (1, 7)  # a second has no partner
    assert told(np.zeros((0, 5))) == (3, 3)


def test_words_are_read_in_order():
    words = [np.array([3, 7, 7, 1, 9])]
    assert unmatched(words, [np.array([3, 7, 1, 9])]) == (1, 9)
    assert unmatched(words, [np.array([9, 1, 7, 7, 3])]) == (6, 10)
    text = [np.array(["a", "b", "c"], object)]
    assert unmatched(text, [np.array(["a", "c"], object)]) == (1, 5)


def test_which_axis_counts():
    forms = [((1, 3, 8, 8),)] * 3
    assert counted_axis(forms, [np.zeros((n, 4)) for n in (5, 5, 7)]) == 0
    assert counted_axis(forms, [np.zeros((1, n, 6)) for n in (2, 0, 9)]) == 1
    assert counted_axis(forms, [np.zeros((5, 4))] * 3) is None
    longer = [((1, n),) for n in (4, 5, 6)]  # as long as the input: no number of things
    assert counted_axis(longer, [np.zeros((1, n, 2)) for n in (4, 5, 6)]) is None


class Shift(Pass):
    """Moves some numbers over zero, by another bias."""

    name, lossy = "shift", True

    def __init__(self, by):
        self.by = by

    def run(self, model, ctx):
        for node in list(model.graph):
            if node.op_type == "Add" and ctx.edit(self, node):
                bias = Builder(model, node).constant(np.full(4, self.by, np.float32), "bias")
                node.replace_input_with(1, bias)
        return len(ctx.edits)


@pytest.mark.parametrize(("by", "status"), [(-3e-4, "kept"), (-0.3, "undone")])
def test_a_guard_counts_what_has_no_partner(by, status):
    """A step that loses a few of a thousand rows stays, one that loses many does not."""
    text = "a = Add(x, b)  r = Relu(a)  y = NonZero(r)"
    model = parse_model(text, inputs={"x": (16, 4)}, constants={"b": np.zeros(4, np.float32)})
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((16, 4)).astype(np.float32)} for _ in range(64)]
    (step,) = optimize(model, [Shift(by)], samples=samples, measure=False).report.steps
    assert step.status == status
    (agreement,) = step.agreement.values()
    assert agreement.kind == "decisions"
    if status == "kept":
        assert 0 < agreement.disagreements < 0.01 * agreement.n
