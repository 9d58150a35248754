"""The runtime's fused convolutions and products, taken apart again for passes that need the parts.

    FusedConv(x, W, b, z; act) -> act(Conv(x, W, b) + z)
    FusedGemm(a, b, c; act)    -> act(Gemm(a, b, c))

The runtime fuses the parts itself when it opens the model: taking them apart loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names, remove_dead

__all__ = ["open_fused"]

#: Attributes of each activation, in the order of a FusedConv's parameters.
_PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ()}
_PLAIN = {"FusedConv": "Conv", "FusedGemm": "Gemm"}


def open_fused(model: ir.Model, ctx: Context) -> int:
    """Take apart every FusedConv and FusedGemm of the main graph; returns how many."""
    fused = [n for n in model.graph if n.domain == "com.microsoft" and n.op_type in _PLAIN]
    names = Names(model) if fused else None
    opened = 0
    for node in fused:
        if not ctx.edit("OpenFused", node):
            continue
        builder = Builder(model, node, names)
        out = _open(node, builder)
        provenance.derive(builder.nodes, [node], ctx.pass_name)
        builder.take_over(node.outputs[0], out)
        remove_dead([node])
        opened += 1
    if opened:
        ctx.invalidate()
    return opened


def _open(node: ir.Node, op: Builder) -> ir.Value:
    plain = {k: a for k, a in node.attributes.items() if not k.startswith("activation")}
    inputs: Sequence[ir.Value | None] = node.inputs
    out = op.node(_PLAIN[node.op_type], inputs[:3], plain).outputs[0]
    out.type, out.shape = node.outputs[0].type, node.outputs[0].shape
    if len(inputs) > 3 and inputs[3] is not None:
        out = op.node("Add", [out, inputs[3]]).outputs[0]
        out.type, out.shape = node.outputs[0].type, node.outputs[0].shape
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


def _parameters(node: ir.Node) -> list[float]:
    """The activation's parameters: a list on a FusedConv, single attributes on a FusedGemm."""
    listed = node.attributes.get("activation_params")
    if listed is not None:
        return [float(v) for v in listed.as_floats()]
    singles = (node.attributes.get(f"activation_{k}") for k in ("alpha", "beta", "gamma"))
    return [a.as_float() for a in singles if a is not None]
