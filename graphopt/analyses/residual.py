"""Residual branches: sums x + f(x) where everything that f computes is read by the sum alone.

He et al., Deep residual learning, CVPR 2016; in transformers attention and feed-forward parts.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context

__all__ = ["Residual", "residuals"]


@dataclasses.dataclass(frozen=True, eq=False)
class Residual:
    """One sum of a stream and what a branch adds to it.

    Attributes:
        node: the Add.
        stream: its operand that passes by.
        branch: the nodes that compute the other one, in graph order: without the sum they are dead.
    """

    node: ir.Node
    stream: ir.Value
    branch: tuple[ir.Node, ...]


def residuals(ctx: Context) -> list[Residual]:
    """The residual branches of the main graph, in its order."""
    order = {node: k for k, node in enumerate(ctx.model.graph)}
    known = ctx.get(shapes)
    found = []
    for node in order:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or len(node.inputs) != 2:
            continue
        for k in (0, 1):
            stream, added = node.inputs[k], node.inputs[1 - k]
            if stream is None or added is None or stream is added or stream.is_initializer():
                continue
            if not known.same_shape(stream, node.outputs[0]) or known.dtype(stream) is None:
                continue
            branch = _dead_without(node, stream, added, order)
            if _reads(branch, stream):
                inside = tuple(sorted(branch, key=order.__getitem__))
                found.append(Residual(node, stream, inside))
                break
    return found


def _dead_without(
    node: ir.Node, stream: ir.Value, added: ir.Value, order: dict[ir.Node, int]
) -> set[ir.Node]:
    """The nodes that nothing but `node` reads, through `added`; `stream` is read by all."""
    dead: set[ir.Node] = set()
    waiting = [added.producer()]
    while waiting:
        one = waiting.pop()
        if one is None or one in dead or one not in order or one is stream.producer():
            continue
        users = {user for o in one.outputs for user, _ in o.uses()}
        if any(o.is_graph_output() for o in one.outputs) or not users <= dead | {node}:
            continue
        dead.add(one)
        waiting += [v.producer() for v in one.inputs if v is not None]
    return dead


def _reads(branch: set[ir.Node], stream: ir.Value) -> bool:
    """Whether a branch works on what passes by it, and not on something else."""
    return any(v is stream for n in branch for v in n.inputs)
