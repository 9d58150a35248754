"""Q/DQ everywhere: the plan for devices that compute in integers alone (NPUs), some of it wide.

What stands between two operators is rounded once, whether that saves anything or not: what stays
float leaves the device. Activations have 8 bits; 16 where the choice says "wide".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import onnx_ir as ir
from graphopt.passes.int8.operators import Operator, clamp_after, describe
from graphopt.passes.int8.plan import CORE, Mode, Plan

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.graph.constants import weight_of
from graphopt.target import Int8Scheme

__all__ = ["WIDE", "float_values", "plan_everywhere", "stages"]

#: The form of a node whose activations have 16 bits.
WIDE = "wide"
#: Operators whose constant operands are rounded like what is computed; others read them as floats.
OPERANDS = frozenset(
    {
        *("Add", "Concat", "Div", "Einsum", "Equal", "Gather", "GatherElements", "GatherND"),
        *("Gemm", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "Max", "Mean"),
        *("Min", "Mod", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where"),
    }
)
#: Operators that only move elements, besides those that `describe` knows.
MOVES = frozenset({"Gather", "GatherElements", "GatherND", "Tile"})
#: Operators that scale what they have normalized by a constant, and add another.
NORMS = frozenset({"InstanceNormalization", "LayerNormalization", "RMSNormalization"})
#: What may stand between an operator and the rounding of its result, and behind which.
CLAMPED = frozenset({*CORE, "Add"})


def plan_everywhere(
    graph: ir.Graph,
    scheme: Int8Scheme,
    allowed: Callable[[ir.Node, Mode], str | None],
    is_float: Callable[[ir.Value], bool],
    forms: Mapping[str, str],
) -> Plan:
    """All of `graph` in integers, as far as the scheme has its operators.

    Args:
        graph: the main graph; branches stay float.
        scheme: whose operators, and type of wide activations.
        allowed: the reason why a node must stay float, or None.
        is_float: whether a value is float32.
        forms: by node name, "wide" for activations of 16 bits.
    """
    plan, held = Plan(), set[ir.Node]()
    for node in graph:
        if node in held or node.op_type not in scheme.operators:
            continue
        kind = _kind(node, is_float)
        if kind is None:
            continue
        reason = allowed(node, "static")
        if reason is not None:
            plan.left[node] = reason
            continue
        plan.nodes[node] = kind
        clamp = clamp_after(node) if node.op_type in CLAMPED else None
        if clamp is not None:
            plan.clamps[node] = clamp
            held.add(clamp)
        if forms.get(node.name or "") == WIDE:
            plan.wide.add(node)
    if not any(k.weight is not None for k in plan.nodes.values()):
        return Plan(left=plan.left)  # nothing that is worth it
    return plan


def _kind(node: ir.Node, is_float: Callable[[ir.Value], bool]) -> Operator | None:
    """What the node is to quantization; None where it has nothing to round, or not all of it."""
    if node.domain not in ("", "ai.onnx"):
        return None
    made = [is_float(v) for v in node.outputs if v.name]
    if any(made) != all(made):
        return None
    known = describe(node)
    if isinstance(known, Operator) and node.op_type != "HardSigmoid":
        kind = known
    else:
        data = tuple(k for k in range(len(node.inputs)) if _rounded(node, k, is_float))
        kind = Operator(data, "same" if node.op_type in MOVES else "integer")
    if node.op_type in NORMS and weight_of(node.inputs[1]) is not None:
        held = len(node.inputs) > 2 and weight_of(node.inputs[2]) is not None
        kind = Operator((0,), "integer", weight=1, bias=2 if held else None)
    values = [v for k in kind.data if (v := node.inputs[k]) is not None]
    if not values or not all(map(is_float, values)):
        return None
    if node.op_type != "Gather" and all(weight_of(v) is not None for v in values):
        return None
    if kind.output == "either" and any(made):
        return dataclasses.replace(kind, output="integer")
    return kind if any(made) else dataclasses.replace(kind, output="either")


def _rounded(node: ir.Node, position: int, is_float: Callable[[ir.Value], bool]) -> bool:
    value = node.inputs[position]
    if value is None or not is_float(value):
        return False
    return weight_of(value) is None or node.op_type in OPERANDS


def float_values(ctx: Context) -> set[str]:
    """Names of the main graph's float32 values."""
    known = ctx.get(shapes)
    values = {v for n in ctx.model.graph for v in (*n.inputs, *n.outputs) if v is not None}
    return {v.name for v in values if v.name and known.dtype(v) is ir.DataType.FLOAT}


def stages(plan: Plan) -> list[tuple[str, ...]]:
    """Names of nodes that get 16 bits together: each with weights, and what follows it."""
    made, stage = plan.made_by(), dict[ir.Node, int]()
    found: list[list[str]] = []
    for node, kind in plan.nodes.items():
        sources = [made[v] for k in kind.data if (v := node.inputs[k]) in made]
        if kind.weight is not None or not sources:
            stage[node] = len(found)
            found.append([])
        else:
            stage[node] = max(stage[s] for s in sources)
        found[stage[node]].append(node.name or "")
    return [tuple(names) for names in found]
