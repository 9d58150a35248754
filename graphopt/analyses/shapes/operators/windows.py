"""Shapes of convolutions and pooling over axes of symbolic size.

ONNX's own inference gives numbers where sizes are numbers. Its operators' specifications give, for
a window of reach r = d (k - 1) + 1, stride s and padding p at both ends together,

    floor((x + p - r) / s) + 1                  Conv, pooling (k, s, d, p by axis)
    s (x - 1) + r - p + output_padding          ConvTranspose
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.analyses.shapes.by_onnx import by_onnx
from graphopt.analyses.shapes.facts import Fact, Shapes
from graphopt.analyses.shapes.symbolic import Dim, Expr, floordiv, symbol
from graphopt.graph.attributes import attribute

__all__ = ["OPERATORS", "windowed"]

#: Where the weight stands among the inputs, if a kernel's size is left to it.
_WEIGHT = {"QLinearConv": 3}


def windowed(node: ir.Node, ins: Sequence[Fact], shapes: Shapes) -> list[Fact] | None:
    """(y, and for MaxPool the indices): batch and channels by ONNX, spatial axes by arithmetic."""
    found = by_onnx(node, "", ins, shapes)
    x = ins[0].dims
    if not found or x is None or all(isinstance(d, int) for d in x[2:]):
        return found
    sizes = _spatial(node, ins, x)
    if sizes is None or any(f.dims is not None and len(f.dims) != len(x) for f in found):
        return found
    return [f if f.dims is None else Fact(f.dtype, (*f.dims[:2], *sizes)) for f in found]


def _spatial(node: ir.Node, ins: Sequence[Fact], x: tuple[Dim, ...]) -> list[Dim] | None:
    rank = len(x) - 2
    weight = _WEIGHT.get(node.op_type, 1)
    kernel = attribute(node, "kernel_shape", None)
    if not kernel and len(ins) > weight:
        held = ins[weight].dims
        kernel = None if held is None else held[2:]
    if not kernel or len(kernel) != rank or not all(isinstance(k, int) for k in kernel):
        return None
    strides = attribute(node, "strides", None) or [1] * rank
    dilations = attribute(node, "dilations", None) or [1] * rank
    pads = attribute(node, "pads", None) or [0] * (2 * rank)
    auto = attribute(node, "auto_pad", "NOTSET") or "NOTSET"
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    padding = [0 if auto == "VALID" else pads[k] + pads[k + rank] for k in range(rank)]
    if node.op_type == "ConvTranspose":
        if auto not in ("NOTSET", "VALID") or attribute(node, "output_shape", None):
            return None
        more = attribute(node, "output_padding", None) or [0] * rank
        gained = [r - p + o for r, p, o in zip(reach, padding, more, strict=True)]
        return [(d - 1) * s + g for d, s, g in zip(x[2:], strides, gained, strict=True)]
    if attribute(node, "ceil_mode", 0):
        return None
    if auto.startswith("SAME"):
        return [_quotient(d + s - 1, s) for d, s in zip(x[2:], strides, strict=True)]
    parts = zip(x[2:], strides, reach, padding, strict=True)
    return [_quotient(d + p - r + s, s) for d, s, r, p in parts]


def _quotient(a: Dim, by: int) -> Dim:
    """floor(a / by) as the size of an axis, which is never below 0."""
    found = floordiv(a, by)
    assert found is not None
    name = found.name if isinstance(found, Expr) else None
    return found if name is None else symbol(name.removeprefix("~"))


_NAMES = "AveragePool Conv ConvInteger ConvTranspose LpPool MaxPool QLinearConv"
OPERATORS = dict.fromkeys(_NAMES.split(), windowed)
