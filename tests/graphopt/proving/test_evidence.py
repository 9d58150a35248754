"""The verdict of every edit of a pass."""

import numpy as np
import pytest
from graphopt.passes.clean import Clean

from graphopt import optimize
from graphopt.context import Context, Edit
from graphopt.proving.evidence import examine
from graphopt.testing import parse_model


def source():
    return parse_model(
        "a = Relu(x)  b = Relu(a)  s = Mul(b, one)  y = Add(s, z)",
        inputs={"x": ("N", 3), "z": (3,)},
        constants={"one": np.float32(1).reshape(())},
    )


def test_every_edit_of_a_right_pass_is_proved():
    model = source()
    before = model.clone()
    ctx = Context(model, pass_name="clean")
    Clean().run(model, ctx)
    found = examine(before, model, ctx.edits)
    assert len(found.edits) == len(ctx.edits) > 0
    assert found.counts == {"proved": len(ctx.edits), "checked": 0, "assumed": 0}
    assert found.open == ()
    assert found.refuted is None


def test_an_edit_that_changes_an_output_is_named():
    model = source()
    before = model.clone()
    node = next(n for n in model.graph if n.op_type == "Add")
    node.replace_input_with(0, node.inputs[1])
    found = examine(before, model, [Edit("wrong", node.name)])
    assert found.open == ("y",)
    assert found.refuted is not None
    assert found.refuted.name == "y"
    assert found.counts["proved"] == 0


def test_runs_of_the_whole_model_stand_in_for_a_region_without_a_kernel():
    before = parse_model("y = Add(x, z)", inputs={"x": ("N", 3), "z": (3,)})
    found = examine(before, before.clone(), [Edit("none", "Add_0")])
    assert found.whole(3) == found
    assert found.counts == {"proved": 1, "checked": 0, "assumed": 0}


@pytest.mark.parametrize("rows", [100, 5000, 50000])
def test_a_long_sum_folded_in_float32_is_as_good_as_the_source(rows):
    rng = np.random.default_rng(0)
    model = parse_model(
        "a = Gather<axis=0>(w, ids)  b = ReduceSum<keepdims=0>(a, ax)  y = Add(x, b)",
        inputs={"x": ("N", 64)},
        constants={
            "w": rng.standard_normal((100, 64)).astype(np.float32),
            "ids": rng.integers(0, 100, rows),
            "ax": np.array([0]),
        },
    )
    (step,) = optimize(model, "fold", measure=False).report.steps
    assert (step.status, step.nodes, step.undone) == ("kept", 1, ())
    assert step.evidence.assumed == 0


@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -1e38])
def test_scores_masked_by_the_lowest_number_are_attention(lowest):
    """Infinite queries would tell the two apart, and are no number in every other product."""
    model = parse_model(
        """kt = Transpose<perm=[0,1,3,2]>(k)  s = MatMul(q, kt)  t = Mul(s, c)
        w = Where(mask, t, low)  p = Softmax<axis=-1>(w)  y = MatMul(p, v)""",
        inputs={**dict.fromkeys("qkv", (2, 4, 5, 8)), "mask": np.zeros((2, 1, 5, 5), bool)},
        constants={"c": np.float32(8**-0.5).reshape(()), "low": np.float32(lowest).reshape(())},
    )
    result = optimize(model, "fuse", measure=False)
    assert result.report.steps[0].undone == ()
    assert [n.op_type for n in result.model.graph] == ["Where", "Attention"]
