"""The runtime's fused convolutions and products, taken apart again for passes that need the parts.

    FusedConv(x, W, b, z; act) -> act(Conv(x, W, b) + z)
    FusedGemm(a, W, c; act)    -> act(Gemm(a, W, c))
    Gemm(a, W, c)              -> Gemm(a', k W) + c     a' transposed, c computed, k a factor
    FusedMatMul(x, W)          -> MatMul(x', k W')      x', W' transposed, k a factor
    HardSwish(x)               -> x * HardSigmoid(x; 1/6, 1/2)
    PRelu(x, s)                -> max(x, s x)           s <= 1; a third of the time

The runtime fuses the parts of convolutions itself when it opens the model, and a factor goes into
the constant: taking them apart loses little where the node stays float after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.linear import linear_of
from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import Weight, weight_of
from graphopt.graph.traverse import inner_nodes

__all__ = ["open_fused"]

#: Attributes of each activation, in the order of a FusedConv's parameters.
_PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ()}
_PLAIN = {"FusedConv": "Conv", "FusedGemm": "Gemm"}


def open_fused(model: ir.Model, ctx: Context) -> int:
    """Take apart every such node of the main graph, and convolutions of branches; how many."""
    facts = ctx.get(shapes)
    convolutions = (n for n in inner_nodes(model.graph) if n.op_type == "FusedConv")
    fused = [n for n in (*model.graph, *convolutions) if _opens(n)]
    names = Names(model) if fused else None
    opened = 0
    for node in fused:
        x = node.inputs[0]
        rank = (facts.rank(x) if x is not None else None) or 0
        product = node.op_type in ("FusedMatMul", "Gemm")
        if (product and rank < 2) or not ctx.edit("OpenFused", node):
            continue
        builder = Builder(model, node, names)
        if product:
            out = _product(node, builder, rank)
        elif node.op_type == "HardSwish":
            gate = _like(builder.HardSigmoid(x, alpha=1 / 6, beta=0.5), node)
            out = builder.Mul(x, gate)
        elif node.op_type == "PRelu":
            out = builder.Max(x, _like(builder.Mul(x, node.inputs[1]), node))
        else:
            out = _open(node, builder)
        provenance.derive(builder.nodes, [node], ctx.pass_name)
        builder.take_over(node.outputs[0], out)
        remove_dead([node])
        for made in builder.nodes if product else ():
            if made.op_type in ("Gemm", "MatMul"):  # it goes by the name that layers= knows
                made.name = node.name
        opened += 1
    if opened:
        ctx.invalidate()
    return opened


def _opens(node: ir.Node) -> bool:
    """Whether `node` is something that integers have only in parts."""
    if node.domain == "com.microsoft" and node.op_type in _PLAIN:
        return True
    if node.domain == "com.microsoft" and node.op_type == "FusedMatMul":
        x, w = node.inputs[0], node.inputs[1]
        batched = any(attribute(node, f"transBatch{k}", 0) for k in "AB")
        return not batched and weight_of(x) is None and _matrix(w)
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "PRelu":
        slope = weight_of(node.inputs[1])
        return slope is not None and slope.tensor.dtype == ir.DataType.FLOAT and _below_one(slope)
    return node.op_type == "HardSwish" or (node.op_type == "Gemm" and _mixed(node))


def _below_one(slope: Weight) -> bool:
    return bool((slope.array() <= 1).all())


def _mixed(node: ir.Node) -> bool:
    """Whether a Gemm of a constant does more than a product and a constant row."""
    op = linear_of(node)
    if isinstance(op, str) or op.data != 0 or not _matrix(node.inputs[1]):
        return False
    return op.alpha != 1 or op.turned or not _plain_row(node)


def _plain_row(node: ir.Node) -> bool:
    op = linear_of(node)
    if isinstance(op, str) or op.bias is None:
        return True
    row = weight_of(op.bias)
    shapes = ((op.out_channels,), (1, op.out_channels))
    return row is not None and row.shape in shapes and op.beta == 1


def _matrix(value: ir.Value | None) -> bool:
    """Whether `value` is a constant matrix of floats."""
    weight = weight_of(value)
    floats = weight is not None and weight.tensor.dtype == ir.DataType.FLOAT
    return weight is not None and floats and len(weight.shape) == 2


def _open(node: ir.Node, op: Builder) -> ir.Value:
    plain = {k: a for k, a in node.attributes.items() if not k.startswith("activation")}
    inputs: Sequence[ir.Value | None] = node.inputs
    made = op.node(_PLAIN[node.op_type], inputs[:3], plain)
    out = _like(made.outputs[0], node)
    if made.op_type == "Gemm" and _opens(made):
        out = _product(made, op, 2)
        remove_dead([made])
        op.nodes.remove(made)
    if len(inputs) > 3 and inputs[3] is not None:
        out = _like(op.node("Add", [out, inputs[3]]).outputs[0], node)
    activation = node.attributes.get_string("activation", "")
    if not activation:
        return out
    extra: dict[str, Any] = {}
    bounds: list[ir.Value] = []
    values = _parameters(node)
    if activation == "Clip":
        bounds = [
            op.constant(np.array(v, np.float32), f"{node.name}_{k}")
            for k, v in zip(("min", "max"), values, strict=False)
        ]
    else:
        extra = dict(zip(_PARAMETERS.get(activation, ()), values, strict=False))
    return op.node(activation, [out, *bounds], extra).outputs[0]


def _product(node: ir.Node, op: Builder, rank: int) -> ir.Value:
    """A Gemm or FusedMatMul: its data turned, its factor in the constant, its addend behind."""
    gemm = node.op_type == "Gemm"
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None
    assert w is not None
    if attribute(node, "transA", 0):
        axes = [*range(rank - 2), rank - 1, rank - 2]
        x = op.node("Transpose", [x], {"perm": axes}).outputs[0]
        x.type = node.outputs[0].type
    weight = weight_of(w)
    assert weight is not None
    turned, factor = bool(attribute(node, "transB", 0)), attribute(node, "alpha", 1.0)
    if factor != 1 or (turned and not gemm):
        array = weight.array() * np.float32(factor)
        w = op.constant(np.ascontiguousarray(array.T if turned and not gemm else array), w.name)
    if not gemm:
        return _like(op.node("MatMul", [x, w]).outputs[0], node)
    row = node.inputs[2] if len(node.inputs) > 2 else None
    together = [row] if row is not None and _plain_row(node) else []
    out = _like(op.node("Gemm", [x, w, *together], {"transB": int(turned)}).outputs[0], node)
    if row is None or together:
        return out
    share = attribute(node, "beta", 1.0)
    if share != 1:
        row = op.node("Mul", [row, op.constant(np.array(share, np.float32), "beta")]).outputs[0]
    return _like(op.node("Add", [out, row]).outputs[0], node)


def _like(value: ir.Value, node: ir.Node) -> ir.Value:
    """`value`, of the type and shape of `node`'s output."""
    value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
    return value


def _parameters(node: ir.Node) -> list[float]:
    """The activation's parameters: a list on a FusedConv, single attributes on a FusedGemm."""
    listed = node.attributes.get("activation_params")
    if listed is not None:
        return [float(v) for v in listed.as_floats()]
    singles = (node.attributes.get(f"activation_{k}") for k in ("alpha", "beta", "gamma"))
    return [a.as_float() for a in singles if a is not None]
