"""The analysis: state every node's equations, solve them, and name what is left free."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims.axes import Axes
from graphopt.analyses.dims.describe import describe
from graphopt.analyses.dims.dimension import Dimensions
from graphopt.analyses.dims.instance import instance
from graphopt.analyses.dims.operation import Operation, Unsupported
from graphopt.analyses.dims.operators import operators
from graphopt.analyses.dims.operators.elementwise import BROADCAST
from graphopt.analyses.dims.solve import solve
from graphopt.analyses.dims.system import ONE
from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context

__all__ = ["dimensions"]

#: Constants larger than this are not read to see whether they hold one value only.
UNIFORM_LIMIT = 1 << 20


def dimensions(ctx: Context) -> Dimensions:
    """Every prunable dimension of the model in `ctx`, and why the other axes are frozen."""
    return infer(ctx, ctx.model.graph.all_nodes())


def infer(ctx: Context, nodes: Iterable[ir.Node]) -> Dimensions:
    """State the equations of `nodes`, all of the model's in any order, and solve them."""
    axes = Axes(ctx.get(shapes), instance(ctx))
    for node in nodes:
        state(node, axes)
    for value in (*ctx.model.graph.inputs, *ctx.model.graph.outputs):
        which = "input" if value.is_graph_input() else "output"
        reason = f"model {which} '{value.name}'"
        if value.is_graph_input() and value.is_initializer():
            reason += " with a default value (the pass `clean` makes it a weight)"
        for axis in (axes.of(value) or ((), ()))[0]:
            axes.system.freeze(axis, reason)
        for tensor in axes.uses.get(value, ()):
            for axis in tensor.axes:
                axes.system.freeze(axis, reason)
    tied = tie(axes)  # states equations too: before solving
    return describe(axes, solve(axes.system), tied)


def state(node: ir.Node, axes: Axes) -> None:
    """State the equations of one node; all that an unknown operator touches is frozen.

    So is what one touches that never runs, whose arguments do not fit each other.
    """
    op = Operation(node, axes)
    standard = node.domain in ("", "ai.onnx")
    key = node.op_type if standard else f"{node.domain}:{node.op_type}"
    function = operators.get(key)
    if function is None:
        op.freeze_all(f"operator {key} is not known")
        return
    try:
        function(op)
    except Unsupported as unsupported:
        op.freeze_all(f"{key}: {unsupported}")
    except (IndexError, ValueError) as error:
        op.freeze_all(f"{key}: its arguments do not fit each other ({error})")


#: What takes some positions of a tensor: several such uses are parts of one tensor, not ties.
TAKES = frozenset({"Gather", "Slice", "Split", "SplitToSequence"})


def tie(axes: Axes) -> tuple[str, ...]:
    """Equate the uses of weights that are used more than once; returns names of true ties.

    Exporters merge equal constants, so a vector, a constant of one value, or an operand of an
    elementwise operator is typed per use; a matrix used twice as weights is a tie in the model,
    and a tensor taken apart by slices is one tensor.
    """
    tied: list[str] = []
    for value, uses in axes.uses.items():
        if len(uses) < 2:
            continue
        users = {axes.tensors[u.node].get((False, u.idx)): u.node for u in value.uses()}
        matrix = sum(a != ONE for a in uses[0].axes) >= 2 and not _uniform(value)
        same = [
            t
            for t in uses
            if t in users
            and (users[t].op_type in TAKES or (matrix and users[t].op_type not in BROADCAST))
        ]
        for other in same[1:]:
            for a, b in zip(same[0].axes, other.axes, strict=True):
                axes.system.same(a, b)
        if matrix and sum(users[t].op_type not in TAKES - {"Gather"} for t in same) > 1:
            tied.append(value.name or "?")
    return tuple(tied)


def _uniform(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.size > UNIFORM_LIMIT:
        return False
    array = tensor.numpy().ravel()
    return bool(
        array.size == 0 or (array == array[0]).all() or not np.issubdtype(array.dtype, np.number)
    )
