"""What int8 tells: what became integer, what stays float and why, why nothing was done."""

from __future__ import annotations

import re
from collections import Counter

import onnx_ir as ir
from graphopt.passes.int8.operators import ALREADY
from graphopt.passes.int8.plan import Plan
from graphopt.passes.int8.requantize import form_of

from graphopt.context import Context
from graphopt.deploy.processors import extensions, saturates
from graphopt.graph.constants import weight_of
from graphopt.graph.traverse import all_nodes
from graphopt.target import Target

__all__ = ["tell", "why_nothing"]

#: Operators of models that are quantized already.
INTEGER = re.compile(r"^QLinear|^QGemm$|Integer(ToFloat)?$|^DynamicQuantize")
#: Types of data and weights whose products x86 adds in pairs.
U8S8 = ("uint8", "int8")
#: What stays float is named if it has this share of the bytes of weights, the largest alone.
LITTLE, NAMED = 0.01, 5


def tell(model: ir.Model, ctx: Context, plan: Plan) -> None:
    """Say what stays float and why, and which share of the weights became integer."""
    for node, reason in plan.left.items():
        if reason != ALREADY:
            ctx.refuse("Int8", node, reason)
    if left := _left_in_float(model, plan):
        ctx.note(f"left in float: {'; '.join(left)}.")
    if not len(plan):
        return
    inside: dict[ir.Value, int] = {}
    for node, kind in (*plan.nodes.items(), *plan.dynamic.items()):
        if kind.weight is not None:
            _count(inside, node.inputs[kind.weight])
    for node in plan.blocks:
        _count(inside, node.inputs[1])
    for node in plan.tables:
        _count(inside, node.inputs[0])
    for node in plan.recurrent:
        _count(inside, node.inputs[1])
        _count(inside, node.inputs[2])
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    share = min(1.0, sum(inside.values()) / max(total, 1))
    ctx.note(f"int8: {len(plan)} nodes, {share:.1%} of the weight bytes.")
    if saturating := _saturating(ctx.target):
        ctx.note(saturating)


def _saturating(target: Target) -> str:
    """What to say where the target's integers are right on some processors alone, or ""."""
    scheme = target.int8
    if scheme is None or scheme.reduce_range or (scheme.activation, scheme.weight) != U8S8:
        return ""
    if not target.isa:
        return (
            "x86 processors without VNNI saturate pairs of products of 8-bit weights: for them "
            "--target cpu-avx2, whose weights keep 7 bits."
        )
    if saturates(extensions()):
        return (
            "this processor has no VNNI: pairs of products saturate here, as they do not on "
            f"{target.name}, and errors here count that in."
        )
    return ""


def _left_in_float(model: ir.Model, plan: Plan) -> list[str]:
    """The nodes with the most bytes of weights among those that compute in float, and why."""
    done = plan.modes()
    sizes: dict[ir.Node, int] = {}
    for node in all_nodes(model.graph):
        read: dict[ir.Value, int] = {}
        for value in node.inputs if node not in done else ():
            if value is not None and value.dtype == ir.DataType.FLOAT:
                _count(read, value)
        sizes[node] = sum(read.values())
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    named = []
    for node, size in sorted(sizes.items(), key=lambda item: -item[1])[:NAMED]:
        if size and size >= LITTLE * total:
            why = plan.left.get(node, f"{node.op_type} has no integer form here")
            if node in plan.stored:
                why += f" (stored in {plan.stored[node][1]} bits)"
            share = f"{size / max(total, 1):.0%}".replace("%", " %")
            named.append(f"{node.name or node.outputs[0].name} ({share} of the bytes): {why}")
    return named


def why_nothing(model: ir.Model, plan: Plan) -> str:
    """Why no node of `model` became integer."""
    integer = any(INTEGER.search(n.op_type) for n in all_nodes(model.graph))
    if integer or form_of(model.graph) is not None:
        return "quantized already: start from the float model"
    reasons = Counter(plan.left.values()).most_common(1)
    if not reasons:
        return "no layer to quantize: no product, convolution, LSTM or table has constant weights"
    ((reason, n),) = reasons
    return f"all {len(plan.left)} layers stay float, {n} of them because: {reason}"


def _count(inside: dict[ir.Value, int], value: ir.Value | None) -> None:
    weight = weight_of(value)
    if weight is not None:
        inside[weight.root] = weight.tensor.nbytes
