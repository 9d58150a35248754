"""Operators that never run may hold what no runtime takes: what they touch is frozen."""

import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt.analyses.dims import dimensions
from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context


def model(branch):
    """`branch` makes q of the first layer's h, and is never taken."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[1, 3] x, bool c) => (float[1, 4] y)
        <float[3, 8] w = {{{", ".join(["0.5"] * 24)}}}, float[8, 4] v = {{{", ".join(["1"] * 32)}}},
         bool yes = {{1}}>
        {{
            h = MatMul(x, w)
            r = If(yes) <
                then_branch = t () => (float[1, 8] p) {{ p = Relu(h) }},
                else_branch = e () => (float[a, b] q) {{ {branch} }}
            >
            y = MatMul(r, v)
        }}
    """)
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    "branch",
    [
        "s = Constant<value_ints = [-1, 8]>() q = Expand(h, s)",
        "s = Constant<value_ints = [0, -9, 0, 0]>() q = Pad(h, s)",
        "s = Constant<value_ints = [1, -2]>() q = Tile(h, s)",
        "s = Constant<value_ints = [99, 0]>() q = Gather<axis = 1>(h, s)",
        "s = Constant<value_ints = [-9, 0]>() q = Gather<axis = 1>(h, s)",
    ],
)
def test_what_does_not_fit_is_frozen(branch):
    ctx = Context(model(branch))
    facts = ctx.get(shapes)
    for node in ctx.model.graph.all_nodes():
        for value in node.outputs:
            dims = facts.fact(value).dims or ()
            assert not any(isinstance(d, int) and d < 0 for d in dims), value
    assert ctx.get(dimensions).prunable == {}, "what the branch reads may not be cut"
    result = graphopt.optimize(ctx.model, "prune(ratio=0.5)", measure=False)
    assert result.report.steps[0].status == "unchanged"
