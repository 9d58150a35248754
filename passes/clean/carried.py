"""Loop-invariant state: what a Loop or Scan passes from turn to turn unchanged.

    s' = s in every turn  =>  s = s_0 throughout, and after the last turn (or none)

So the body reads s_0 from outside, and it is neither carried nor copied. Exporters of recurrent
layers carry their weights that way, and what is carried is no constant to anyone.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt import Context
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.provenance import derive
from graphopt.graph.traverse import all_nodes, passed_on

__all__ = ["hoist_invariants"]


def hoist_invariants(model: ir.Model, ctx: Context) -> int:
    """State that no turn changes -> a value that the body reads from outside."""
    edits = 0
    waiting = [n for n in all_nodes(model.graph) if n.op_type in ("Loop", "Scan") and not n.domain]
    names = Names(model) if waiting else None
    for node in waiting:
        fixed = _fixed(node)
        if fixed and ctx.edit("LoopInvariant", node):
            assert names is not None
            _hoist(node, fixed, Builder(model, node, names))
            ctx.invalidate()
            edits += 1
    return edits


def _places(node: ir.Node) -> tuple[int, int, int, int]:
    """How many values of state there are; the first of them in inputs, body inputs, outputs."""
    if node.op_type == "Loop":
        return len(node.inputs) - 2, 2, 2, 1
    return len(node.inputs) - node.attributes["num_scan_inputs"].as_int(), 0, 0, 0


def _fixed(node: ir.Node) -> list[int]:
    """The states that every turn passes on as they are."""
    body = node.attributes["body"].as_graph()
    count, given, taken, made = _places(node)
    if len(body.inputs) < taken + count or len(body.outputs) < made + count:
        return []
    return [
        k
        for k in range(count)
        if node.inputs[given + k] is not None
        and passed_on(body.outputs[made + k]) is body.inputs[taken + k]
        and sum(v is body.inputs[taken + k] for v in body.outputs) <= 1
    ]


def _hoist(node: ir.Node, fixed: list[int], builder: Builder) -> None:
    _, given, taken, made = _places(node)
    body: Any = node.attributes["body"].as_graph().clone(allow_outer_scope_values=True)
    for k in reversed(fixed):
        outer = node.inputs[given + k]
        passed = body.outputs.pop(made + k).producer()
        body.inputs.pop(taken + k).replace_all_uses_with(outer)
        remove_dead([passed] if passed is not None else [])
    dropped = {given + k for k in fixed}
    inputs = [v for i, v in enumerate(node.inputs) if i not in dropped]
    kept = [v for i, v in enumerate(node.outputs) if i not in fixed]
    if kept:
        others = {name: a for name, a in node.attributes.items() if name != "body"}
        new = builder.node(node.op_type, inputs, {**others, "body": body}, outputs=len(kept))
        derive(builder.nodes, [node], "")
        for old, value in zip(kept, new.outputs, strict=True):
            builder.take_over(old, value)
    for k in fixed:
        outer = node.inputs[given + k]
        assert outer is not None
        builder.take_over(node.outputs[k], outer)
    remove_dead([node])
